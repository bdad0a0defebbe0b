"""Checkpoints that a disk has damaged: a training falls back to the one before, or says in one line that it cannot."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import Model
from tests.end_to_end.training_runs import RECIPE, Run, files, one_line, same_training, says

NAMES = ("checkpoint_latest.pth", "checkpoint_previous.pth", "checkpoint_best.pth")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # PyTorch itself notices nothing


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def stopped(planned_resenc: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stopped in the last of two epochs, with a latest and a previous checkpoint: the starts of both."""
    run = Run(planned_resenc, tmp_path_factory.mktemp("stopped"))
    code, _, errors = run.stop(says("epoch 1 of 2"), signal.SIGTERM, *RECIPE, "save_every=1")
    assert code == 75, errors
    code, _, errors = run.stop(says("epoch 2 of 2"), signal.SIGTERM, "--c")
    assert code == 75, errors
    epochs = [torch.load(run.fold / name, weights_only=True)["current_epoch"] for name in NAMES[:2]]
    assert epochs == [1, 0]
    return run


@pytest.fixture
def copy(stopped: Run, planned_resenc: Model, tmp_path: Path) -> Run:
    run = Run(planned_resenc, tmp_path)
    shutil.rmtree(run.folder.parent, ignore_errors=True)
    shutil.copytree(stopped.folder.parent, run.folder.parent, symlinks=True)
    return run


@pytest.mark.parametrize("damage", [flip, truncate, empty])
@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_kept_aside_and_the_one_before_continued_to_the_same_end(
    damage: Callable[[Path], None], copy: Run, undisturbed: Run
) -> None:
    latest = copy.fold / NAMES[0]
    damage(latest)
    damaged = latest.read_bytes()
    (copy.fold / ".checkpoint_latest.pth.abc.tmp").write_bytes(b"half")
    result = copy.run("--c")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"checkpoint_latest.pth('?) is (damaged|empty)", result.stdout)
    assert "Continuing from checkpoint_previous.pth: epoch 0" in result.stdout
    assert "checkpoint_latest.pth is damaged" in copy.log()
    assert (copy.fold / "checkpoint_latest.pth.damaged").read_bytes() == damaged
    assert same_training(copy.final(), undisturbed.final())
    assert len(copy.final()["logging"]["train_losses"]) == 2
    assert not list(copy.fold.glob(".*.tmp"))


@pytest.mark.slow
def test_if_all_are_damaged_the_training_ends_in_one_line_and_nothing_is_touched(copy: Run) -> None:
    for name in NAMES:
        if (copy.fold / name).is_file():
            flip(copy.fold / name)
    before = files(copy.fold)
    result = copy.run("--c")
    assert result.returncode == 1
    assert one_line(result.stderr, "no checkpoint in", "checkpoint_latest.pth", "checkpoint_previous.pth")
    assert files(copy.fold) == before


@pytest.mark.slow
def test_a_fold_with_damaged_checkpoints_does_not_stop_the_others(copy: Run, undisturbed: Run) -> None:
    shutil.copytree(copy.fold, copy.folder / "fold_1")
    for path in (copy.folder / "fold_1").glob("checkpoint_*.pth"):
        empty(path)
    broken = files(copy.folder / "fold_1")
    shutil.rmtree(copy.fold)
    shutil.copytree(undisturbed.fold, copy.fold)
    result = copy.run("--c", "-parallel_folds", 2, *RECIPE, folds=(0, 1, 2))
    assert result.returncode == 1
    assert "fold_0 is finished and skipped" in result.stdout
    rows = {words[1]: words[3] for line in result.stdout.splitlines() if len(words := line.split()) > 3}
    assert (rows.get("0"), rows.get("1"), rows.get("2")) == ("skipped", "failed", "finished"), result.stdout
    logs = copy.folder / "logs"
    assert "no checkpoint in" in (logs / "fold_1.log").read_text()
    assert "begins anew" in (logs / "fold_2.log").read_text()
    assert "no checkpoint in" not in (logs / "fold_2.log").read_text()
    assert files(copy.folder / "fold_1") == broken
    assert (copy.folder / "fold_2" / "checkpoint_final.pth").is_file()

    shutil.rmtree(copy.folder / "fold_1")
    shutil.copytree(undisturbed.fold, copy.folder / "fold_1")
    result = copy.run("--c", *RECIPE, folds=(0, 1, 2))
    assert (result.returncode, result.stderr) == (0, "")
    assert "nnUNetv2_predict" in result.stdout
