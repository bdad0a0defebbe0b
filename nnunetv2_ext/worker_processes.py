"""Jobs on this machine's processors: one process per worker, none of which takes another down when it dies.

A pool of the standard library breaks as a whole when the system kills one of its processes, and cannot say which job
that one was at. Here every worker has a pipe of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from nnunetv2_ext.errors import UserError

J = TypeVar("J")
R = TypeVar("R")
_DEATHS_PER_WORKER = 3
"""Of so many without a finished job in between, none is an accident."""


@dataclass(frozen=True)
class Task(Generic[J, R]):
    """What workers do.

    Attributes:
        work: makes a result of a job; a function of a module, since other processes look it up there.
        failed: the result of a job whose process has died, from the job and the reason.
        imported_once: modules; workers are copies of a process that has imported them: a new one is there at once,
            and shares the memory.
        prepare: called in every worker before its first job.
    """

    work: Callable[[J], R]
    failed: Callable[[J, str], R]
    imported_once: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None


def in_processes(task: Task[J, R], jobs: Sequence[J], num_processes: int) -> Iterator[R]:
    """Yield the result of every job as it is done.

    Args:
        task: what to do.
        jobs: any number, of plain data.
        num_processes: worker processes; 1 works in this one.

    Raises:
        UserError: several workers in a row died before any finished a job.
    """
    if num_processes <= 1:
        yield from map(task.work, jobs)
        return
    start_early(task.imported_once)
    waiting = list(reversed(jobs))
    threads = max(1, _usable_cores() // num_processes)
    workers = [_Worker.start(task, threads) for _ in range(min(num_processes, len(jobs)))]
    deaths = 0
    try:
        while waiting or any(worker.job is not None for worker in workers):
            for worker in workers:
                if worker.job is None and waiting:
                    worker.give(waiting.pop())
            for worker in _those_with_news(workers):
                job = worker.job
                try:
                    result = worker.result()
                except _DiedError as death:
                    deaths += 1
                    yield task.failed(job, death.cause)
                    if deaths == _DEATHS_PER_WORKER * len(workers):
                        raise UserError(f"{deaths} processes in a row died, the last one: {death.cause}") from None
                    workers[workers.index(worker)] = _Worker.start(task, threads)
                else:
                    deaths = 0
                    yield result
    finally:
        for worker in workers:
            worker.end()


def start_early(imported_once: Sequence[str]) -> None:
    """Begin to import what workers need, in a process of its own, while this one does other things."""
    from multiprocessing import forkserver, resource_tracker

    _context().set_forkserver_preload([__name__, *imported_once])
    resource_tracker.ensure_running()  # which lets signals through again when it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it would die of Ctrl-C, with a traceback
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _DiedError(Exception):
    """A worker is gone, and no longer at anything."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass
class _Worker:
    """A process, the pipe to it, and what it is at."""

    process: BaseProcess
    pipe: Connection
    job: Any = field(default=None)

    @classmethod
    def start(cls, task: Task[Any, Any], threads: int) -> _Worker:
        here, there = multiprocessing.Pipe()
        process = _context().Process(target=_work, args=(task.work, task.prepare, there, threads), daemon=True)
        process.start()
        there.close()  # so that its end of the pipe closes when it dies
        return cls(process, here)

    def give(self, job: Any) -> None:
        self.job = job
        with suppress(OSError):  # it has just died, which `result` reports
            self.pipe.send(job)

    def result(self) -> Any:
        """Of its job. Raises _DiedError."""
        self.job = None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.pipe.close()
            raise _DiedError(_cause_of_death(self.process.exitcode)) from None

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _those_with_news(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have finished a job or died; waits until there is one."""
    busy = [worker for worker in workers if worker.job is not None]
    ready = wait([worker.pipe for worker in busy])
    return [worker for worker in busy if worker.pipe in ready]


def _work(work: Callable[[Any], Any], prepare: Callable[[], None] | None, pipe: Connection, threads: int) -> None:
    """A worker's life: jobs from the pipe, results into it, until the other end is closed."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()
    with threadpool_limits(threads):
        while True:
            try:
                job = pipe.recv()
            except (EOFError, OSError):
                return
            pipe.send(work(job))


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
