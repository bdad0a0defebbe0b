"""Several processes train as one does on the whole batch: gradients, frozen parts, averages. Real Gloo, on loopback."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.nnunet_folders import read_json
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.training import fold_records
from tests.conftest import Model
from tests.training.distributed_gradients import train_case

Tensors = dict[str, torch.Tensor]

REPOSITORY = Path(__file__).parents[2]
EPSILON = 1e-6
"""Relative. The networks are in double precision; nnU-Net's Dice adds up in single."""
SHORT = (
    "num_epochs=1", "warmup_epochs=0", "num_iterations_per_epoch=2", "gradient_clipping=1e9", "initial_lr=1e-3",
)  # fmt: skip
FREEZE_FIRST = "phases=[{parts: [decoder], epochs: 1, curve: constant}, {parts: [all], epochs: 1, curve: constant}]"


@dataclass(frozen=True)
class Case:
    """What is trained: a recipe on a plan that is changed in a few entries, by so many processes.

    `alone` is the batch that one process needs for the same samples, if not the plan's.
    """

    sets: tuple[str, ...] = ()
    recipe: str | None = None
    sizes: tuple[int, ...] = (2,)
    batch_size: int = 4
    alone: int | None = None
    batch_dice: bool = False
    primus: bool = False
    counts: bool = False

    def as_given(self, name: str, model: Model, batch_size: int) -> dict[str, Any]:
        """The case as the processes read it."""
        plan = copy.deepcopy(model.workplace.plan(model.inner_name))
        plan["plans_name"] += f"_{name}"
        plan["continue_training"] = False
        plan["configurations"]["3d_fullres"] |= {"batch_size": batch_size, "batch_dice": self.batch_dice}
        recipe = recipe_for("primus" if self.primus else "cnn", (*SHORT, *self.sets), chosen=self.recipe)
        plan["finetuning"] = {"recipe": recipe.as_dict()}
        edge = 32 if self.primus else 16  # a Primus takes its patch alone
        return {"plan": plan, "sizes": self.sizes, "counts": self.counts, "edge": edge}


CASES = {
    "default": Case(sizes=(2, 4)),
    "batch_dice": Case(sizes=(2, 4), batch_dice=True),
    "deep_supervision": Case(("deep_supervision=true",)),
    "deep_supervision_of_batch_dice": Case(("deep_supervision=true",), batch_dice=True),
    "frozen_first": Case((FREEZE_FIRST, "num_epochs=2")),
    "lora": Case(recipe="lora"),
    "lora_averaged": Case(("ema=0.9",), recipe="lora"),
    "one_batch": Case(counts=True),
    "accumulated": Case(("accumulation=2",), counts=True),
    "accumulated_batch_dice": Case(("accumulation=2",), batch_dice=True, counts=True),
    "checkpointing": Case(("gradient_checkpointing=true",)),
    "channels_last": Case(("channels_last=true",)),
    "primus": Case(("drop_path=0",), primus=True),
    "averaged": Case(("ema=0.9", "num_epochs=2")),
    "unequal": Case(batch_size=3),
    "unequal_batch_dice": Case(batch_size=3, batch_dice=True),
    "small_batch": Case(("lr_batch=2",), sizes=(4,), batch_size=2, alone=4),
}
REFUSED = ("unequal_batch_dice",)


@dataclass(frozen=True)
class Together:
    """What the processes had in each case, and what one process has that gets all the samples."""

    folder: Path
    models: dict[str, Model]
    env: dict[str, str]

    @cached_property
    def _cache(self) -> dict[str, dict[str, Any]]:
        return {}

    def of(self, name: str, size: int) -> list[dict[str, Any]]:
        """What each rank had."""
        return [torch.load(self.folder / f"{name}_{size}_{rank}.pt", weights_only=True) for rank in range(size)]

    def alone(self, name: str) -> dict[str, Any]:
        """What one process has."""
        if name not in self._cache:
            case = CASES[name]
            given = case.as_given(name, self.models[name], case.alone or case.batch_size)
            with pytest.MonkeyPatch.context() as patch:
                for variable, value in self.env.items():
                    patch.setenv(variable, value)
                patch.setenv("nnUNet_results", str(self.folder / "results_1"))
                patch.setattr(fold_records, "draw_transfer", lambda *_: None)
                self._cache[name] = train_case(given, dataset_json(self.models[name]))
        return self._cache[name]

    def log(self, name: str, size: int) -> str:
        """The logs of a case, all of them."""
        return "".join(p.read_text() for p in (self.folder / f"results_{size}").rglob(f"*_{name}__*/fold_0/*.txt"))


def dataset_json(model: Model) -> dict[str, Any]:
    return read_json(model.workplace.preprocessed / "dataset.json")


