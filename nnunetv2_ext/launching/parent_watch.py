"""Processes that do not outlive the one that started them.

A launcher that is killed leaves torchrun's workers behind, and a training that is killed the workers of its data
loaders: they would hold memory and the GPU, and race the run that continues.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from contextlib import suppress

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Is in the environment of what torchrun has started."""
LAUNCHER = "NNUNETV2_EXT_LAUNCHER"
"""Process id of our queue of folds, in the environment of what it, or something that it has started, has started."""
_SECONDS = 0.5
_EXIT_CODE = 1
_forks: list[int] = []


def watch() -> None:
    """Have this process end with its launcher, if it has one, and those that it forks end with it."""
    os.register_at_fork(before=_remember, after_in_child=lambda: _watch_parent(_forks[0]))
    if TORCHRUN in os.environ:
        _watch_parent()
    elif LAUNCHER in os.environ:
        _watch_parent(int(os.environ[LAUNCHER]))


def _remember() -> None:
    """Before a fork: the child may come to ask for its parent when that has gone already."""
    _forks[:] = [os.getpid()]


def _watch_parent(parent: int | None = None) -> None:
    arguments = (os.getppid() if parent is None else parent,)
    threading.Thread(target=_end_with, args=arguments, name="parent watch", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    for child in multiprocessing.active_children():
        with suppress(Exception):
            child.kill()
    os._exit(_EXIT_CODE)
