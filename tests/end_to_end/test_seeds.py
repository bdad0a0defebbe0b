"""Seeded trainings, in processes of their own: bit-equal on the CPU without worker processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.commands import run_command
from tests.conftest import DATASET_ID, Model, Workplace, copy_of, train
from tests.processes import end_all, start, wait_for

SETTINGS = (
    "num_epochs=3",
    "num_iterations_per_epoch=1",
    "num_val_iterations_per_epoch=1",
    "save_every=1",
    "mirroring=false",
)


@pytest.fixture(scope="module")
def place(planned_resenc: Model, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return copy_of(planned_resenc.workplace, tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def plans(planned_resenc: Model) -> str:
    return planned_resenc.inner_name


def fold_of(place: Workplace, plans: str, run_name: str) -> Path:
    return place.results / f"PretrainedTrainer__{plans}_{run_name}__3d_fullres" / "fold_0"


def weights(fold: Path) -> dict[str, torch.Tensor]:
    return torch.load(fold / "checkpoint_final.pth", weights_only=True)["network_weights"]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[bool]:
    assert set(first) == set(second)
    return [torch.equal(first[name], second[name]) for name in first]


def train_seeded(place: Workplace, plans: str, run_name: str, seed: int) -> dict[str, torch.Tensor]:
    train(place, plans, *SETTINGS, f"seed={seed}", "-rn", run_name)
    return weights(fold_of(place, plans, run_name))


@pytest.fixture(scope="module")
def seven(place: Workplace, plans: str) -> dict[str, torch.Tensor]:
    return train_seeded(place, plans, "seven", 7)


def test_a_seeded_training_repeats_to_the_bit_in_a_new_process(
    seven: dict[str, torch.Tensor], place: Workplace, plans: str
) -> None:
    assert all(equal(seven, train_seeded(place, plans, "again", 7)))


@pytest.mark.slow
def test_another_seed_gives_another_network(seven: dict[str, torch.Tensor], place: Workplace, plans: str) -> None:
    assert not all(equal(seven, train_seeded(place, plans, "eight", 8)))


@pytest.mark.slow
def test_a_seeded_training_killed_after_an_epoch_and_continued_ends_the_same(
    seven: dict[str, torch.Tensor], place: Workplace, plans: str, tmp_path: Path
) -> None:
    arguments = (
        "-d", DATASET_ID, "-c", "3d_fullres", "-f", 0, "-p", plans, "-device", "cpu", "-rn", "stopped",
    )  # fmt: skip
    env = {**place.env, "nnUNet_n_proc_DA": "0"}
    latest = fold_of(place, plans, "stopped") / "checkpoint_latest.pth"
    command = "nnUNetv2_train_pretrained"
    process = start(command, *arguments, "--set", *SETTINGS, "seed=7", env=env, log=tmp_path / "log")
    try:
        wait_for(latest.is_file, process, seconds=300)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        end_all(process)
    assert 0 < torch.load(latest, weights_only=True)["current_epoch"] < 3, "killed in the middle"
    run_command(command, *arguments, "--c", env=env)  # without --set: the fold knows its recipe
    assert all(equal(seven, weights(latest.parent)))
