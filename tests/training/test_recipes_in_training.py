"""What a recipe does to a training, against the checkpoint's tensors, closed forms and the plain training."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.training import fold_records
from nnunetv2_ext.training import trainer as trainer_module
from nnunetv2_ext.training.lora import load_adapter, merged_state_dict
from nnunetv2_ext.training.trainer import PretrainedTrainer
from tests.conftest import Model
from tests.training.conftest import MakeTrainer

Weights = dict[str, torch.Tensor]
Make = Callable[..., PretrainedTrainer]

TINY = ("num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "save_every=1")
ENCODER_AND_STEM = {"planned_resenc": ("encoder.",), "planned_primus": ("eva.", "down_projection.")}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have tests of their own, and take longer than a tiny epoch."""
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(trainer_module, "add_phases", lambda *_: None)
    monkeypatch.setattr(fold_records, "draw_transfer", lambda *_: None)


@pytest.fixture(params=ENCODER_AND_STEM)
def planned(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue(request.param)


@pytest.fixture
def make(make_trainer: MakeTrainer) -> Make:
    """Builds a trainer of a recipe, on batches that depend on the number of the step alone."""

    def call(model: Model, *overrides: str, recipe: str | None = None) -> PretrainedTrainer:
        family = "primus" if "prim" in model.inner_name else "cnn"
        chosen = recipe_for(family, (*TINY, *overrides), chosen=recipe)
        trainer = make_trainer(model, finetuning={"recipe": chosen.as_dict()})

        def loaders() -> tuple[Iterator[dict], Iterator[dict]]:
            steps = trainer.current_epoch * trainer.num_iterations_per_epoch * chosen.accumulation
            return map(batch, itertools.count(steps)), map(batch, itertools.count(10_000))

        trainer.get_dataloaders = loaders  # type: ignore[method-assign]
        return trainer

    return call


def batch(number: int, *, size: int = 2, case: str = "MNI_000") -> dict[str, Any]:
    """Noise with the labels 0, 1 and 2, always the same for a number."""
    random = torch.Generator().manual_seed(number)
    return {
        "data": torch.randn(size, 1, 32, 32, 32, generator=random),
        "target": torch.randint(0, 3, (size, 1, 32, 32, 32), generator=random).float(),
        "keys": [case] * size,
    }


def train_epoch(trainer: PretrainedTrainer, after_step: Callable[[], object] = lambda: None) -> None:
    """nnU-Net's loop for one epoch, by its own hooks."""
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs = []
    for _ in range(trainer.num_iterations_per_epoch):
        outputs.append(trainer.train_step(next(trainer.dataloader_train)))
        after_step()
    trainer.on_train_epoch_end(outputs)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    trainer.on_epoch_end()


def weights(network: nn.Module) -> Weights:
    """A copy of the parameters, each under one name."""
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def moved(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def saved_weights(trainer: PretrainedTrainer, name: str = "checkpoint_latest.pth") -> Weights:
    return torch.load(Path(trainer.output_folder) / name, weights_only=True)["network_weights"]


def pretrained_weights(model: Model) -> Weights:
    return torch.load(model.checkpoint, weights_only=True)["network_weights"]


def log_of(trainer: PretrainedTrainer) -> str:
    return Path(trainer.log_file).read_text()


def unused(name: str) -> bool:
    """The outputs at lower resolution, which only deep supervision looks at."""
    return name.startswith(("decoder.seg_layers.0.", "decoder.seg_layers.1."))


def is_sure_to_move(name: str) -> bool:
    """Not so: what a segmentation does not need, and a bias in front of an instance norm, whose gradient is rounding.

    Primus has tokens that belong to neither side; those for masks play no part.
    """
    return not unused(name) and "token" not in name and not name.endswith("conv.bias")


# what trains


def test_a_frozen_encoder_stays_as_in_the_checkpoint_to_the_bit_and_all_else_moves(planned: Model, make: Make) -> None:
    trainer = make(planned, "num_epochs=2", "warmup_epochs=0", recipe="frozen_encoder")
    trainer.on_train_start()
    before = weights(trainer.network)
    for _ in range(2):
        train_epoch(trainer)
    prefixes = ENCODER_AND_STEM["planned_primus" if "prim" in planned.inner_name else "planned_resenc"]
    pretrained, saved = pretrained_weights(planned), saved_weights(trainer)
    frozen = [name for name in pretrained if name.startswith(prefixes)]
    assert len(frozen) > 40
    assert not [name for name in frozen if not torch.equal(saved[name], pretrained[name])]
    others = {name for name in before if not name.startswith(prefixes) and is_sure_to_move(name)}
    assert others
    assert others <= moved(before, weights(trainer.network))


def test_a_frozen_encoder_keeps_no_graph(planned: Model, make: Make) -> None:
    trainer = make(planned, recipe="frozen_encoder")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    seen: list[torch.Tensor] = []

    def look(_module: nn.Module, _inputs: object, outputs: Any) -> None:
        seen.extend(o for o in (outputs if isinstance(outputs, (list, tuple)) else [outputs]) if o is not None)

    inner: Any = trainer.network.eva if hasattr(trainer.network, "eva") else trainer.network.encoder
    inner.register_forward_hook(look)
    output = trainer.network(batch(0)["data"])
    assert seen
    assert all(o.grad_fn is None and not o.requires_grad for o in seen)
    assert output.grad_fn is not None


def test_the_optimizer_keeps_nothing_for_a_frozen_encoder(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, recipe="frozen_encoder")
    trainer.on_train_start()
    train_epoch(trainer)
    names = {id(parameter): name for name, parameter in trainer.network.named_parameters()}
    held = {names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]}
    expected = {n for n in names.values() if n.startswith("decoder.") and not unused(n)}
    assert held == expected
    assert {names[id(p)] for p in trainer.optimizer.state} == expected


def test_sawtooth_trains_the_decoder_and_then_everything(planned: Model, make: Make) -> None:
    trainer = make(planned, "num_epochs=4", recipe="sawtooth")
    trainer.on_train_start()
    prefixes = ENCODER_AND_STEM["planned_primus" if "prim" in planned.inner_name else "planned_resenc"]
    names = {n for n, _ in trainer.network.named_parameters() if not unused(n) and "token" not in n}
    encoder = {n for n in names if n.startswith(prefixes)}
    for expected in (names - encoder, names - encoder, names, names):
        before = weights(trainer.network)
        train_epoch(trainer)
        changed = moved(before, weights(trainer.network))
        assert changed & names <= expected
        assert {n for n in expected if is_sure_to_move(n)} <= changed


PHASES = (
    "phases=[{parts: [decoder], epochs: 2, curve: linear}, "
    "{parts: [all], epochs: 3, curve: cosine, optimizer: restarted}]"
)
RATES = [0.5e-3, 1e-3, 1e-3, 0.75e-3, 0.25e-3]  # (e + 1) / 2, then (1 + cos(pi * e / 3)) / 2


@pytest.fixture
def history(planned_resenc: Model, make: Make, tmp_path: Path) -> list[Path]:
    """The checkpoints of a training in two phases, after each epoch."""
    trainer = make(planned_resenc, PHASES)
    trainer.on_train_start()
    kept = []
    for epoch in range(4):
        train_epoch(trainer)
        kept.append(tmp_path / f"after_{epoch}.pth")
        shutil.copy(Path(trainer.output_folder) / "checkpoint_latest.pth", kept[-1])
    return kept


def test_a_training_stopped_after_any_epoch_goes_on_in_its_phase_to_the_bit(
    history: list[Path], planned_resenc: Model, make: Make
) -> None:
    for stopped, checkpoint in enumerate(history[:-1]):
        resumed = make(planned_resenc, PHASES)
        resumed.load_checkpoint(str(checkpoint))
        resumed.on_train_start()
        before = weights(resumed.network)
        train_epoch(resumed)
        truth = torch.load(history[stopped + 1], weights_only=True)
        assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(RATES[stopped + 1], rel=1e-12)
        assert not moved(weights(resumed.network), truth["network_weights"])
        assert ("encoder.stages.0.blocks.0.conv1.conv.weight" in moved(before, truth["network_weights"])) is (
            stopped >= 1
        )


def test_resuming_at_the_border_restarts_the_optimizer_and_within_a_phase_keeps_it(
    history: list[Path], planned_resenc: Model, make: Make
) -> None:
    for stopped, checkpoint in enumerate(history[:-1]):
        resumed = make(planned_resenc, PHASES)
        resumed.load_checkpoint(str(checkpoint))
        resumed.on_train_epoch_start()
        stored = torch.load(checkpoint, weights_only=True)["optimizer_state"]["state"]
        present = resumed.optimizer.state_dict()["state"]
        if stopped == 1:
            assert stored
            assert not present
            continue
        assert set(present) == set(stored)
        assert all(torch.equal(present[i]["momentum_buffer"], stored[i]["momentum_buffer"]) for i in stored)


def test_layer_decay_scales_the_rate_of_every_block(planned: Model, make: Make) -> None:
    trainer = make(planned, "num_epochs=4", "warmup_epochs=2", recipe="layer_decay")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    rate = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    parameters = dict(trainer.network.named_parameters())
    warm_up, batches = 1 / 2, 2 * 4 / 256  # epoch 0 of 2; batches of 2, 4 of them
    peak = 1e-3 * batches * warm_up
    primus = hasattr(trainer.network, "eva")
    name, depth = ("eva.blocks.{}.norm1.weight", 3) if primus else ("encoder.stages.{}.blocks.0.conv1.conv.weight", 4)
    for block in range(depth):
        assert rate[id(parameters[name.format(block)])] == pytest.approx(peak * 0.85 ** (depth - block))
    head, stem = (
        ("up_projection.decode.2.weight", "down_projection.proj.weight")
        if primus
        else ("decoder.seg_layers.2.weight", "encoder.stem.convs.0.conv.weight")
    )
    assert rate[id(parameters[head])] == pytest.approx(peak)
    assert rate[id(parameters[stem])] == pytest.approx(peak * 0.85 ** (depth + 1))


# the moving average


def decay(step: int) -> float:
    return min(0.9, (1 + step) / (10 + step))


def average_of(steps: list[Weights]) -> Weights:
    """The closed form: what each step's weights count for, in double precision."""
    shares, rest = [], 1.0
    for step in reversed(range(len(steps) - 1)):
        shares.append((1 - decay(step)) * rest)
        rest *= decay(step)
    shares = [rest, *reversed(shares)]
    assert sum(shares) == pytest.approx(1)
    return {n: sum(s * w[n].double() for s, w in zip(shares, steps, strict=True)) for n in steps[0]}  # type: ignore[misc]


def assert_close(ours: Weights, truth: Weights) -> None:
    for name, tensor in truth.items():
        torch.testing.assert_close(ours[name].double(), tensor.double(), rtol=1e-5, atol=1e-7)


def test_the_average_is_saved_and_validated_and_the_weights_in_training_go_on(
    planned_resenc: Model, make: Make
) -> None:
    trainer = make(planned_resenc, "ema=0.9", "num_epochs=3", "warmup_epochs=0", "initial_lr=0.01")
    trainer.on_train_start()
    steps = [weights(trainer.network)]
    validated: list[Weights] = []
    trainer.network.register_forward_pre_hook(
        lambda *_: None if torch.is_grad_enabled() else validated.append(weights(trainer.network))
    )
    for _ in range(2):
        train_epoch(trainer, lambda: steps.append(weights(trainer.network)))
        truth = average_of(steps)
        assert len(moved(truth, {n: w.double() for n, w in steps[-1].items()})) > 50
        assert_close(validated[-1], truth)
        assert_close(saved_weights(trainer), truth)
        assert not moved(weights(trainer.network), steps[-1])
    assert len(validated) == 2


def test_an_averaged_training_is_continued_to_the_bit(planned_resenc: Model, make: Make, tmp_path: Path) -> None:
    settings = ("ema=0.9", "num_epochs=3", "warmup_epochs=0")
    trainer = make(planned_resenc, *settings)
    trainer.on_train_start()
    train_epoch(trainer)
    shutil.copy(Path(trainer.output_folder) / "checkpoint_latest.pth", tmp_path / "stopped.pth")
    train_epoch(trainer)
    truth = saved_weights(trainer)
    resumed = make(planned_resenc, *settings)
    resumed.load_checkpoint(str(tmp_path / "stopped.pth"))
    resumed.on_train_start()
    train_epoch(resumed)
    assert not moved(weights(trainer.network), weights(resumed.network))
    saved = saved_weights(resumed)
    assert not moved(truth, saved)


def test_without_its_average_a_continued_training_goes_on_from_the_weights_in_training(
    planned_resenc: Model, make: Make
) -> None:
    trainer = make(planned_resenc, "ema=0.9", "num_epochs=3")
    trainer.on_train_start()
    train_epoch(trainer)
    resumed = make(planned_resenc, "num_epochs=3")
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert not moved(weights(trainer.network), weights(resumed.network))
    resumed.save_checkpoint(str(Path(resumed.output_folder) / "plain.pth"))
    assert not moved(weights(trainer.network), saved_weights(resumed, "plain.pth"))


def test_an_average_switched_on_later_starts_from_the_weights_of_then(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, "num_epochs=3")
    trainer.on_train_start()
    train_epoch(trainer)
    resumed = make(planned_resenc, "ema=0.9", "num_epochs=3")
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    resumed.on_train_start()
    steps = [weights(resumed.network)]
    assert not moved(steps[0], weights(trainer.network))
    train_epoch(resumed, lambda: steps.append(weights(resumed.network)))
    assert_close(saved_weights(resumed), average_of(steps))


# low-rank adapters


def plain_network(trainer: PretrainedTrainer) -> nn.Module:
    """The network that stock nnU-Net would build from the plan."""
    manager = trainer.configuration_manager
    return get_network_from_plans(
        manager.network_arch_class_name, manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import, 1, 3, deep_supervision=False,
    ).eval()  # fmt: skip


@pytest.fixture
def with_lora(planned: Model, make: Make) -> PretrainedTrainer:
    """Trained for two epochs with adapters, at a rate that moves them."""
    trainer = make(planned, "num_epochs=2", "warmup_epochs=0", "initial_lr=0.01", recipe="lora")
    trainer.run_training()
    return trainer


def test_lora_leaves_the_encoders_own_weights_and_predicts_merged_as_unmerged(
    with_lora: PretrainedTrainer, planned: Model
) -> None:
    pretrained, network = pretrained_weights(planned), with_lora.network.eval()
    prefixes = ENCODER_AND_STEM["planned_primus" if "prim" in planned.inner_name else "planned_resenc"]
    own = {n.replace(".base_layer", ""): w for n, w in network.state_dict().items() if ".lora_" not in n}
    compared = [n for n in pretrained if n.startswith(prefixes)]
    assert not [n for n in compared if not torch.equal(own[n], pretrained[n])]
    assert all(p.abs().max() > 0 for n, p in network.named_parameters() if ".lora_B" in n), "the adapters train"

    plain, final = plain_network(with_lora), saved_weights(with_lora, "checkpoint_final.pth")
    assert moved({n: pretrained[n] for n in compared}, final), "the adapters are merged"
    plain.load_state_dict(final, strict=True)
    data = batch(99)["data"]
    with torch.no_grad():
        expected, found = network(data), plain(data)
    assert (expected - found).norm() / expected.norm() < 1e-5


def test_the_adapter_alone_turns_the_same_base_into_the_trained_network(
    with_lora: PretrainedTrainer, planned: Model
) -> None:
    final, pretrained = saved_weights(with_lora, "checkpoint_final.pth"), pretrained_weights(planned)
    prefixes = ENCODER_AND_STEM["planned_primus" if "prim" in planned.inner_name else "planned_resenc"]
    base = {n: pretrained[n] if n.removeprefix("decoder.").startswith(prefixes) else w for n, w in final.items()}
    network = plain_network(with_lora)
    network.load_state_dict(base, strict=True)
    folder = Path(with_lora.output_folder) / "adapter"
    load_adapter(network, folder)
    assert_close(merged_state_dict(network), final)
    assert sum(p.stat().st_size for p in folder.iterdir()) < planned.checkpoint.stat().st_size / 2


def test_a_lora_training_is_continued_to_the_bit(planned_resenc: Model, make: Make, tmp_path: Path) -> None:
    settings = ("num_epochs=3", "warmup_epochs=0")
    trainer = make(planned_resenc, *settings, recipe="lora")
    trainer.on_train_start()
    train_epoch(trainer)
    shutil.copy(Path(trainer.output_folder) / "checkpoint_latest.pth", tmp_path / "stopped.pth")
    train_epoch(trainer)
    resumed = make(planned_resenc, *settings, recipe="lora")
    resumed.load_checkpoint(str(tmp_path / "stopped.pth"))
    resumed.on_train_start()
    train_epoch(resumed)
    assert any(".lora_A" in name for name in weights(resumed.network))
    assert not moved(weights(trainer.network), weights(resumed.network))


# the step


@pytest.mark.parametrize("batch_dice", [False, True])
def test_accumulated_batches_make_the_update_of_one_batch_of_all(
    batch_dice: bool, planned_resenc: Model, make: Make
) -> None:
    updates = []
    first, second = batch(0), batch(1)
    first["target"][:] = 2  # so that a Dice of the whole batch is another one than the mean of two
    both = {k: first[k] + second[k] if k == "keys" else torch.cat([first[k], second[k]]) for k in first}
    for accumulation, batches in ((2, [first, second]), (1, [both]), (1, [first])):
        trainer = make(planned_resenc, f"accumulation={accumulation}", "seed=1", "num_epochs=1", "warmup_epochs=0")
        trainer.configuration_manager.configuration["batch_dice"] = batch_dice
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        before = weights(trainer.network)
        trainer.dataloader_train = iter(batches)
        trainer.train_step(next(trainer.dataloader_train))
        updates.append(torch.cat([(w - before[n]).flatten() for n, w in weights(trainer.network).items()]))
    accumulated, at_once, half = updates
    assert (accumulated - at_once).norm() < 1e-4 * at_once.norm()
    assert (half - at_once).norm() > 0.1 * at_once.norm()


@pytest.fixture
def plain_step(planned_resenc: Model, make: Make) -> tuple[float, Weights]:
    trainer = make(planned_resenc, "seed=1", "num_epochs=1", "warmup_epochs=0")
    return first_step(trainer)


def first_step(trainer: PretrainedTrainer) -> tuple[float, Weights]:
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    loss = float(trainer.train_step(next(trainer.dataloader_train))["loss"])
    return loss, weights(trainer.network)


@pytest.mark.parametrize("lever", ["gradient_checkpointing", "channels_last"])
def test_a_lever_of_speed_or_memory_changes_nothing_in_the_first_step(
    lever: str, plain_step: tuple[float, Weights], planned_resenc: Model, make: Make
) -> None:
    trainer = make(planned_resenc, f"{lever}=true", "seed=1", "num_epochs=1", "warmup_epochs=0")
    trainer.initialize()
    convolution = trainer.network.encoder.stages[1].blocks[0].conv1.conv
    calls: list[torch.Tensor] = []
    convolution.register_forward_hook(lambda _m, inputs, _o: calls.append(inputs[0]))
    loss, after = first_step(trainer)
    assert len(calls) == (2 if lever == "gradient_checkpointing" else 1)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last_3d) is (lever == "channels_last")
    assert loss == pytest.approx(plain_step[0], rel=1e-5)
    assert_close(after, plain_step[1])


