"""Trainings that are killed at any moment, saves on purpose among them, and continued: as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import Model, Workplace, copy_of
from tests.processes import end_all, in_session, start, wait_for

SLOW_DISK = Path(__file__).parent.parent / "data" / "slow_disk"
SHORT = (
    "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "mirroring=false", "seed=3", "save_every=1"
)  # fmt: skip


class Run:
    """One training of fold 0 in a workplace of its own, that can be killed and continued."""

    def __init__(self, model: Model, root: Path, num_epochs: int) -> None:
        self.place: Workplace = copy_of(model.workplace, root)
        self.fold = Model(self.place, model.checkpoint, model.long_name, model.inner_name).fold
        self.env = {**self.place.env, "nnUNet_n_proc_DA": "0", "PYTHONPATH": str(SLOW_DISK)}
        self.arguments = (
            "-d", self.place.dataset_id, "-c", "3d_fullres", "-f", 0, "-p", model.inner_name, "-device", "cpu",
        )  # fmt: skip
        self.recipe = ("--set", f"num_epochs={num_epochs}", *SHORT)
        self.logs: list[Path] = []

    def start(self):
        log = self.place.root / f"output_{len(self.logs)}.log"
        options = self.recipe if not self.logs else ("--c",)
        self.logs.append(log)
        return start("nnUNetv2_train_pretrained", *self.arguments, *options, env=self.env, log=log)

    @property
    def output(self) -> str:
        return self.logs[-1].read_text()

    def finish(self) -> None:
        process = self.start()
        try:
            assert process.wait(timeout=300) == 0, self.output
        finally:
            end_all(process)

    def kill_when(self, moment: Callable[[Run], object]) -> None:
        """Kill the training with SIGKILL as soon as the moment has come, and see that nothing of it is left."""
        process = self.start()
        try:
            wait_for(lambda: moment(self), process, seconds=200)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait(timeout=60) == -signal.SIGKILL
            wait_for(lambda: not in_session(process.pid), seconds=30)
        finally:
            end_all(process)
        self.check_that_all_checkpoints_are_whole()

    def check_that_all_checkpoints_are_whole(self) -> None:
        for path in self.fold.glob("checkpoint_*"):
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None, path
            assert torch.load(path, weights_only=True)["current_epoch"] >= 1, path

    def final(self) -> dict:
        return torch.load(self.fold / "checkpoint_final.pth", weights_only=True)


def in_epoch(number: int) -> Callable[[Run], object]:
    return lambda run: re.search(rf"Learning rate .*epoch {number} of", run.output)


def saving(name: str) -> Callable[[Run], object]:
    """While a checkpoint is being written, before it has its name."""
    return lambda run: list(run.fold.glob(f".{name}.*.tmp"))


def after(seconds: float, moment: Callable[[Run], object] = lambda run: True) -> Callable[[Run], object]:
    """So long after a moment."""
    came: list[float] = []

    def has_come(run: Run) -> bool:
        if not came and moment(run):
            came.append(time.monotonic())
        return bool(came) and time.monotonic() - came[0] >= seconds

    return has_come


def same_training(a: dict, b: dict) -> bool:
    weights = all(torch.equal(a["network_weights"][k], v) for k, v in b["network_weights"].items())
    logs = all(a["logging"][k] == b["logging"][k] for k in ("train_losses", "val_losses", "ema_fg_dice", "lrs"))
    momentum = zip(a["optimizer_state"]["state"].values(), b["optimizer_state"]["state"].values(), strict=True)
    return (
        weights and logs and a["_best_ema"] == b["_best_ema"] and a["current_epoch"] == b["current_epoch"]
        and all(torch.equal(x["momentum_buffer"], y["momentum_buffer"]) for x, y in momentum)
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(planned_resenc: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(planned_resenc, tmp_path_factory.mktemp("undisturbed"), num_epochs=4)
    run.finish()
    return run


def test_a_training_killed_three_times_ends_as_if_undisturbed(
    planned_resenc: Model, undisturbed: Run, tmp_path: Path
) -> None:
    run = Run(planned_resenc, tmp_path, num_epochs=4)
    for moment in (saving("checkpoint_latest.pth"), after(0.2, in_epoch(3)), saving("checkpoint_final.pth")):
        run.kill_when(moment)
    run.finish()
    assert same_training(run.final(), undisturbed.final())
    assert {p.name for p in run.fold.glob("checkpoint_*")} == {"checkpoint_final.pth", "checkpoint_best.pth"}
    assert not list(run.fold.glob(".*"))  # nothing half-written is left


@pytest.mark.slow
def test_a_training_killed_thirty_times_ends_as_if_undisturbed(planned_resenc: Model, tmp_path: Path) -> None:
    epochs = 16
    undisturbed = Run(planned_resenc, tmp_path / "undisturbed", num_epochs=epochs)
    undisturbed.finish()
    run = Run(planned_resenc, tmp_path / "killed", num_epochs=epochs)
    chance = random.Random(7)
    kinds: dict[str, int] = {}
    for _ in range(30):
        latest = run.fold / "checkpoint_latest.pth"
        epoch = torch.load(latest, weights_only=True)["current_epoch"] if latest.is_file() else 0
        kind = chance.choice(("start", "epoch", "save", "save", "best"))
        if epoch >= epochs - 1:
            kind = chance.choice(("start", "final"))
        if (run.fold / "checkpoint_final.pth").is_file():
            kind = "validation"
        kinds[kind] = kinds.get(kind, 0) + 1
        run.kill_when({
            "start": after(chance.uniform(0, 8)),
            "epoch": after(chance.uniform(0, 0.5), in_epoch(epoch + 1)),
            "save": after(chance.uniform(0, 1.5), saving("checkpoint_latest.pth")),
            "best": after(chance.uniform(0, 0.5), saving("checkpoint_*")),
            "final": after(chance.uniform(0, 0.8), saving("checkpoint_final.pth")),
            "validation": after(chance.uniform(0, 1), lambda run: "predicting" in run.output),
        }[kind])  # fmt: skip
    run.finish()
    print(f"killed: {kinds}")
    assert same_training(run.final(), undisturbed.final())
