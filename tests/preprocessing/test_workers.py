"""Worker processes: every case has an outcome, whatever becomes of the process that it was given to."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.cases import CaseJob, Outcome, Result
from nnunetv2_ext.preprocessing.workers import run_here
from tests.preprocessing.conftest import CASES, WHOLE, Dataset
from tests.processes import having_open, wait_for


class Deadly(dict):
    """Sends a signal to the process that reads it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return signal.raise_signal, (self.number,)


def run(jobs: list[CaseJob], num_processes: int) -> Generator[Outcome]:
    """`run_here`, which is a generator."""
    return cast("Generator[Outcome]", run_here(jobs, num_processes))


def deadly(job: CaseJob, number: int = signal.SIGKILL) -> CaseJob:
    return dataclasses.replace(job, plan=Deadly(number))


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_every_case_has_an_outcome_with_fewer_and_more_processes_than_cases(
    num_processes: int, dataset: Dataset
) -> None:
    outcomes = list(run(dataset.jobs(), num_processes))
    assert sorted((o.case, o.result) for o in outcomes) == [(case, Result.MADE) for case in CASES]
    assert set(dataset.files()) == WHOLE


def hold(place: Dataset, case: str) -> Path:
    """Replace a case's image by a pipe, at which its worker waits."""
    image = place.image(case)
    image.unlink()
    os.mkfifo(image)
    return image


def process_waiting_at(pipe: Path) -> tuple[int, int]:
    """The worker that reads a pipe, and this end of it, which keeps the worker waiting while it is open."""

    def opened() -> int:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            return 0

    end = wait_for(opened)
    (worker,) = wait_for(lambda: having_open(pipe))
    return worker, end


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"killed \(SIGKILL\), most likely .* because memory ran out: use fewer processes \(-np\)"),
        (signal.SIGSEGV, r"its process crashed \(SIGSEGV\)"),
    ],
)
def test_a_worker_that_dies_in_the_middle_of_a_case_takes_no_other_with_it(
    number: int, words: str, dataset: Dataset
) -> None:
    jobs = dataset.jobs()
    pipe = hold(dataset, CASES[0])
    running = run(jobs, 2)
    assert {(o.case, o.result) for o in (next(running), next(running))} == {(c, Result.MADE) for c in CASES[1:]}
    worker, end = process_waiting_at(pipe)
    os.kill(worker, number)
    (outcome,) = running
    os.close(end)
    assert (outcome.case, outcome.result) == (CASES[0], Result.FAILED)
    assert re.search(words, outcome.message)


def test_a_worker_that_takes_its_place_does_the_remaining_cases(dataset: Dataset) -> None:
    jobs = dataset.jobs()
    outcomes = list(run([deadly(jobs[0]), deadly(jobs[0]), *jobs], 2))
    assert sum(o.result is Result.FAILED for o in outcomes) == 2
    assert {o.case for o in outcomes if o.result is Result.MADE} == set(CASES)


def test_a_fault_of_a_case_comes_back_from_its_process_in_one_line(dataset: Dataset) -> None:
    dataset.image(CASES[1]).write_bytes(b"<html>log in</html>")
    outcomes = {o.case: o for o in run(dataset.jobs(), 2)}
    assert [outcomes[c].result for c in CASES] == [Result.MADE, Result.FAILED, Result.MADE]
    assert f"{CASES[1]}_0000.nii.gz is damaged" in outcomes[CASES[1]].message
    assert "\n" not in outcomes[CASES[1]].message
    assert "Traceback" in outcomes[CASES[1]].details


def test_three_deaths_in_a_row_of_every_worker_end_the_run(dataset: Dataset) -> None:
    job = dataset.jobs()[0]
    running = run([deadly(job)] * 20, 2)
    outcomes = []
    with pytest.raises(UserError, match=r"^6 processes in a row died.*SIGKILL"):
        outcomes.extend(running)
    assert os.listdir(dataset.folder) == []


def test_a_run_that_is_given_up_leaves_no_process(dataset: Dataset) -> None:
    jobs = dataset.jobs()
    hold(dataset, CASES[0])
    running = run(jobs, 2)
    next(running)
    workers = [p.pid for p in multiprocessing.active_children()]
    assert len(workers) == 2
    running.close()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
