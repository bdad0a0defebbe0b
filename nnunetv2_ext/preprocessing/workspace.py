"""Where cases lie while they are being made: below their folder, away from what nnU-Net reads, and never for long."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = "unfinished"
"""Sub-folder for cases in the making. nnU-Net takes every file in a folder of cases for a case, but no sub-folder."""

_LOCK = "lock"
_SILENT_SECONDS = 24 * 3600
"""A run of which nothing has been heard for so long is dead, whatever its lock seems to say across machines."""


@contextmanager
def workspace_in(folder: Path) -> Iterator[Path]:
    """A sub-folder for this run's unfinished cases, gone afterwards.

    A run holds a lock on a file in its workspace, which the system lets go of however the run ends.
    """
    parent = folder / UNFINISHED
    workspace = _make_workspace(parent)
    lock = _lock(workspace)
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        with suppress(OSError):  # another run may be using it
            parent.rmdir()


def clear_abandoned(folder: Path) -> None:
    """Remove what dead runs left unfinished."""
    parent = folder / UNFINISHED
    for left_over in _workspaces(parent):
        if _is_abandoned(left_over):
            shutil.rmtree(left_over, ignore_errors=True)
    with suppress(OSError):  # none there, or others at work
        parent.rmdir()


def others_at_work(workspace: Path) -> bool:
    """Whether other runs are filling the same folder."""
    return any(other != workspace for other in _workspaces(workspace.parent))


def _workspaces(parent: Path) -> list[Path]:
    try:
        return sorted(parent.iterdir())
    except FileNotFoundError:
        return []


def _make_workspace(parent: Path) -> Path:
    while True:
        parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another run has just ended and removed the empty parent
            return Path(tempfile.mkdtemp(prefix=f"{socket.gethostname()}-", dir=parent))


def _lock(workspace: Path) -> int | None:
    """Hold the workspace; None where the file system has no locks. The file appears when it is locked already."""
    unlocked = workspace / f".{_LOCK}"
    descriptor = os.open(unlocked, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    os.replace(unlocked, workspace / _LOCK)
    return descriptor


def _is_abandoned(workspace: Path) -> bool:
    try:
        silent = time.time() - workspace.stat().st_mtime > _SILENT_SECONDS
        here = workspace.name.rpartition("-")[0] == socket.gethostname()
        # locks may not reach across machines: one of another machine counts as held until it has been silent
        return (here or silent) and _is_free(workspace / _LOCK, default=silent)
    except FileNotFoundError:  # ended just now
        return False


def _is_free(lock: Path, *, default: bool) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:  # just started, or on a file system without locks
        return default
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return default
    finally:
        os.close(descriptor)
    return True