def test_bf16_trains_on_the_cpu(plain_step: tuple[float, Weights], planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, "precision=bf16", "seed=1", "num_epochs=1", "warmup_epochs=0")
    trainer.initialize()
    types: set[torch.dtype] = set()
    trainer.network.register_forward_hook(lambda _m, _i, output: types.add(output.dtype))
    loss, after = first_step(trainer)
    assert types == {torch.bfloat16}
    assert loss == pytest.approx(plain_step[0], rel=0.02)
    assert all(w.dtype is torch.float32 and w.isfinite().all() for w in after.values())


def test_drop_path_rises_linearly_over_the_blocks(planned_primus: Model, make: Make) -> None:
    for overrides, last in ((), 0.2), (("drop_path=0.4",), 0.4):  # 0.2 is what the plan's architecture says
        trainer = make(planned_primus, *overrides)
        trainer.initialize()
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in trainer.network.eva.blocks]
        assert rates == pytest.approx([0, last / 2, last])


# loss and data


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, target[:, 0].long(), reduction="none")


EXPECTED_LOSS = {
    "ce": lambda ce: ce.mean(),
    "topk": lambda ce: ce.flatten().sort(descending=True).values[: int(ce.numel() * 0.1)].mean(),
    "focal": lambda ce: ((1 - torch.exp(-ce)) ** 2 * ce).mean(),
}


