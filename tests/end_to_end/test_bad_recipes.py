"""Recipes that cannot be trained with: one line on stderr, exit code 1, nothing written. And recipes shown as text."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nnunetv2_ext.cli import train_pretrained
from nnunetv2_ext.recipes.resolving import shipped_names
from tests.commands import run_command
from tests.conftest import Model, Workplace, copy_of
from tests.end_to_end.refusal import Refuses

Print = Callable[..., str]


@pytest.fixture(scope="module")
def place(planned_resenc: Model, planned_primus: Model, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Two plans that have never been trained with."""
    return copy_of(planned_primus.workplace, tmp_path_factory.mktemp("bad_recipes"))


@pytest.fixture
def train_refused(refused: Refuses, planned_resenc: Model) -> Refuses:
    """Expected words, then `--set` words and other options, for the ResEnc unless another plan is given."""

    def call(*expected: str, sets: tuple = (), more: tuple = (), p: str = "") -> str:
        overrides = ("--set", *sets) if sets else ()
        plans = p or planned_resenc.inner_name
        arguments = ["-d", 999, "-c", "3d_fullres", "-f", 0, "-p", plans, "-device", "cpu", *more, *overrides]
        return refused(train_pretrained.main, arguments, *expected)

    return call


@pytest.fixture
def printed(output_of: Callable[..., str], place: Workplace) -> Print:
    """What --print_recipe prints."""

    def call(*arguments: object) -> str:
        return output_of(place, train_pretrained.main, "--print_recipe", *arguments)

    return call


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("num_epoch=3", "num_epochs"), ("lora.ranks=4", "rank"), ("phases.0.epoch=3", "epochs"), ("ema_decay=0.9", "ema")],
)
def test_an_unknown_key(word: str, nearest: str, train_refused: Refuses) -> None:
    train_refused(f"there is no {word.split('=')[0]}", nearest, sets=(word,))


