"""Several runs at once in one folder: two terminals with the same command, or the parts of an array job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nnunetv2_ext.cli import preprocess_like_nnssl
from tests.conftest import Workplace
from tests.end_to_end.refusal import Refuses
from tests.end_to_end.scans import (
    ARGUMENTS,
    CASES,
    assert_same_result,
    cases_of,
    finished_in,
    preprocess_scans,
    start_preprocessing,
    unprocessed,
)
from tests.preprocessed_folders import inodes
from tests.processes import end_all


@pytest.fixture
def place(scans: Workplace, tmp_path: Path) -> Workplace:
    return unprocessed(scans, tmp_path)


def run_at_once(place: Workplace, runs: Sequence[Sequence[object]]) -> list[str]:
    """Start a command with each of the options, and wait for all; their outputs, once all have succeeded."""
    processes = [start_preprocessing(place, *options, log=f"log{i}") for i, options in enumerate(runs)]
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            end_all(process)
    outputs = [(place.root / f"log{i}").read_text() for i in range(len(runs))]
    assert codes == [0] * len(runs), outputs
    assert not any("Traceback" in output for output in outputs), outputs
    return outputs


@pytest.mark.slow
def test_two_runs_of_the_same_command_at_once_give_what_one_gives(place: Workplace, scans: Workplace) -> None:
    run_at_once(place, [(), ()])
    assert_same_result(place, scans)


@pytest.mark.slow
def test_two_runs_that_overwrite_at_once_replace_every_case_and_never_empty_the_folder(
    place: Workplace, scans: Workplace, tmp_path: Path
) -> None:
    preprocess_scans(place)
    before = inodes(cases_of(place))
    (held := tmp_path / "held").mkdir()
    for name in before:  # so that no file's number is free to be used again
        (held / name).hardlink_to(cases_of(place) / name)
    processes = [start_preprocessing(place, "--overwrite_pp", log=f"log{i}") for i in range(2)]
    fewest = len(CASES)
    try:
        while any(process.poll() is None for process in processes):
            fewest = min(fewest, len(finished_in(place)))
    finally:
        for process in processes:
            end_all(process)
    assert [process.returncode for process in processes] == [0, 0], [(tmp_path / f"log{i}").read_text() for i in (0, 1)]
    assert fewest == len(CASES)
    assert not set(inodes(cases_of(place)).values()) & set(before.values())
    assert_same_result(place, scans)


@pytest.mark.slow
def test_the_parts_of_an_array_job_at_once_are_disjoint_and_together_everything(
    place: Workplace, scans: Workplace
) -> None:
    outputs = run_at_once(place, [("-np", 1, "-part", part, "-num_parts", 3) for part in range(3)])
    for output in outputs:
        assert "4 cases preprocessed, 0 were there already" in output
        assert "Next, when all 3 parts are done:" in output
    assert_same_result(place, scans)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-part", 3, "-num_parts", 3), "-part counts from 0 to 2 of -num_parts 3, not 3"),
        (("-part", -1, "-num_parts", 3), "-part"),
        (("-part", 0), "-part I and -num_parts N go together"),
        (("-part", "one", "-num_parts", 3), "-part"),
        (("--no_pp", "--preview"), "--preview is about preprocessing, which --no_pp leaves out"),
    ],
)
def test_parts_that_cannot_be_are_refused(options: Sequence[object], words: str, refused: Refuses) -> None:
    refused(preprocess_like_nnssl.main, [*ARGUMENTS, *options], words)


def test_parts_of_a_dataset_without_a_plan_are_refused(place: Workplace, refused: Refuses) -> None:
    (place.preprocessed / "nnUNetPlans.json").unlink()
    words = ("no nnU-Net plan yet", "run the same command with --no_pp instead of -part first")
    refused(preprocess_like_nnssl.main, [*ARGUMENTS, "-part", 0, "-num_parts", 2], *words)