@pytest.mark.parametrize("name", EXPECTED_LOSS)
def test_the_named_loss_is_trained_with(name: str, planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, f"loss={name}", "num_epochs=1", "warmup_epochs=0")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    step = batch(0)
    with torch.no_grad():
        expected = EXPECTED_LOSS[name](cross_entropy(trainer.network(step["data"]), step["target"]))
    assert float(trainer.train_step(step)["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_merged_classes_count_as_one_in_their_cases_alone(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, "loss=marginal", "num_epochs=1", "warmup_epochs=0")
    trainer.dataset_json["merged_classes"] = {"MNI_000": [["grey_matter", "white_matter"]]}
    trainer.on_train_start()
    for case, is_merged in ("MNI_000", True), ("MNI_001", False):
        step = batch(0, case=case)
        renamed = {**step, "target": step["target"].clamp(max=1)}  # all white matter is called grey matter
        with torch.no_grad():
            losses = [float(trainer.validation_step(s)["loss"]) for s in (step, renamed)]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-6)) is is_merged
    before = weights(trainer.network)
    train_epoch(trainer)
    assert len(moved(before, weights(trainer.network))) > 50


def test_without_mirroring_neither_training_nor_inference_mirrors(planned_resenc: Model, make: Make) -> None:
    for overrides, mirrors in ((), True), (("mirroring=false",), False):
        trainer = make(planned_resenc, *overrides)
        trainer.initialize()
        loader, _ = PretrainedTrainer.get_dataloaders(trainer)
        transforms = loader.data_loader.transforms.transforms
        assert any(isinstance(transform, MirrorTransform) for transform in transforms) is mirrors
        path = Path(trainer.output_folder) / "any.pth"
        trainer.save_checkpoint(str(path))
        axes = torch.load(path, weights_only=True)["inference_allowed_mirroring_axes"]
        assert (axes == (0, 1, 2)) if mirrors else axes is None


