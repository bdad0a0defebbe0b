"""Stopping a training by a signal: at once where nothing can be lost, else at the end of the present iteration.

SIGTERM (a scheduler ends the job), SIGUSR1 and SIGUSR2 (it warns that it will) and SIGINT (Ctrl-C) mean the same. What
runs inside `deferred` asks with `requested_by` when it can stop; outside, `Stopped` is raised where the program is.
This module is imported before torch, so that a signal during the start has the same effect.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from nnunetv2_ext.errors import Stopped

EXIT_STOPPED = 75
"""`EX_TEMPFAIL` of sysexits.h, "try again": the code of a training that was stopped and can be continued."""
NOTES_FOLDER = "NNUNETV2_EXT_EXIT_NOTES"
"""Environment variable of a launcher: a folder in which a rank that was stopped leaves a file with its number."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

_owner: list[int] = []
_requested: list[str] = []
_deferring: list[bool] = []


def listen() -> None:
    """Handle the signals from now on. Does nothing outside the main thread, where Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        return
    if not _owner:
        os.register_at_fork(after_in_child=_leave_to_parent)
    _owner[:] = [os.getpid()]
    for number in SIGNALS:
        signal.signal(number, _handle)


def requested_by() -> str | None:
    """The name of the signal that asked to stop, or None."""
    return _requested[0] if _requested else None


@contextmanager
def deferred() -> Iterator[None]:
    """Let what runs inside choose the moment: a signal is only noted, and raised on leaving. A second Ctrl-C is not.

    Raises:
        Stopped: on leaving without an error, if a signal came.
    """
    _deferring.append(True)
    try:
        yield
    finally:
        _deferring.pop()
    if _requested and not _deferring:
        raise Stopped(_requested[0])


def leave_note() -> None:
    """Tell the launcher, if there is one, that this rank was stopped: torch's says only that it ended its workers."""
    folder, rank = os.environ.get(NOTES_FOLDER), os.environ.get("RANK")
    if folder and rank:
        with suppress(OSError):
            (Path(folder) / rank).touch()


def _leave_to_parent() -> None:
    """In a forked process, a data loader's worker: its parent decides when it ends, and does so with SIGTERM.

    No handler of Python's: it is not run if the signal comes right before a call that blocks.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def _handle(received: int, _: FrameType | None) -> None:
    if os.getpid() not in _owner:  # forked this moment
        if received == signal.SIGTERM:
            os._exit(128 + received)
        return
    name = signal.Signals(received).name
    if name == "SIGINT" and name in _requested:
        raise KeyboardInterrupt
    _requested.append(name)
    if not _deferring and len(_requested) == 1:  # a second one must not interrupt the leaving
        raise Stopped(name)
