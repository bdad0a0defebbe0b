"""What became of the folds of one command: a table, why those failed that did, and the command's exit code."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.launching.fold_progress import clock
from nnunetv2_ext.launching.stopping import EXIT_STOPPED

_TAIL_BYTES = 64 * 1024
_LONGEST_REASON = 400
"""Characters; an error of ours is one line that a terminal may wrap."""


@dataclass(frozen=True)
class FoldOutcome:
    """What became of a fold.

    Attributes:
        fold: number or `all`.
        state: `finished`, `skipped` (was finished before), `stopped` (can be continued) or `failed`.
        code: its process's exit code, negative for the signal that killed it; None without a process.
        seconds: that it took.
        log: holds its output, where that did not go to the screen.
        note: why, where the code does not say it: the last line of the log, or what kept it from starting.
    """

    fold: int | str
    state: str
    code: int | None = None
    seconds: float = 0.0
    log: Path | None = None
    note: str = ""

    @property
    def how(self) -> str:
        """The end of its process in words: `exit code 1`, `killed by SIGKILL`; empty where there is nothing to say."""
        if self.code is None:
            return {"stopped": "not begun", "failed": "could not be started"}.get(self.state, "")
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"killed by {signal.Signals(-self.code).name}"
        except ValueError:  # a real-time signal
            return f"killed by signal {-self.code}"


def closing_table(outcomes: Sequence[FoldOutcome], width: int = 100) -> str:
    """A row for every fold, and below it why folds failed, a line each; `width` in characters."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # paths may hold brackets, which rich would take for markup

    table = Table()
    table.add_column("fold", justify="right")
    table.add_column("state")
    table.add_column("exit code")
    table.add_column("time", justify="right")
    logs = [outcome.log for outcome in outcomes if outcome.log is not None]
    if logs:
        table.add_column("log", overflow="fold")
    for outcome in outcomes:
        code = str(outcome.code) if outcome.code is not None and outcome.code >= 0 else outcome.how
        cells = [str(outcome.fold), outcome.state, code, clock(outcome.seconds) if outcome.seconds else ""]
        table.add_row(*map(Text, [*cells, outcome.log.name if outcome.log else ""][: len(table.columns)]))
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    lines = [f"Logs: {logs[0].parent}"] if logs else []
    for outcome in outcomes:
        if why := _why(outcome):
            lines.append(_cut(f"fold {outcome.fold}: {why}", _LONGEST_REASON))
    return "\n".join([capture.get().rstrip(), *lines])


def exit_code(outcomes: Sequence[FoldOutcome]) -> int:
    """Of the whole command: 1 if a fold failed, else 75 if one was stopped and can be continued, else 0."""
    states = {outcome.state for outcome in outcomes}
    return 1 if "failed" in states else EXIT_STOPPED if "stopped" in states else 0


def last_line(log: Path, start: int) -> str:
    """The last line that is not empty of what was written from `start` (bytes) on."""
    from rich.text import Text

    with suppress(OSError), log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        text = Text.from_ansi(file.read().decode(errors="replace").replace("\r", "\n")).plain
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return ""


def _why(outcome: FoldOutcome) -> str:
    if outcome.state != "failed":
        return ""
    if outcome.code != -signal.SIGKILL:
        return outcome.note
    return "killed, most likely because memory ran out" + (f"; its last output: {outcome.note}" if outcome.note else "")


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 3] + "..."
