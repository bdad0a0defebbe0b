"""Trainings that are killed at any moment, saves on purpose among them, and continued: as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import Model
from tests.end_to_end.training_runs import COMMAND, RECIPE, Run, same_training
from tests.processes import end_all, in_session, start, wait_for

SLOW_DISK = Path(__file__).parent.parent / "data" / "slow_disk"

Moment = Callable[[Run, str], object]
"""Whether it has come, from the run's folders and its output so far."""


def on_a_slow_disk(model: Model, root: Path) -> Run:
    run = Run(model, root)
    run.env["PYTHONPATH"] = str(SLOW_DISK)
    return run


def kill_when(run: Run, moment: Moment, *options: str) -> bool:
    """Kill a training with SIGKILL as soon as the moment has come, and see what is left: whole checkpoints alone.

    Returns whether it came before the training was finished.
    """
    log = run.place.root / "output.log"
    process: subprocess.Popen[str] = start(COMMAND, *run.arguments(*options), env=run.env, log=log)
    try:
        wait_for(lambda: process.poll() is not None or moment(run, log.read_text()), seconds=200)
        process.kill()
        code = process.wait(timeout=60)
        assert code in (0, -signal.SIGKILL), log.read_text()
        wait_for(lambda: not in_session(process.pid), seconds=30)
    finally:
        end_all(process)
    for path in run.fold.glob("checkpoint_*"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, path
        assert torch.load(path, weights_only=True)["current_epoch"] >= 1, path
    return code != 0


def finish(run: Run) -> None:
    result = run.run("--c")
    assert result.returncode == 0, result.stderr


def in_epoch(number: int) -> Moment:
    return lambda _, output: f", epoch {number} of " in output


def saving(name: str) -> Moment:
    """While a checkpoint is being written, before it has its name."""
    return lambda run, _: list(run.fold.glob(f".{name}.*.tmp"))


def after(seconds: float, moment: Moment = lambda run, output: True) -> Moment:
    """So long after a moment."""
    came: list[float] = []

    def has_come(run: Run, output: str) -> bool:
        if not came and moment(run, output):
            came.append(time.monotonic())
        return bool(came) and time.monotonic() - came[0] >= seconds

    return has_come


def test_a_training_killed_three_times_ends_as_if_undisturbed(
    planned_resenc: Model, undisturbed: Run, tmp_path: Path
) -> None:
    run = on_a_slow_disk(planned_resenc, tmp_path)
    assert kill_when(run, saving("checkpoint_latest.pth"), *RECIPE, "save_every=1")
    assert kill_when(run, after(0.1, in_epoch(2)), "--c")
    assert kill_when(run, saving("checkpoint_final.pth"), "--c")
    finish(run)
    assert same_training(run.final(), undisturbed.final())
    assert {p.name for p in run.fold.glob("checkpoint_*")} == {"checkpoint_final.pth", "checkpoint_best.pth"}
    assert not list(run.fold.glob(".*"))  # nothing half-written is left


@pytest.mark.slow
def test_a_training_killed_thirty_times_ends_as_if_undisturbed(planned_resenc: Model, tmp_path: Path) -> None:
    epochs = 16
    recipe = (*RECIPE, f"num_epochs={epochs}", "save_every=1")
    undisturbed = Run(planned_resenc, tmp_path / "undisturbed")
    assert undisturbed.run(*recipe).returncode == 0
    run = on_a_slow_disk(planned_resenc, tmp_path / "killed")
    chance = random.Random(7)
    kinds: dict[str, int] = {}
    finished = 0
    while sum(kinds.values()) < 30:
        latest = run.fold / "checkpoint_latest.pth"
        epoch = torch.load(latest, weights_only=True)["current_epoch"] if latest.is_file() else 0
        kind = chance.choice(("start", "epoch", "save", "save", "best"))
        if epoch >= epochs - 1:
            kind = chance.choice(("start", "final"))
        if (run.fold / "checkpoint_final.pth").is_file():
            kind = "validation"
        moment = {
            "start": after(chance.uniform(0, 6)),
            "epoch": after(chance.uniform(0, 0.5), in_epoch(epoch + 1)),
            "save": after(chance.uniform(0, 1.5), saving("checkpoint_latest.pth")),
            "best": after(chance.uniform(0, 0.5), saving("checkpoint_*")),
            "final": after(chance.uniform(0, 0.8), saving("checkpoint_final.pth")),
            "validation": after(chance.uniform(0, 1), lambda _, output: "predicting" in output),
        }[kind]
        if kill_when(run, moment, *recipe, "--c"):  # as a job script does, the first time too
            kinds[kind] = kinds.get(kind, 0) + 1
        else:  # too late: once more from the beginning
            finished += 1
            assert same_training(run.final(), undisturbed.final())
            shutil.rmtree(run.fold)
    finish(run)
    print(f"killed: {kinds}, finished {finished + 1} times")
    assert same_training(run.final(), undisturbed.final())
