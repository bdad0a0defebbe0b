"""Worker processes for any job; `tests/preprocessing/test_workers.py` has what becomes of cases when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from nnunetv2_ext.worker_processes import Task, in_processes
from tests.processes import end_all, in_session, wait_for

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def double(job: object) -> object:
    return job * 2  # type: ignore[operator]


def own_process(_: object) -> int:
    return os.getpid()


def threads_of_blas(_: object) -> int:
    """How many threads this process's numpy may use, its libraries being loaded."""
    np.ones((8, 8)) @ np.ones((8, 8))
    return max(pool["num_threads"] for pool in threadpoolctl.threadpool_info())


def raise_an_error(job: object) -> object:
    if job == "bad":
        raise ZeroDivisionError("of this job")
    return job


def wait_for_a_file(job: tuple[str, str]) -> str:
    """Make the first file, then wait until the second one is there."""
    made, awaited = job
    Path(made).touch()
    while awaited and not Path(awaited).exists():
        time.sleep(0.005)
    return made


def ignores_ctrl_c(_: object) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def note_that_it_is_prepared() -> None:
    os.environ["PREPARED"] = "1"


def is_prepared(_: object) -> bool:
    return "PREPARED" in os.environ


def died(job: object, reason: str) -> tuple[object, str]:
    return job, reason


@pytest.mark.parametrize("num_processes", [1, 2, 7])
@pytest.mark.parametrize("jobs", [[], [3], [0, 1, 2, 0], ["", "a"], [(), (1,)], [0.0]])
def test_every_job_has_its_result_be_it_nothing_itself(jobs: list, num_processes: int) -> None:
    results = list(in_processes(Task(double, died), jobs, num_processes))
    assert sorted(map(repr, results)) == sorted(repr(job * 2) for job in jobs)


def test_every_worker_is_prepared_before_its_first_job_and_this_process_is_not() -> None:
    task = Task(is_prepared, died, prepare=note_that_it_is_prepared)
    assert list(in_processes(task, [1, 2, 3, 4], 2)) == [True] * 4
    assert list(in_processes(task, [1], 1)) == [False]


def test_one_process_is_this_one_and_keeps_the_order() -> None:
    assert list(in_processes(Task(own_process, died), range(3), 1)) == [os.getpid()] * 3
    assert list(in_processes(Task(double, died), range(5), 1)) == [0, 2, 4, 6, 8]


def test_workers_are_as_many_as_asked_for_and_used_again() -> None:
    used = set(in_processes(Task(own_process, died), range(40), 2))
    assert len(used) == 2
    assert os.getpid() not in used


def test_no_more_workers_than_jobs_are_started() -> None:
    running = in_processes(Task(own_process, died), [1, 2], 6)
    next(running)
    assert len(multiprocessing.active_children()) == 2
    running.close()


def test_a_job_that_takes_long_holds_up_no_other(tmp_path: Path) -> None:
    slow, last = tmp_path / "slow", tmp_path / "last"
    jobs = [(str(slow), str(last)), *((str(tmp_path / f"{i}"), "") for i in range(3)), (str(last), "")]
    results = list(in_processes(Task(wait_for_a_file, died), jobs, 2))
    assert set(results) == {job[0] for job in jobs}
    assert results.index(str(slow)) >= 3


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes in ((2, 2), (1, 2), (6, 3)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        used = set(in_processes(Task(threads_of_blas, died), range(4), processes))
        assert used == {max(1, cores // processes)}


def test_an_error_that_work_does_not_expect_ends_its_worker_alone() -> None:
    results = list(in_processes(Task(raise_an_error, died), ["a", "bad", "b", "c"], 2))
    assert [r for r in results if isinstance(r, tuple)] == [("bad", "its process ended unexpectedly with exit code 1")]
    assert {r for r in results if isinstance(r, str)} == {"a", "b", "c"}


def test_workers_leave_ctrl_c_to_their_parent() -> None:
    assert all(in_processes(Task(ignores_ctrl_c, died), range(2), 2))


COMMAND = """
    import sys
    from nnunetv2_ext.worker_processes import Task, in_processes
    from tests.test_worker_processes import died, wait_for_a_file

    if __name__ == "__main__":
        jobs = [(f"{sys.argv[1]}/{i}", f"{sys.argv[1]}/never") for i in range(2)]
        list(in_processes(Task(wait_for_a_file, died), jobs, 2))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(textwrap.dedent(COMMAND))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env=environment, start_new_session=True, text=True
    )
    try:
        wait_for(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), process)
        assert len(in_session(process.pid)) > 2
        process.kill()
        process.wait()
        wait_for(lambda: not in_session(process.pid), seconds=10)
    finally:
        end_all(process)


INTERRUPTED_EARLY = """
import time
from nnunetv2_ext.worker_processes import start_early
start_early(("slow_to_import",))
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("the parent alone")
"""


def test_ctrl_c_while_modules_are_imported_for_workers_is_the_parents_alone(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "slow_to_import.py").write_text(f"open({str(begun)!r}, 'w').close()\nimport time\ntime.sleep(1)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_EARLY], env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        wait_for(begun.exists, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("the parent alone\n", "")
    finally:
        end_all(process)