def test_a_seeded_training_on_real_cases_is_continued_to_the_bit(
    planned_resenc: Model, make: Make, tmp_path: Path
) -> None:
    def seeded() -> PretrainedTrainer:
        trainer = make(planned_resenc, "seed=7", "num_epochs=2", "num_iterations_per_epoch=1")
        del trainer.get_dataloaders
        return trainer

    trainer, resumed = seeded(), seeded()
    trainer.on_train_start()
    train_epoch(trainer)
    shutil.copy(Path(trainer.output_folder) / "checkpoint_latest.pth", tmp_path / "stopped.pth")
    train_epoch(trainer)
    resumed.load_checkpoint(str(tmp_path / "stopped.pth"))
    resumed.on_train_start()
    train_epoch(resumed)
    assert not moved(weights(trainer.network), weights(resumed.network))


# the end, and what is left behind


def score_nothing(trainer: PretrainedTrainer) -> None:
    """Validation finds no voxel of any class, so that no epoch is better than the first."""
    nothing = {"loss": 1.0, **{key: np.full(2, float(key != "tp_hard")) for key in ("tp_hard", "fp_hard", "fn_hard")}}
    trainer.validation_step = lambda _batch: nothing  # type: ignore[method-assign,assignment]


def test_a_plateau_ends_the_training_for_good(planned_resenc: Model, make: Make) -> None:
    settings = ("early_stop=2", "num_epochs=9", "warmup_epochs=2", "num_iterations_per_epoch=1")
    trainer = make(planned_resenc, *settings)
    score_nothing(trainer)
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    assert torch.load(final, weights_only=True)["current_epoch"] == 2 + 2  # the warm-up does not count
    assert not (final.parent / "checkpoint_latest.pth").exists()
    before = final.read_bytes()
    resumed = make(planned_resenc, *settings)
    resumed.load_checkpoint(str(final))
    resumed.train_step = None  # type: ignore[method-assign,assignment]
    resumed.run_training()
    assert final.read_bytes() == before


