"""The processes that check and write cases. This module imports little, so that they can start before all else."""

from __future__ import annotations

import os

from nnunetv2_ext import worker_processes
from nnunetv2_ext.errors import UserError

IMPORTED_ONCE = ("nnunetv2_ext.datasets.writing", "nnunetv2_ext.datasets.checking", "nibabel")
_OF_KIND = {"zarr-csv": ("zarr",)}
"""In each worker it would take long, and make semaphores that are left when the worker is killed."""
_MAX_PROCESSES = 8
"""More read and write no faster from one disk."""


def num_processes(wanted: int | None) -> int:
    """As asked for; else the cores that this process may use, at most 8. Raises UserError for less than 1."""
    if wanted is not None and wanted < 1:
        raise UserError(f"-np must be at least 1, not {wanted}")
    return wanted or min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)


def start_early(kind: str, num_processes: int) -> None:
    """Begin to import what workers need, in a process of its own, while this one reads the source of this kind."""
    if num_processes > 1:
        worker_processes.start_early((*IMPORTED_ONCE, *_OF_KIND.get(kind, ())))