@pytest.fixture(scope="module")
def together(planned_resenc: Model, planned_primus: Model, tmp_path_factory: pytest.TempPathFactory) -> Together:
    folder = tmp_path_factory.mktemp("together")
    models = {name: planned_primus if case.primus else planned_resenc for name, case in CASES.items()}
    cases = {name: case.as_given(name, models[name], case.batch_size) for name, case in CASES.items()}
    content = {"dataset_json": dataset_json(planned_resenc), "cases": cases}
    (folder / "cases.json").write_text(json.dumps(content))
    env = {k: v for k, v in planned_resenc.workplace.env.items() if k.startswith("nnUNet_")}
    result = subprocess.run(
        [sys.executable, "-m", "tests.training.distributed_gradients", str(folder), "2", "4"],
        cwd=REPOSITORY, env={**os.environ, **env, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return Together(folder, models, env)


def difference(ours: Tensors, truth: Tensors) -> float:
    """The norm of the difference of all tensors together, over that of the truth."""
    gap = sum(float((ours[name] - tensor).square().sum()) for name, tensor in truth.items())
    return (gap / sum(float(tensor.square().sum()) for tensor in truth.values())) ** 0.5


def check_same_gradients(ours: Tensors, truth: Tensors) -> None:
    """All together, and each parameter for itself but those whose true gradient is 0 (a bias before a norm)."""
    assert ours.keys() == truth.keys()
    assert difference(ours, truth) < EPSILON
    whole = float(torch.stack([tensor.norm() for tensor in truth.values()]).norm())
    felt = {name: tensor for name, tensor in truth.items() if float(tensor.norm()) > 1e-10 * whole}
    assert len(felt) > len(truth) / 2
    for name, tensor in felt.items():
        assert difference({name: ours[name]}, {name: tensor}) < EPSILON, name


def check_equal(ranks: list[Tensors]) -> None:
    """To the bit."""
    for other in ranks[1:]:
        assert [name for name in ranks[0] if not torch.equal(ranks[0][name], other[name])] == []


def moved(before: Tensors, after: Tensors) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


TRAINED = [(name, size) for name, case in CASES.items() for size in case.sizes if name not in REFUSED]


@pytest.mark.parametrize(("name", "size"), TRAINED)
def test_gradients_are_those_of_one_process_with_the_whole_batch(name: str, size: int, together: Together) -> None:
    ranks, alone = together.of(name, size), together.alone(name)
    check_equal([*[rank["start"] for rank in ranks], alone["start"]])
    assert len(alone["steps"]) >= 2
    for number, truth in enumerate(alone["steps"]):
        steps = [rank["steps"][number] for rank in ranks]
        for step in steps:
            check_same_gradients(step["gradients"], truth["gradients"])
        assert sum(step["loss"] for step in steps) / size == pytest.approx(truth["loss"], rel=EPSILON)
        assert len({round(step["loss"], 5) for step in steps}) == size, "each has samples of its own"


@pytest.mark.parametrize(("name", "size"), TRAINED)
def test_weights_are_equal_on_all_ranks_after_every_epoch(name: str, size: int, together: Together) -> None:
    ranks = together.of(name, size)
    for epoch in range(len(ranks[0]["epochs"])):
        check_equal([rank["epochs"][epoch]["weights"] for rank in ranks])
    assert moved(ranks[0]["start"], ranks[0]["epochs"][-1]["weights"])


@pytest.mark.parametrize("name", ["averaged", "lora_averaged"])
def test_averaged_weights_are_equal_on_all_ranks(name: str, together: Together) -> None:
    ranks, alone = together.of(name, 2), together.alone(name)
    for epoch, truth in enumerate(alone["epochs"]):
        check_equal([rank["epochs"][epoch]["averaged"] for rank in ranks])
        assert difference(ranks[1]["epochs"][epoch]["averaged"], truth["averaged"]) < EPSILON
        assert moved(truth["weights"], truth["averaged"])


def test_batch_dice_is_another_loss(together: Together) -> None:
    """Without this the tests above could take one for the other."""
    plain, coupled = together.alone("default")["steps"][0], together.alone("batch_dice")["steps"][0]
    assert difference(coupled["gradients"], plain["gradients"]) > 100 * EPSILON


def test_an_encoder_that_is_frozen_first_moves_in_the_second_phase_on_all_ranks(together: Together) -> None:
    for rank in together.of("frozen_first", 2):
        first, second = (epoch["weights"] for epoch in rank["epochs"])
        assert all(name.startswith("decoder.") for name in moved(rank["start"], first))
        assert any(name.startswith("encoder.") for name in moved(first, second))
        assert all(name.startswith("decoder.") for name in rank["steps"][1]["gradients"])
        assert any(name.startswith("encoder.") for name in rank["steps"][2]["gradients"])


def test_gradients_are_exchanged_with_the_last_of_accumulated_batches_alone(together: Together) -> None:
    for rank in together.of("one_batch", 2):
        first, second = rank["exchanges"]["at_forward_passes"]
        assert 0 == first < second < rank["exchanges"]["all"], "each step exchanges"
    for name, passes in (("accumulated", 2), ("accumulated_batch_dice", 4)):  # the latter has each batch twice
        for rank in together.of(name, 2):
            counts = rank["exchanges"]["at_forward_passes"]
            assert counts == [0] * passes + [counts[-1]] * passes
            assert 0 < counts[-1] < rank["exchanges"]["all"]


def test_unequal_shares_of_a_batch_are_in_the_log(together: Together) -> None:
    assert "The batch of 3 is shared unequally by 2 processes" in together.log("unequal", 2)
    assert "shared unequally" not in together.log("default", 2)


def test_batch_dice_with_unequal_shares_is_refused_once(together: Together) -> None:
    first, second = (rank["refused"] for rank in together.of("unequal_batch_dice", 2))
    assert second == 1, "leaves without a word"
    for text in ("batch_dice", "batch of 3", "2 processes", "-bs"):
        assert text in first


def test_more_processes_than_samples_train_one_each_and_the_rate_follows_the_batch(together: Together) -> None:
    log = together.log("small_batch", 4)
    assert "4 processes are more than the plan's batch size of 2" in log
    assert "the effective batch is 4" in log
    assert {rate for rank in together.of("small_batch", 4) for rate in rank["rates"]} == {2e-3}, "lr_batch=2"
