"""The processes that check and write cases. This module imports little, so that they can start before all else."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from nnunetv2_ext import worker_processes
from nnunetv2_ext.errors import UserError

IMPORTED_ONCE = ("nnunetv2_ext.datasets.writing", "nnunetv2_ext.datasets.checking", "nibabel")
_OF_KIND = {"zarr-csv": ("zarr",)}
"""In each worker it would take long, and make semaphores that are left when the worker is killed."""
_MAX_PROCESSES = 8
"""More read and write no faster from one disk."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def num_processes(wanted: int | None) -> int:
    """As asked for; else the cores that this process may use, at most 8. Raises UserError for less than 1."""
    if wanted is not None and wanted < 1:
        raise UserError(f"-np must be at least 1, not {wanted}")
    return wanted or min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)


def start_early(kind: str, num_processes: int) -> None:
    """Begin to import what workers need, in a process of its own, while this one reads the source of this kind."""
    if num_processes > 1:
        worker_processes.start_early((*IMPORTED_ONCE, *_OF_KIND.get(kind, ())))


def keep_freed_memory() -> None:
    """Let this process have the memory of one case again for the next, without asking the system for it.

    The system would clear it page by page, a quarter of the time of a check. By glibc's mallopt (malloc.h); nothing
    happens where there is none.
    """
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)
        glibc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the highest that it takes
