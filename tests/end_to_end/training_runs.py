"""Trainings in a user's folders of their own, that tests stop, kill and continue."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from tests.commands import run_command
from tests.conftest import Model, Workplace, copy_of
from tests.processes import end_all, in_session, wait_for

COMMAND = "nnUNetv2_train_pretrained"
RECIPE = (
    "--set", "num_epochs=2", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "mirroring=false", "seed=1"
)  # fmt: skip


class Run:
    """Trainings of one plan in a workplace of its own."""

    def __init__(self, model: Model, root: Path, results: Path | None = None) -> None:
        self.place: Workplace = copy_of(model.workplace, root)
        self.env = {**self.place.env, "nnUNet_n_proc_DA": "0"}
        if results is not None:
            self.env["nnUNet_results"] = str(results)
        results = results or self.place.results.parent
        self.folder = results / self.place.dataset / model.folder.name
        self.fold = self.folder / "fold_0"
        self.plan = model.inner_name

    def arguments(self, *options: object, folds: tuple[int, ...] = (0,)) -> list[str]:
        words = ("-d", self.place.dataset_id, "-c", "3d_fullres", "-f", *folds, "-p", self.plan, "-device", "cpu")
        return [str(word) for word in (*words, *options)]

    def run(self, *options: object, folds: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        return run_command(COMMAND, *self.arguments(*options, folds=folds), env=self.env, check=False, timeout=280)

    def stop(
        self, moment: Callable[[str], object], number: signal.Signals, *options: object, group: bool = False
    ) -> tuple[int, str, str]:
        """Give the command, send it a signal as soon as its output says so; exit code, output, errors."""
        out, err = self.place.root / "out", self.place.root / "err"
        with out.open("w") as output, err.open("w") as errors:
            process = subprocess.Popen(
                [shutil.which(COMMAND, path=self.env["PATH"]) or COMMAND, *self.arguments(*options)],
                env=self.env, stdout=output, stderr=errors, text=True, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        try:
            wait_for(lambda: moment(out.read_text()), process, seconds=200)
            for pid in in_session(process.pid) if group else (process.pid,):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            code = process.wait(timeout=120)
            wait_for(lambda: not in_session(process.pid), seconds=30)
        finally:
            end_all(process)
        return code, out.read_text(), err.read_text()

    def final(self) -> dict:
        return torch.load(self.fold / "checkpoint_final.pth", weights_only=True)

    def log(self) -> str:
        """Of all runs of the fold, in their order."""
        return "".join(p.read_text() for p in sorted(self.fold.glob("training_log_*.txt")))


def says(text: str) -> Callable[[str], object]:
    return lambda output: re.search(text, output)


def one_line(errors: str, *expected: str) -> bool:
    return errors.count("\n") == 1 and all(text in errors for text in expected) and "Traceback" not in errors


def same_training(a: dict, b: dict) -> bool:
    assert a["network_weights"].keys() == b["network_weights"].keys()
    weights = all(torch.equal(a["network_weights"][k], v) for k, v in b["network_weights"].items())
    logs = all(a["logging"][k] == b["logging"][k] for k in ("train_losses", "val_losses", "ema_fg_dice", "lrs"))
    return weights and logs and a["_best_ema"] == b["_best_ema"] and a["current_epoch"] == b["current_epoch"]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}
