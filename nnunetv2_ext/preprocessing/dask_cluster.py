"""Cases on a Dask cluster that is there already; its workers see the same folders as this machine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.cases import CaseJob, Outcome, Result, preprocess_case

_SECONDS_TO_CONNECT = 10


def run_on_dask(jobs: Sequence[CaseJob], scheduler: str) -> Iterator[Outcome]:
    """Yield the outcome of every case as it is done.

    Dask gives the cases of a worker that disappears to others, several times over, before it gives them up.

    Args:
        jobs: any number; their folders must be the same on the workers.
        scheduler: address, `tcp://HOST:8786` or `HOST:8786`.

    Raises:
        UserError: `distributed` is not installed, or nobody answers at the address.
    """
    with _client(scheduler) as client:
        from distributed import as_completed

        if not client.nthreads():
            print(f"The Dask scheduler at {scheduler} has no workers yet: waiting for them")
        run = uuid.uuid4().hex  # results of an earlier run must not be taken for this one's
        futures = {
            client.submit(preprocess_case, job, key=f"{job.raw.name}-{run}", pure=False): job.raw.name for job in jobs
        }
        for future in as_completed(futures):
            yield _outcome(futures.pop(future), future)
            future.release()


def _outcome(case: str, future: Any) -> Outcome:
    from distributed import KilledWorker

    if future.cancelled():
        return Outcome(case, Result.FAILED, "the Dask scheduler has lost it: is the scheduler still running?")
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, KilledWorker):
        return Outcome(
            case,
            Result.FAILED,
            "every Dask worker that took it died, most likely because memory ran out: give the workers more memory or "
            "fewer threads",
        )
    return Outcome(case, Result.FAILED, f"{type(error).__name__}: {error}")


def check_scheduler(scheduler: str) -> None:
    """Raises UserError where Dask is not installed, or nobody answers at the address."""
    _client(scheduler).close()


def _client(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError('-executor dask needs Dask: pip install "nnunetv2-ext[distributed]"') from error
    try:
        return Client(scheduler, timeout=_SECONDS_TO_CONNECT)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(f"no Dask scheduler answers at {scheduler} (-scheduler): {error}") from error
