"""Cases on this machine's processors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nnunetv2_ext import worker_processes
from nnunetv2_ext.preprocessing.cases import CaseJob, Outcome, Result, preprocess_case

_IMPORTED_ONCE = (
    "nnunetv2.imageio.reader_writer_registry",
    "nnunetv2.preprocessing.resampling.resample_torch",
    "nnunetv2_ext.preprocessing.preprocessor",
    "nnunetv2_ext.preprocessing.workers",
    "scipy.ndimage",
)


def run_here(jobs: Sequence[CaseJob], num_processes: int) -> Iterator[Outcome]:
    """Yield the outcome of every case as it is done; see `worker_processes.in_processes`."""
    task = worker_processes.Task(preprocess_case, _failed, _IMPORTED_ONCE)
    return worker_processes.in_processes(task, jobs, num_processes)


def start_early() -> None:
    """Begin to import what workers need, in a process of its own, while this one does other things."""
    worker_processes.start_early(_IMPORTED_ONCE)


def _failed(job: CaseJob, reason: str) -> Outcome:
    return Outcome(job.raw.name, Result.FAILED, reason)
