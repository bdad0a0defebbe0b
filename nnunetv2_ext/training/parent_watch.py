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

LAUNCHED = ("TORCHELASTIC_RUN_ID", "NNUNETV2_EXT_LAUNCHER")
"""One of them is in the environment of a process that torchrun, or our queue of folds, has started."""
_SECONDS = 0.5
_EXIT_CODE = 1


def watch() -> None:
    """Have this process end with its launcher, if it has one, and those that it forks end with it."""
    os.register_at_fork(after_in_child=_watch_parent)
    if any(name in os.environ for name in LAUNCHED):
        _watch_parent()


def _watch_parent() -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), name="parent watch", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    for child in multiprocessing.active_children():
        with suppress(Exception):
            child.kill()
    os._exit(_EXIT_CODE)
