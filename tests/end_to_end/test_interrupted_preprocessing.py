"""A run that is killed, or stopped, is continued by the same command, and what comes out is what would have."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import Workplace
from tests.end_to_end.scans import (
    CASES,
    assert_same_result,
    cases_of,
    finished_in,
    preprocess_scans,
    start_preprocessing,
    unprocessed,
)
from tests.preprocessed_folders import in_the_making
from tests.processes import end_all, in_session, wait_for, workers_of


def seconds_per_case(scans: Workplace) -> float:
    """Between one case and the next of the uninterrupted run."""
    times = [(cases_of(scans) / f"{case}.b2nd").stat().st_mtime for case in CASES]
    return (max(times) - min(times)) / (len(CASES) - 1)


def start_and_wait(place: Workplace, more: int, seconds: float) -> subprocess.Popen[str]:
    """Start the command and come back so long after it has finished so many more cases, or begun the first."""
    before = len(finished_in(place))
    process = start_preprocessing(place)
    try:
        wait_for(lambda: in_the_making(cases_of(place)), process)
        wait_for(lambda: len(finished_in(place)) >= before + more, process)
        time.sleep(seconds)
    except BaseException:
        end_all(process)
        raise
    return process


def kill_while_preprocessing(place: Workplace, more: int, seconds: float) -> list[str]:
    """Kill the command, not its workers; see `start_and_wait`.

    Returns:
        The cases that were in the making.
    """
    process = start_and_wait(place, more, seconds)
    try:
        process.kill()
        met = in_the_making(cases_of(place))
        process.wait()
        wait_for(lambda: not in_session(process.pid), seconds=10)
    finally:
        end_all(process)
    return met


def kill_a_worker(place: Workplace, more: int, seconds: float, rng: random.Random) -> tuple[int, str]:
    """Kill one of a command's workers; see `start_and_wait`. Returns the exit code and output."""
    process = start_and_wait(place, more, seconds)
    try:
        if workers := workers_of(process.pid):
            os.kill(rng.choice(workers), signal.SIGKILL)
        return process.wait(timeout=120), (place.root / "log").read_text()
    finally:
        end_all(process)


def test_a_run_that_is_killed_three_times_is_continued_to_the_same_result(scans: Workplace, tmp_path: Path) -> None:
    place = unprocessed(scans, tmp_path)
    rng = random.Random(4)
    pause = seconds_per_case(scans)
    met, finished = [], [0]
    for more in (0, 2, 3):
        met.append(kill_while_preprocessing(place, more, rng.uniform(0, pause)))
        finished.append(len(finished_in(place)))
    print(f"in the making when killed: {met}; finished after: {finished[1:]}")
    assert all(met), "each kill met cases in the making"
    assert finished == sorted(finished), "finished cases stay"
    assert finished[-1] < len(CASES)
    output = preprocess_scans(place).stdout
    assert f"{len(CASES) - finished[-1]} cases preprocessed, {finished[-1]} were there already" in output
    assert_same_result(place, scans)


@pytest.mark.slow
def test_a_killed_worker_is_reported_with_its_case_and_only_that_is_missing(scans: Workplace, tmp_path: Path) -> None:
    place = unprocessed(scans, tmp_path)
    exit_code, output = kill_a_worker(place, 3, seconds_per_case(scans) / 2, random.Random(4))
    assert exit_code == 1
    (missing,) = set(CASES) - finished_in(place)
    (line,) = [line for line in output.splitlines() if "error: " in line]
    assert f"case {missing} of {place.dataset} could not be preprocessed: its process was killed (SIGKILL)" in line
    assert "use fewer processes (-np)" in line
    assert "the other cases are done, and the same command continues" in line
    assert "Traceback" not in output
    assert not in_the_making(cases_of(place))
    assert "1 cases preprocessed, 11 were there already" in preprocess_scans(place).stdout
    assert_same_result(place, scans)


def test_ctrl_c_ends_the_command_and_its_workers_with_a_line_and_leaves_nothing_unfinished(
    scans: Workplace, tmp_path: Path
) -> None:
    place = unprocessed(scans, tmp_path)
    process = start_preprocessing(place)
    try:
        wait_for(lambda: finished_in(place), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        wait_for(lambda: not in_session(process.pid), seconds=10)
    finally:
        end_all(process)
    output = (tmp_path / "log").read_text()
    assert "Traceback" not in output
    assert output.splitlines()[-1].endswith("interrupted: what is finished is kept, and the same command continues")
    assert 0 < len(finished_in(place)) < len(CASES)
    assert not (cases_of(place) / "unfinished").exists()


@pytest.mark.slow
def test_twenty_kills_at_random_moments(scans: Workplace, tmp_path: Path) -> None:
    rng = random.Random(20)
    pause = seconds_per_case(scans)
    kills = met = remade = rounds = 0
    while kills < 20:
        rounds += 1
        place = unprocessed(scans, tmp_path / str(rounds))
        for _ in range(2):
            missing = len(CASES) - len(finished_in(place))
            more, wait = rng.randint(0, min(4, missing - 3)), rng.uniform(0, pause)
            if rng.random() < 0.6:
                met += bool(kill_while_preprocessing(place, more, wait))
            else:
                exit_code, _ = kill_a_worker(place, more, wait, rng)
                lost = set(CASES) - finished_in(place)
                assert (exit_code, len(lost)) in ((1, 1), (0, 0))
                met += len(lost)
            kills += 1
            if len(finished_in(place)) > len(CASES) - 3:
                break
        left = len(CASES) - len(finished_in(place))
        assert f"{left} cases preprocessed, {len(CASES) - left} were there already" in preprocess_scans(place).stdout
        remade += left
        assert_same_result(place, scans)
    print(f"{kills} kills, {met} with cases in the making; {remade} cases made by the runs that continued")
    assert met >= 15