def test_the_recipe_is_in_the_log_the_plans_and_the_fold(planned_resenc: Model, make: Make) -> None:
    trainer = make(planned_resenc, "num_epochs=3", "warmup_epochs=1", recipe="frozen_encoder")
    trainer.on_train_start()
    log = log_of(trainer)
    assert "name: frozen_encoder" in log
    assert "epochs 0 to 0: decoder: linear, peak 0.001" in log
    assert "epochs 1 to 2: decoder: poly, peak 0.001" in log
    recipe = trainer.recipe.as_dict()
    assert json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())["finetuning"]["recipe"] == recipe
    record = json.loads((Path(trainer.output_folder) / "finetuning.json").read_text())
    assert record["recipe"] == recipe
    sizes = {n: p.numel() for n, p in trainer.network.named_parameters()}
    trained = sum(size for n, size in sizes.items() if n.startswith("decoder.") and not unused(n))
    assert record["trainable_parameters"] == trained
    trainer.on_train_epoch_start()
    assert f"{trained:,} of {sum(sizes.values()):,} parameters train" in log_of(trainer)


def test_other_loggers_get_the_phase_of_every_epoch(planned_resenc: Model, make: Make) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.phases: list[tuple[int, int]] = []

        def log(self, key: str, value: Any, step: int) -> None:
            if key == "phase":
                self.phases.append((step, value))

    trainer, recorder = make(planned_resenc, "num_epochs=3", "warmup_epochs=1"), Recorder()
    trainer.on_train_start()
    trainer.logger.loggers.append(recorder)
    for _ in range(3):
        train_epoch(trainer)
    assert recorder.phases == [(0, 0), (1, 1), (2, 1)]