def test_an_unknown_key_in_a_file(train_refused: Refuses, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 0.1\n")
    train_refused("there is no learning_rate", more=("-r", path))


@pytest.mark.parametrize(
    "word",
    ["num_epochs=three", "num_epochs=1.5", "ema=high", "loss=mse", "precision=fp8", "optimizer=adam",
     "phases.0.curve=exp", "mirroring=perhaps", "phases=all"],
)  # fmt: skip
def test_a_value_of_the_wrong_type(word: str, train_refused: Refuses) -> None:
    train_refused(word.partition("=")[0].rpartition(".")[2], sets=(word,))


@pytest.mark.parametrize(
    ("part", "expected"),
    [("stage:9", "stage:0..3"), ("decoder_stage:3..", "decoder_stage:0..2"), ("decodr", "decoder"),
     ("bottleneck.*", "matches nothing")],
)  # fmt: skip
def test_a_part_that_matches_nothing(part: str, expected: str, train_refused: Refuses) -> None:
    train_refused(part, expected, sets=(f"phases=[{{parts: ['{part}'], epochs: 3}}]",))


def test_targets_of_lora_that_match_nothing(train_refused: Refuses) -> None:
    train_refused("stage:9", more=("-r", "lora"), sets=("lora.targets=['stage:9']",))
    train_refused("LoRA", "lora.targets", more=("-r", "lora"), sets=("lora.targets=['*.norm.*']",))


@pytest.mark.parametrize(("lengths", "total"), [((2, 3), 5), ((3, 4), 7)])
def test_phases_that_sum_to_more_epochs_than_there_are(
    lengths: tuple[int, int], total: int, train_refused: Refuses
) -> None:
    phases = ", ".join(f"{{parts: [all], epochs: {n}}}" for n in lengths)
    train_refused(
        f"{lengths[0]} + {lengths[1]} = {total}", "num_epochs (4)", sets=(f"phases=[{phases}]", "num_epochs=4")
    )


def test_phases_of_a_file_that_do_not_fit_another_number_of_epochs(train_refused: Refuses, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("phases:\n- {parts: [decoder], epochs: 20}\n- {parts: [all], epochs: 80}\n")
    train_refused("20 + 80 = 100", "num_epochs (50)", more=("-r", path), sets=("num_epochs=50",))
    train_refused("20 + 80 = 100", "num_epochs (150)", "rest", more=("-r", path), sets=("num_epochs=150",))


@pytest.mark.parametrize(("mode", "blocks"), [("decoder", 3), ("encoder", 4)])
def test_unfreezing_deeper_than_the_network(mode: str, blocks: int, train_refused: Refuses) -> None:
    train_refused(
        "gradual_unfreezing.depth", f"{mode} has {blocks} blocks", more=("-r", "gradual_unfreezing"),
        sets=(f"gradual_unfreezing.mode={mode}", f"gradual_unfreezing.depth={blocks + 1}"),
    )  # fmt: skip


def test_lora_without_peft(train_refused: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails
    train_refused("peft", 'pip install "nnunetv2-ext[lora]"', more=("-r", "lora"))


def test_lora_as_a_part_without_adapters(train_refused: Refuses) -> None:
    train_refused("-r lora", "lora.rank", sets=("phases=[{parts: [lora], epochs: 2}]",))


@pytest.mark.parametrize("value", [0, -1])
def test_an_accumulation_below_one(value: int, train_refused: Refuses) -> None:
    train_refused("accumulation must be at least 1", str(value), sets=(f"accumulation={value}",))


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.9])
def test_an_average_outside_zero_to_one(value: float, train_refused: Refuses) -> None:
    train_refused("ema must be between 0 and 1", sets=(f"ema={value}",))


def test_drop_path_for_a_unet_is_refused_and_may_be_switched_off(
    train_refused: Refuses, printed: Print, planned_resenc: Model, tmp_path: Path
) -> None:
    path = tmp_path / "of_a_primus.yaml"
    path.write_text("drop_path: 0.2\n")
    train_refused("drop_path", "Primus", "--set drop_path=0", more=("-r", path))
    shown = printed("-d", 999, "-p", planned_resenc.inner_name, "-r", path, "--set", "drop_path=0")
    assert yaml.safe_load(shown)["drop_path"] == 0


def test_deep_supervision_for_a_primus(train_refused: Refuses, planned_primus: Model) -> None:
    train_refused("deep_supervision", "Primus", p=planned_primus.inner_name, sets=("deep_supervision=true",))


def test_the_marginal_loss_without_merged_classes(train_refused: Refuses) -> None:
    train_refused("merged_classes", "dataset.json", sets=("loss=marginal",))


def test_from_scratch_with_a_recipe_that_never_trains_the_encoder(train_refused: Refuses) -> None:
    train_refused("frozen_encoder", "never trains the encoder", more=("-r", "frozen_encoder", "--from_scratch"))


def test_a_recipe_that_there_is_not(train_refused: Refuses, tmp_path: Path) -> None:
    train_refused("'sawtoth'", "did you mean sawtooth?", more=("-r", "sawtoth"))
    train_refused("nothing.yaml", more=("-r", tmp_path / "nothing.yaml"))


@pytest.mark.parametrize("content", ["a: [1", "just words", "", "\x00", "phases: []", "phases: [1, 2]"])
def test_a_file_that_is_no_recipe(content: str, train_refused: Refuses, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    train_refused("phases" if "phases" in content else "mine.yaml", more=("-r", path))


@pytest.mark.parametrize("name", ["a/b", "a__b", "_a", "a b"])
def test_a_run_name_that_is_no_part_of_a_folders(name: str, train_refused: Refuses) -> None:
    train_refused("-rn", more=("-rn", name))


def test_a_recipe_by_trainer_and_by_name(train_refused: Refuses) -> None:
    train_refused("PretrainedTrainer_150ep", "-r sawtooth", more=("-tr", "PretrainedTrainer_150ep", "-r", "sawtooth"))


def test_an_unknown_logger(train_refused: Refuses) -> None:
    train_refused("-logger", "tensorboard", "wandb", more=("-logger", "mlflow"))


def test_list_recipes_needs_no_other_argument_and_no_variable() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    result = run_command("nnUNetv2_train_pretrained", "--list_recipes", env=env)
    lines = result.stdout.splitlines()
    assert result.stderr == ""
    assert [line.split("  ")[0].strip() for line in lines] == shipped_names()
    assert all(len(line.split("  ", 1)[1].strip()) > 10 for line in lines)
    expected = {
        "default", "short", "primus", "sawtooth", "gradual_unfreezing", "layer_decay", "lora", "frozen_encoder",
        "from_scratch",
    }  # fmt: skip
    assert set(shipped_names()) == expected


@pytest.mark.parametrize("name", shipped_names())
def test_a_printed_recipe_is_read_back_as_it_is(
    name: str, printed: Print, planned_resenc: Model, planned_primus: Model, tmp_path: Path
) -> None:
    plans = [("-d", 999, "-p", model.long_name) for model in (planned_resenc, planned_primus)]
    for arguments in ((), *plans):
        text = printed("-r", name, "--set", "seed=3", "num_epochs=40", *arguments)
        assert (yaml.safe_load(text)["name"], yaml.safe_load(text)["num_epochs"]) == (name, 40)
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        assert printed("-r", path, *arguments) == text


def test_a_recipe_is_printed_without_a_plan_and_without_folders(
    printed: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = printed("-r", "gradual_unfreezing", "--set", "gradual_unfreezing.depth=5")
    assert len(yaml.safe_load(without)["phases"]) == 1 + 5  # ResEnc-L has five decoder stages
    env = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    result = run_command("nnUNetv2_train_pretrained", "--print_recipe", env=env)
    assert yaml.safe_load(result.stdout)["num_epochs"] == 1000


def test_a_recipe_is_printed_for_the_plans_network(
    printed: Print, planned_resenc: Model, planned_primus: Model
) -> None:
    def shown(model: Model, *more: object) -> dict:
        return yaml.safe_load(printed("-d", 999, "-p", model.inner_name, *more))

    assert shown(planned_resenc)["optimizer"] == "sgd"
    assert shown(planned_primus)["optimizer"] == "adamw"
    assert shown(planned_primus, "-r", "layer_decay")["drop_path"] == 0.2
    encoder = ("-r", "gradual_unfreezing", "--set", "gradual_unfreezing.mode=encoder", "gradual_unfreezing.depth=3")
    assert shown(planned_resenc, *encoder)["phases"][-1]["parts"] == ["head", "stem", "stage:0..2"]
