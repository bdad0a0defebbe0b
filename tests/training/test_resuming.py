"""A training that is stopped anywhere, by real signals to this process, and continued ends as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_ext.errors import Stopped, UserError
from nnunetv2_ext.launching import stopping
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.training import fold_records, resumable_trainer
from nnunetv2_ext.training import trainer as trainer_module
from nnunetv2_ext.training.checkpoint_files import FINAL, LATEST, PREVIOUS, read_to_continue
from nnunetv2_ext.training.resuming import check_same_training, is_finished
from nnunetv2_ext.training.seeds import make_repeatable, seed_all
from nnunetv2_ext.training.trainer import PretrainedTrainer
from tests.conftest import Model
from tests.training.conftest import MakeTrainer

Make = Callable[..., PretrainedTrainer]
Moment = tuple[str, int, int]
"""Method, epoch, how often it was called in that epoch before."""


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have tests of their own, and take longer than a tiny epoch."""
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(trainer_module, "add_phases", lambda *_: None)
    monkeypatch.setattr(fold_records, "draw_transfer", lambda *_: None)


@pytest.fixture(autouse=True)
def _listening() -> Iterator[None]:
    """This process handles signals as the command does, for the time of a test."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.listen()
    yield
    stopping._requested.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


def random_batch() -> dict[str, Any]:
    """Drawn from the three generators that a training draws from."""
    data = torch.randn(2, 1, 32, 32, 32) + float(np.random.normal())
    target = torch.from_numpy(np.random.randint(0, 3, (2, 1, 32, 32, 32))).float()
    return {"data": data, "target": target, "keys": ["MNI_000", "MNI_001"]}


@pytest.fixture
def make(make_trainer: MakeTrainer) -> Make:
    """Builds a trainer of three tiny epochs on batches that depend on the state of the random numbers alone."""

    def call(model: Model, *overrides: str, recipe: str | None = None) -> PretrainedTrainer:
        tiny = ("num_epochs=3", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=2", "warmup_epochs=1")
        chosen = recipe_for("cnn", (*tiny, *overrides), chosen=recipe)
        seed_all(5)  # the parts that are not pre-trained
        trainer = make_trainer(model, finetuning={"recipe": chosen.as_dict()})
        trainer.get_dataloaders = lambda: (iter(random_batch, None), iter(random_batch, None))  # type: ignore
        return trainer

    return call


def signal_at(trainer: PretrainedTrainer, moment: Moment) -> None:
    """Send this process a SIGTERM while a method is at work."""
    name, epoch, calls_before = moment
    real, calls = getattr(trainer, name), [0]

    def call(*arguments: Any) -> Any:
        result = real(*arguments)
        if trainer.current_epoch == epoch:
            if calls[0] == calls_before:
                os.kill(os.getpid(), signal.SIGTERM)
            calls[0] += 1
        return result

    setattr(trainer, name, call)


def fold_of(trainer: nnUNetTrainer) -> Path:
    return Path(trainer.output_folder)


def loaded(trainer: nnUNetTrainer, name: str = FINAL) -> dict[str, Any]:
    return torch.load(fold_of(trainer) / name, weights_only=True)


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Equal to the bit, whatever it is made of, but for times of day."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            if "timestamps" not in str(key):
                assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    else:
        assert found == expected or (found != found and expected != expected), where


def stopped_at(trainer: PretrainedTrainer, moment: Moment) -> str:
    signal_at(trainer, moment)
    with pytest.raises(Stopped) as caught:
        trainer.run_training()
    stopping._requested.clear()
    return caught.value.why


def continued(trainer: PretrainedTrainer) -> PretrainedTrainer:
    """As the command does it."""
    found = read_to_continue(fold_of(trainer))
    assert found is not None
    trainer.continue_from(found)
    seed_all(99)  # a new process begins with other numbers
    trainer.run_training()
    return trainer


RECIPES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "no seed": (("save_every=1",), None),
    "no seed, rarely saved": (("save_every=50",), None),
    "seed": (("seed=4", "save_every=2"), None),
    "average": (("ema=0.9", "optimizer=adamw", "save_every=50"), None),
    "low rank": (("save_every=50",), "lora"),
}
MOMENTS: dict[str, Moment] = {
    "in the first epoch": ("train_step", 0, 0),
    "in mid-epoch": ("train_step", 1, 0),
    "after an epoch's last step": ("train_step", 1, 1),
    "in the validation of an epoch": ("validation_step", 1, 0),
    "between two epochs": ("on_epoch_end", 2, 0),  # the hook has counted the epoch already
}


@pytest.mark.parametrize(
    ("recipe", "moment"),
    [
        ("no seed", "in mid-epoch"),
        ("no seed, rarely saved", "in the first epoch"),
        ("no seed, rarely saved", "between two epochs"),
        ("seed", "in the validation of an epoch"),
        ("average", "in mid-epoch"),
        ("low rank", "after an epoch's last step"),
    ],
)
def test_a_stopped_training_ends_as_if_it_had_not_been(
    recipe: str, moment: str, planned_resenc: Model, make: Make
) -> None:
    settings, name = RECIPES[recipe]
    undisturbed = make(planned_resenc, *settings, recipe=name)
    undisturbed.run_training()
    expected = loaded(undisturbed)
    shutil.rmtree(fold_of(undisturbed))

    stopped = make(planned_resenc, *settings, recipe=name)
    epoch = MOMENTS[moment][1]
    why = stopped_at(stopped, MOMENTS[moment])
    assert f"SIGTERM in epoch {epoch}" in why
    assert LATEST in why
    assert loaded(stopped, LATEST)["current_epoch"] == epoch
    assert not (fold_of(stopped) / FINAL).exists()

    found = loaded(continued(make(planned_resenc, *settings, recipe=name)))
    assert len(expected["logging"]["train_losses"]) == 3
    for content in (expected, found):  # where the fold's folder is moved to, in the plan
        content.pop("init_args")
    assert_same(found, expected)
    assert sorted(p.name for p in fold_of(stopped).glob("*.pth")) == ["checkpoint_best.pth", FINAL]


def test_the_start_of_an_epoch_is_kept_as_it_was(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, "ema=0.9", "save_every=50", recipe="lora")
    states: list[dict[str, Any]] = []
    start = trainer.on_epoch_start

    def note() -> None:
        start()
        with trainer._content(trainer.current_epoch) as content:
            states.append(resumable_trainer.held_in_memory(content))

    trainer.on_epoch_start = note  # type: ignore[method-assign]
    stopped_at(trainer, ("train_step", 2, 1))
    held = loaded(trainer, LATEST)
    for content in (held, states[2]):
        content["logging"].pop("epoch_start_timestamps")  # nnU-Net has begun the epoch when the test looks
    assert held["finetuning"]["unmerged_weights"] is not None
    assert held["finetuning"]["average"] is not None
    assert_same(held, states[2])


def test_a_signal_in_the_last_step_lets_the_training_finish(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc)
    assert stopped_at(trainer, ("validation_step", 2, 1)) == "SIGTERM"
    assert loaded(trainer)["current_epoch"] == 3
    assert not (fold_of(trainer) / LATEST).exists()


def test_without_checkpoints_a_stop_says_that_nothing_is_kept(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc)
    trainer.disable_checkpointing = True
    signal_at(trainer, ("train_step", 1, 0))
    with pytest.raises(UserError, match="nothing is kept"):  # no code 75: a job script would queue it again for ever
        trainer.run_training()
    assert not list(fold_of(trainer).glob("*.pth*"))


def test_real_cases_without_a_seed_are_continued_to_the_bit(
    planned_resenc: Model, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def real(loaders: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            result = loaders()
            assert all(make_repeatable(loader) for loader in result)  # it times two ways to blur
            return result

        return call

    def on_cases() -> PretrainedTrainer:
        trainer = make(planned_resenc, "num_epochs=2", "num_iterations_per_epoch=1", "num_val_iterations_per_epoch=1")
        del trainer.get_dataloaders
        monkeypatch.setattr(trainer, "get_dataloaders", real(trainer.get_dataloaders))
        return trainer

    undisturbed = on_cases()
    undisturbed.run_training()
    expected = loaded(undisturbed)
    shutil.rmtree(fold_of(undisturbed))
    stopped_at(on_cases(), ("train_step", 1, 0))
    assert_same(loaded(continued(on_cases()))["network_weights"], expected["network_weights"])


def test_the_gradient_scaler_goes_on(planned_resenc: Model, make: Make) -> None:
    def scaled() -> PretrainedTrainer:
        trainer = make(planned_resenc, "save_every=50")
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=4)
        return trainer

    undisturbed = scaled()
    undisturbed.run_training()
    expected = loaded(undisturbed)
    assert expected["grad_scaler_state"]["scale"] == 16, "it has grown after four of six steps"
    assert expected["grad_scaler_state"]["_growth_tracker"] == 2
    shutil.rmtree(fold_of(undisturbed))
    stopped_at(scaled(), ("train_step", 1, 0))
    resumed = scaled()
    assert loaded(resumed, LATEST)["grad_scaler_state"]["_growth_tracker"] == 2
    found = loaded(continued(resumed))
    assert_same(found["grad_scaler_state"], expected["grad_scaler_state"])
    assert_same(found["network_weights"], expected["network_weights"])


# the best checkpoint


class Killed(BaseException):
    """Passes all that saves something on errors."""


def with_scores(trainer: nnUNetTrainer, scores: dict[int, float], killed_in: int = -1) -> None:
    """Validation finds these shares of the foreground; the training dies in an epoch."""
    step = trainer.train_step

    def train_step(batch: dict) -> dict:
        if trainer.current_epoch == killed_in:
            raise Killed
        return step(batch)

    def validation_step(_: dict) -> dict:
        score = scores[trainer.current_epoch]
        found = {"tp_hard": score, "fp_hard": 1 - score, "fn_hard": 1 - score}
        return {"loss": 1.0, **{key: np.full(2, value * 100) for key, value in found.items()}}

    trainer.train_step, trainer.validation_step = train_step, validation_step  # type: ignore[method-assign]


@pytest.mark.parametrize("save_every", [1, 2])
def test_a_continued_training_keeps_the_best_checkpoint_from_worse_ones(
    save_every: int, planned_resenc: Model, make: Make
) -> None:
    settings = ("num_epochs=5", f"save_every={save_every}")
    trainer = make(planned_resenc, *settings)
    with_scores(trainer, {0: 0.1, 1: 0.1, 2: 0.9}, killed_in=3)
    with pytest.raises(Killed):
        trainer.run_training()
    best = fold_of(trainer) / "checkpoint_best.pth"
    before = best.read_bytes()
    assert loaded(trainer, best.name)["current_epoch"] == 3
    assert loaded(trainer, LATEST)["current_epoch"] == (3 if save_every == 1 else 2)
    resumed = make(planned_resenc, *settings)
    with_scores(resumed, dict.fromkeys(range(5), 0.3 if save_every == 2 else 0.1))
    continued(resumed)
    scores = loaded(resumed)["logging"]["ema_fg_dice"]
    assert max(scores[3:]) < torch.load(best, weights_only=True)["_best_ema"]
    assert best.read_bytes() == before


def test_a_continued_training_replaces_the_best_checkpoint_by_a_better_one(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, "save_every=2")
    with_scores(trainer, {0: 0.1, 1: 0.2}, killed_in=2)
    with pytest.raises(Killed):
        trainer.run_training()
    resumed = make(planned_resenc, "save_every=2")
    with_scores(resumed, {2: 0.9})
    continued(resumed)
    assert loaded(resumed, "checkpoint_best.pth")["current_epoch"] == 3


def test_stock_nnunet_replaces_the_best_checkpoint_by_a_worse_one(planned_resenc: Model, make: Make) -> None:
    """Why the order of the two is another one here: the day that this fails, ours can go."""
    plans = make(planned_resenc).plans_manager.plans
    dataset_json = json.loads((planned_resenc.workplace.preprocessed / "dataset.json").read_text())

    def stock(scores: dict[int, float], killed_in: int = -1) -> nnUNetTrainer:
        trainer = nnUNetTrainer(
            {**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu")
        )
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 1, 1
        trainer.save_every, trainer.enable_deep_supervision = 1, False
        trainer.get_dataloaders = lambda: (iter(random_batch, None), iter(random_batch, None))  # type: ignore
        with_scores(trainer, scores, killed_in)
        return trainer

    trainer = stock({0: 0.9}, killed_in=1)
    with pytest.raises(Killed):
        trainer.run_training()
    resumed = stock({1: 0.1})
    resumed.load_checkpoint(str(fold_of(resumed) / LATEST))
    resumed.run_training()
    best = torch.load(fold_of(resumed) / "checkpoint_best.pth", weights_only=False)
    assert best["_best_ema"] < max(best["logging"]["ema_fg_dice"])


def test_a_damaged_best_checkpoint_is_set_aside_and_the_training_goes_on(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, "save_every=1")
    stopped_at(trainer, ("train_step", 2, 0))
    best = fold_of(trainer) / "checkpoint_best.pth"
    data = bytearray(best.read_bytes())
    data[len(data) // 2] ^= 1
    best.write_bytes(data)
    torch.load(best, weights_only=True)  # PyTorch notices nothing
    resumed = continued(make(planned_resenc, "save_every=1"))
    assert best.with_name("checkpoint_best.pth.damaged").read_bytes() == data
    assert "checkpoint_best.pth.damaged" in Path(resumed.log_file).read_text()
    assert loaded(resumed)["current_epoch"] == 3
    assert loaded(resumed, best.name)["current_epoch"] == 3


# how often, and how long


@pytest.mark.parametrize(("save_every", "epochs"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3])])
def test_the_recipe_says_how_often_a_training_is_saved(
    save_every: int, epochs: list[int], planned_resenc: Model, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    real = resumable_trainer.save_whole

    def save(checkpoint: dict, path: Path) -> None:
        real(checkpoint, path)
        if path.name == LATEST:
            saved.append(checkpoint["current_epoch"])

    monkeypatch.setattr(resumable_trainer, "save_whole", save)
    make(planned_resenc, "num_epochs=5", "num_iterations_per_epoch=1", f"save_every={save_every}").run_training()
    assert saved == epochs


def test_a_finished_training_can_be_extended_stopped_and_continued(planned_resenc: Model, make: Make) -> None:
    short = make(planned_resenc, "num_epochs=2", "warmup_epochs=0")
    short.run_training()
    recipe = short.recipe.as_dict()
    validation = fold_of(short) / "validation"
    validation.mkdir()
    (validation / "summary.json").write_text('{"metric_per_case": []}')
    assert is_finished(fold_of(short), recipe, probabilities=False)

    def longer() -> PretrainedTrainer:
        return make(planned_resenc, "num_epochs=4", "warmup_epochs=0", "save_every=50")

    extended = longer()
    found = read_to_continue(fold_of(extended))
    assert found is not None
    extended.continue_from(found)
    stopped_at(extended, ("train_step", 3, 0))
    assert not is_finished(fold_of(extended), extended.recipe.as_dict(), probabilities=False)
    assert loaded(extended)["current_epoch"] == 2, "stock commands have the finished model until the new one is there"
    again = longer()
    found = read_to_continue(fold_of(again))
    assert found is not None
    assert (found.path.name, found.content["current_epoch"]) == (LATEST, 3)
    continued(again)
    assert loaded(again)["current_epoch"] == 4
    assert len(loaded(again)["logging"]["train_losses"]) == 4
    assert not (fold_of(again) / LATEST).exists()
    assert not (fold_of(again) / PREVIOUS).exists()
    assert not is_finished(fold_of(again), again.recipe.as_dict(), probabilities=False), "its validation is left"


# finished, or another training


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    fold = tmp_path / "fold_0"
    (fold / "validation").mkdir(parents=True)
    dataset_json = {"file_ending": ".nii.gz", "labels": {"background": 0, "brain": 1}, "channel_names": {"0": "T1"}}
    plans = {
        "dataset_name": "Dataset999_MNI", "transpose_forward": [0, 1, 2], "image_reader_writer": "SimpleITKIO",
        "configurations": {"3d_fullres": {"batch_size": 2, "patch_size": [32, 32, 32], "architecture": {"n": [8, 16]}}},
    }  # fmt: skip
    content = {
        "network_weights": {}, "current_epoch": 3, "finetuning": {"recipe": {"num_epochs": 3}},
        "init_args": {"plans": plans, "dataset_json": dataset_json},
    }  # fmt: skip
    torch.save(content, fold / FINAL)
    cases = [{"prediction_file": f"/moved/{case}.nii.gz"} for case in ("sub.1", "sub.2")]
    (fold / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    return fold


def test_a_validated_training_is_finished_with_its_own_recipe_alone(finished: Path) -> None:
    assert is_finished(finished, {"num_epochs": 3}, probabilities=False)
    assert not is_finished(finished, {"num_epochs": 4}, probabilities=False)


def test_a_validation_that_is_missing_or_cut_off_is_left_to_do(finished: Path) -> None:
    summary = finished / "validation" / "summary.json"
    text = summary.read_text()
    for broken in (text[:30], "", "[]", "\0" * len(text)):
        summary.write_text(broken)
        assert not is_finished(finished, {"num_epochs": 3}, probabilities=False)
    summary.unlink()
    assert not is_finished(finished, {"num_epochs": 3}, probabilities=False)


def test_a_final_checkpoint_that_cannot_be_opened_is_not_finished(finished: Path) -> None:
    (finished / FINAL).write_bytes((finished / FINAL).read_bytes()[:200])
    assert not is_finished(finished, {"num_epochs": 3}, probabilities=False)


def test_probabilities_are_left_to_do_until_every_case_has_its_own_whole(finished: Path) -> None:
    for name in ("sub.1.npz", "sub.1.pkl", "sub.2.npz", "sub.2.pkl"):
        assert not is_finished(finished, {"num_epochs": 3}, probabilities=True)
        (finished / "validation" / name).write_bytes(b"")
    assert is_finished(finished, {"num_epochs": 3}, probabilities=True)


def changed(value: dict, path: str, to: object) -> dict:
    copy = json.loads(json.dumps(value))
    *parents, last = path.split(".")
    inner = copy
    for key in parents:
        inner = inner[key]
    inner[last] = to
    return copy


@pytest.mark.parametrize(
    ("where", "key", "to", "named"),
    [
        ("plans", "configurations.3d_fullres.batch_size", 4, "batch_size (2 and 4)"),
        ("plans", "configurations.3d_fullres.patch_size", [64, 32, 32], "patch_size ([32, 32, 32] and [64, 32, 32])"),
        ("plans", "configurations.3d_fullres.architecture.n", [8, 24], "architecture.n ([8, 16] and [8, 24])"),
        ("plans", "dataset_name", "Dataset998_Other", "Dataset998_Other"),
        ("dataset_json", "labels.brain", 2, "labels.brain (1 and 2)"),
        ("dataset_json", "labels.tumour", 2, "labels.tumour (None and 2)"),
        ("dataset_json", "channel_names.0", "T2", "channel_names.0 (T1 and T2)"),
    ],
)
def test_another_plan_architecture_or_dataset_is_refused_and_named(
    finished: Path, where: str, key: str, to: object, named: str
) -> None:
    arguments = torch.load(finished / FINAL, weights_only=True)["init_args"]
    check_same_training(finished, arguments["plans"], arguments["dataset_json"])
    arguments[where] = changed(arguments[where], key, to)
    with pytest.raises(UserError) as caught:
        check_same_training(finished, arguments["plans"], arguments["dataset_json"])
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_cases_and_another_recipe_are_the_same_training(finished: Path) -> None:
    arguments = torch.load(finished / FINAL, weights_only=True)["init_args"]
    plans = {**arguments["plans"], "finetuning": {"recipe": {"num_epochs": 9}}, "plans_name": "other"}
    check_same_training(finished, plans, {**arguments["dataset_json"], "numTraining": 99})


def test_the_newest_checkpoint_that_can_be_opened_is_compared(finished: Path) -> None:
    arguments = torch.load(finished / FINAL, weights_only=True)["init_args"]
    other = changed(arguments["plans"], "configurations.3d_fullres.batch_size", 4)
    shutil.copy(finished / FINAL, finished / PREVIOUS)
    (finished / FINAL).write_bytes(b"")
    with pytest.raises(UserError, match=PREVIOUS):
        check_same_training(finished, other, arguments["dataset_json"])
