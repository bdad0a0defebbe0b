"""How far the folds that train beside each other are: what each says of itself, and how the terminal shows it.

A fold runs in a process of its own (`fold_queue`), whose output goes to a log. It says how far it is in a small file
that the environment names; without one, as in a training of a single fold, it says nothing.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType

PROGRESS_FILE_VARIABLE = "NNUNETV2_EXT_PROGRESS_FILE"
"""The environment variable that names the file into which a fold writes how far it is."""
_SECONDS_BETWEEN_LINES = 30.0
"""Of one fold, where lines are not drawn over."""
_SECONDS_BETWEEN_DRAWINGS = 0.5


@dataclass(frozen=True)
class Progress:
    """How far a fold is.

    Attributes:
        epoch: epochs that are done, 0 to `num_epochs`.
        num_epochs: of the whole training.
        ema_dice: the latest moving average of the pseudo Dice, 0 to 1; None as long as there is none.
        state: `training` or `validating`.
    """

    epoch: int
    num_epochs: int
    ema_dice: float | None
    state: str

    def __str__(self) -> str:
        dice = "" if self.ema_dice is None else f", EMA pseudo Dice {self.ema_dice:.4f}"
        return f"{self.state}, epoch {self.epoch}/{self.num_epochs}{dice}"


def report(epoch: int, num_epochs: int, ema_dice: float | None, state: str) -> None:
    """Say how far this process's fold is, where somebody listens; a file that cannot be written is no error.

    Args:
        epoch: epochs that are done, 0 to `num_epochs`.
        num_epochs: of the whole training.
        ema_dice: the latest moving average of the pseudo Dice, 0 to 1; None or NaN as long as there is none.
        state: `training` or `validating`.
    """
    path = os.environ.get(PROGRESS_FILE_VARIABLE)
    if not path:
        return
    known = ema_dice is not None and math.isfinite(ema_dice)
    progress = Progress(int(epoch), int(num_epochs), float(ema_dice) if ema_dice is not None and known else None, state)
    temporary = f"{path}.{os.getpid()}"
    with suppress(OSError):
        Path(temporary).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        os.replace(temporary, path)


def read_progress(path: Path) -> Progress | None:
    """What a fold last said of itself with `report`; None as long as it has said nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Progress(**content)
    except (OSError, ValueError, TypeError):  # a display is no reason to end a training
        return None


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as in `1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


def display_of(folds: Sequence[int | str]) -> Lines:
    """Lines that are drawn anew on a terminal, lines one after another elsewhere."""
    return DrawnLines(folds) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Lines:
    """What happens, a line each on stdout: start, end, and now and then the epoch."""

    def __init__(self) -> None:
        self._last: dict[int | str, tuple[float, Progress]] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def say(self, text: str) -> None:
        """One line about all folds."""
        print(text, flush=True)

    def started(self, fold: int | str, device: str | None, log: Path | None) -> None:
        """A fold's process runs now."""
        where = "" if device is None else f" on GPU {device}"
        self.say(f"fold {fold}: started{where}" + ("" if log is None else f", output in {log}"))

    def progressed(self, fold: int | str, progress: Progress) -> None:
        """How far a fold is; may be told again and again."""
        said_at, said = self._last.get(fold, (-math.inf, None))
        now = time.monotonic()
        if progress != said and now - said_at >= _SECONDS_BETWEEN_LINES:
            self._last[fold] = (now, progress)
            self.say(f"fold {fold}: {progress}")

    def ended(self, fold: int | str, state: str, how: str, seconds: float) -> None:
        """A fold's process has ended.

        Args:
            fold: which.
            state: what became of the fold.
            how: more about it, `exit code 1`; may be empty.
            seconds: that it took.
        """
        self.say(f"fold {fold}: {state}{f' ({how})' if how else ''} after {clock(seconds)}")

    def refresh(self) -> None:
        """Draw again what changes by itself."""


class DrawnLines(Lines):
    """A line for every fold, drawn over on a terminal."""

    def __init__(self, folds: Sequence[int | str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        super().__init__()
        columns = [TextColumn("{task.fields[" + name + "]}", markup=False) for name in ("epoch", "dice", "device")]
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[state]}", markup=False),
            BarColumn(bar_width=20),
            *columns,
            TimeElapsedColumn(),
            console=Console(file=sys.stdout),
            auto_refresh=False,  # drawn by the loop that waits anyway: no thread beside the start of processes
        )
        self._tasks = {
            fold: self._bars.add_task(
                f"fold {fold}", start=False, total=1, state="waiting", epoch="", dice="", device=""
            )
            for fold in folds
        }
        self._drawn_at = -math.inf

    def __enter__(self) -> Lines:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def started(self, fold: int | str, device: str | None, log: Path | None) -> None:
        self._bars.start_task(self._tasks[fold])
        self._bars.update(self._tasks[fold], state="starting", device="" if device is None else f"GPU {device}")

    def progressed(self, fold: int | str, progress: Progress) -> None:
        self._bars.update(
            self._tasks[fold],
            total=progress.num_epochs,
            completed=progress.epoch,
            state=progress.state,
            epoch=f"epoch {progress.epoch}/{progress.num_epochs}",
            dice="" if progress.ema_dice is None else f"EMA Dice {progress.ema_dice:.4f}",
        )

    def ended(self, fold: int | str, state: str, how: str, seconds: float) -> None:
        self._bars.stop_task(self._tasks[fold])
        self._bars.update(self._tasks[fold], state=state)

    def refresh(self) -> None:
        if time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN_DRAWINGS:
            self._drawn_at = time.monotonic()
            self._bars.refresh()
