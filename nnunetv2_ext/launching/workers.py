"""The processes that a launcher has started, and the signals that it passes on to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from nnunetv2_ext.launching.stopping import SIGNALS

_MORE_SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)
"""They mean the same to a launcher, unless it was started to ignore them (nohup). Workers get SIGTERM instead."""
_WAIT_FOR_WORKERS = 5
"""Seconds after a signal until a launcher that has no workers yet, since it waits for other nodes, gives up."""


def session_leaders() -> set[int]:
    """The children that lead a session of their own, as torch starts its workers and Python no helper of its own."""
    return {pid for pid in _children() if _leads(pid)}


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _children() -> list[int]:
    """The processes whose parent is this one."""
    try:
        lists = [(thread / "children").read_text() for thread in Path("/proc/self/task").iterdir()]
    except OSError:  # a kernel without these lists
        return [int(folder.name) for folder in Path("/proc").iterdir() if _parent(folder) == os.getpid()]
    return [int(pid) for pids in lists for pid in pids.split()]


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1]) if process.name.isdecimal() else None
    except OSError:
        return None


class Workers:
    """The leaders of a session among the children that this process has from now on.

    Attributes:
        patience: seconds from the first signal until they are killed.
        signals: that have come to this process and say something new.
        passed_on: that were sent to them.
        were_killed: whether patience ended before they did.
        seen: their process ids, and how many of `signals` each has been sent.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.signals: list[signal.Signals] = []
        self.passed_on: set[signal.Signals] = set()
        self.were_killed = False
        self.seen: dict[int, int] = {}
        self._first = 0.0
        self._not_ours = session_leaders()

    @property
    def never_came(self) -> bool:
        """Whether there is nobody to stop, and no sign of anybody coming."""
        return bool(self.signals) and not self.seen and time.monotonic() - self._first > _WAIT_FOR_WORKERS

    @contextmanager
    def signalled(self, more: str) -> Iterator[None]:
        """Note the signals that come to this process, and those whose names `more` lists with commas."""
        named = {signal.Signals[name.strip()] for name in more.split(",") if name.strip() in signal.Signals.__members__}
        others = {s for s in {*_MORE_SIGNALS, *named} if signal.getsignal(s) != signal.SIG_IGN}
        before = {number: signal.signal(number, self._receive) for number in {*SIGNALS, *others}}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def pass_signals_on(self) -> None:
        """Send each worker what has come, those that start meanwhile as well; when patience ends, kill them."""
        if self.seen and not self.signals:
            return
        late = bool(self.signals) and time.monotonic() - self._first > self.patience
        for pid in session_leaders() - self._not_ours:
            news = self.signals[self.seen.get(pid, 0) :]
            self.seen[pid] = len(self.signals)
            with suppress(ProcessLookupError):
                for received in news:
                    number = received if received in SIGNALS else signal.SIGTERM
                    os.kill(pid, number)
                    self.passed_on.add(number)
                if late:
                    os.killpg(pid, signal.SIGKILL)
                    self.were_killed = True

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._first = self._first or time.monotonic()
        if not self.signals or number == signal.SIGINT:  # whoever stops need not hear it again, but for a second Ctrl-C
            self.signals.append(signal.Signals(number))
