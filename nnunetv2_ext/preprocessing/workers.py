"""Cases on this machine's processors: one process per worker, none of which takes another down when it dies.

A pool of the standard library breaks as a whole when the system kills one of its processes, and cannot say which task
that one was at. Here every worker has a pipe of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.cases import CaseJob, Outcome, Result, preprocess_case

_IMPORTED_ONCE = (
    "nnunetv2.imageio.reader_writer_registry",
    "nnunetv2.preprocessing.resampling.resample_torch",
    "nnunetv2_ext.preprocessing.preprocessor",
    "nnunetv2_ext.preprocessing.workers",
    "scipy.ndimage",
)
"""Workers are copies of a process that has imported these: a new one is there at once, and shares the memory."""
_DEATHS_PER_WORKER = 3
"""Of so many without a finished case in between, none is an accident."""


def run_here(jobs: Sequence[CaseJob], num_processes: int) -> Iterator[Outcome]:
    """Yield the outcome of every case as it is done.

    Args:
        jobs: any number.
        num_processes: worker processes; 1 works in this one.

    Raises:
        UserError: several workers in a row died before any finished a case.
    """
    if num_processes <= 1:
        yield from map(preprocess_case, jobs)
        return
    start_early()
    waiting = list(reversed(jobs))
    threads = max(1, _usable_cores() // num_processes)
    workers = [_Worker.start(threads) for _ in range(min(num_processes, len(jobs)))]
    deaths = 0
    try:
        while waiting or any(worker.job for worker in workers):
            for worker in workers:
                if worker.job is None and waiting:
                    worker.give(waiting.pop())
            for worker in _those_with_news(workers):
                outcome, alive = worker.result()
                yield outcome
                deaths = 0 if alive else deaths + 1
                if deaths == _DEATHS_PER_WORKER * len(workers):
                    raise UserError(f"{deaths} processes in a row died, the last at {outcome.case}: {outcome.message}")
                if not alive:
                    workers[workers.index(worker)] = _Worker.start(threads)
    finally:
        for worker in workers:
            worker.end()


def start_early() -> None:
    """Begin to import what workers need, in a process of its own, while this one does other things."""
    from multiprocessing import forkserver

    _context().set_forkserver_preload(list(_IMPORTED_ONCE))
    forkserver.ensure_running()


@dataclass
class _Worker:
    """A process, the pipe to it, and what it is at."""

    process: BaseProcess
    pipe: Connection
    job: CaseJob | None = field(default=None)

    @classmethod
    def start(cls, threads: int) -> _Worker:
        here, there = multiprocessing.Pipe()
        process = _context().Process(target=_work, args=(there, threads), daemon=True)
        process.start()
        there.close()  # so that its end of the pipe closes when it dies
        return cls(process, here)

    def give(self, job: CaseJob) -> None:
        self.job = job
        with suppress(OSError):  # it has just died, which `result` reports
            self.pipe.send(job)

    def result(self) -> tuple[Outcome, bool]:
        """The outcome of its case, and whether it can take another."""
        assert self.job is not None
        case, self.job = self.job.raw.name, None
        try:
            return self.pipe.recv(), True
        except (EOFError, OSError):
            self.process.join()
            self.pipe.close()
            return Outcome(case, Result.FAILED, _cause_of_death(self.process.exitcode)), False

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _those_with_news(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have finished a case or died; waits until there is one."""
    ready = wait([worker.pipe for worker in workers if worker.job])
    return [worker for worker in workers if worker.job and worker.pipe in ready]


def _work(pipe: Connection, threads: int) -> None:
    """A worker's life: cases from the pipe, outcomes into it, until the other end is closed."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with threadpool_limits(threads):
        while True:
            try:
                job = pipe.recv()
            except (EOFError, OSError):
                return
            pipe.send(preprocess_case(job))


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on unheard, beside the workers of the command that continues."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"its process ended unexpectedly with exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    if -exitcode == signal.SIGKILL:
        return (
            f"its process was killed ({name}), most likely by the system because memory ran out: use fewer processes "
            "(-np)"
        )
    return f"its process crashed ({name})"


def _context() -> ForkServerContext:
    return multiprocessing.get_context("forkserver")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))
