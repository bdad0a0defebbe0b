"""One case: whole or absent wherever its making is cut off, made again where it must be, and named where it is bad."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.preprocessing.cases import CaseJob, Outcome, Result, is_complete, preprocess_case
from nnunetv2_ext.preprocessing.preprocessor import ExactPreprocessor
from tests.preprocessed_folders import assert_same_folder, in_the_making
from tests.preprocessing.conftest import ENDINGS, Dataset

CASE = "MNI_000"


class Killed(BaseException):
    """The end of a process, which nothing can catch."""


def change_voxels(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write an image with other values, or another shape, and otherwise as it was."""
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(image.GetSpacing())
    changed.SetOrigin(image.GetOrigin())
    changed.SetDirection(image.GetDirection())
    sitk.WriteImage(changed, str(path))


def set_voxel(path: Path, value: float) -> None:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.float32)
        voxels[20, 21, 22] = value
        return voxels

    change_voxels(path, change)


def test_a_case_is_complete_with_image_labels_and_properties(tmp_path: Path) -> None:
    for ending in ENDINGS:
        assert not is_complete(tmp_path, "case")
        (tmp_path / f"case{ending}").touch()
    assert is_complete(tmp_path, "case")
    assert not is_complete(tmp_path, "cas")


def make(job: CaseJob) -> Result:
    outcome = preprocess_case(job)
    assert outcome.result is not Result.FAILED, outcome.details
    return outcome.result


def make_until_killed(job: CaseJob, renames: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether making the case ended with its death after so many files had got their names."""
    rename, done = os.replace, 0

    def counted(*arguments: Any) -> None:
        nonlocal done
        rename(*arguments)
        done += 1
        if done == renames:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", counted)
        try:
            make(job)
        except Killed:
            return True
    return False


def copy_folders(place: Dataset, to: Path) -> None:
    """Cases and records."""
    shutil.rmtree(place.folder / "unfinished", ignore_errors=True)
    for folder in (place.folder, place.records):
        folder.mkdir(exist_ok=True)
        shutil.copytree(folder, to / folder.name)


@pytest.mark.parametrize("there_before", [False, True], ids=["new", "replaced"])
def test_wherever_a_case_is_cut_off_making_it_again_gives_the_same_case_and_record(
    there_before: bool, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = dataset.jobs()[0]
    if there_before:
        make(job)
    copy_folders(dataset, tmp_path / "before")
    change_voxels(dataset.image(CASE), lambda voxels: voxels[:, ::-1].copy())
    make(job)
    copy_folders(dataset, tmp_path / "whole")

    kills = 0
    while True:
        for folder in (dataset.folder, dataset.records):
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "before" / folder.name, folder)
        if not make_until_killed(job, kills + 1, monkeypatch):
            break
        kills += 1
        make(job)
        copy_folders(dataset, tmp_path / str(kills))
        for folder in (dataset.folder, dataset.records):
            assert_same_folder(tmp_path / str(kills) / folder.name, tmp_path / "whole" / folder.name)
    assert kills >= 4, "three files and a record"


def test_a_case_that_is_cut_off_while_it_is_replaced_is_not_taken_for_whole(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = dataset.jobs()[0]
    make(job)
    change_voxels(dataset.label(CASE), lambda voxels: np.where(voxels == 2, 1, voxels))
    labels = dataset.folder / f"{CASE}_seg.b2nd"
    before = labels.stat().st_ino
    assert make_until_killed(job, 2, monkeypatch)
    assert labels.stat().st_ino != before, "half of it is replaced"
    assert dataset.record(CASE)["complete"] is False
    make(job)
    assert dataset.record(CASE)["complete"] is True


def test_a_case_whose_files_change_while_they_are_read_is_named_and_not_published(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = ExactPreprocessor.run_case_save

    def replaced_meanwhile(*arguments: Any) -> None:
        save(*arguments)
        shutil.copy(dataset.image("MNI_001"), dataset.image(CASE))

    with monkeypatch.context() as patched:
        patched.setattr(ExactPreprocessor, "run_case_save", replaced_meanwhile)
        outcome = preprocess_case(dataset.jobs()[0])
    assert outcome.result is Result.FAILED
    assert "its files changed while they were being read" in outcome.message
    assert not is_complete(dataset.folder, CASE)
    assert make(dataset.jobs()[0]) is Result.MADE


def truncate(place: Dataset) -> None:
    content = place.image(CASE).read_bytes()
    place.image(CASE).write_bytes(content[: len(content) * 2 // 3])


def flip_a_byte(place: Dataset) -> None:
    content = bytearray(place.image(CASE).read_bytes())
    content[len(content) // 2] ^= 0xFF
    place.image(CASE).write_bytes(content)


def truncate_the_label(place: Dataset) -> None:
    content = place.label(CASE).read_bytes()
    place.label(CASE).write_bytes(content[: len(content) // 2])


def replace_by_a_page(place: Dataset) -> None:
    place.image(CASE).write_bytes(b"<!DOCTYPE html><html>log in</html>")


def add_nan(place: Dataset) -> None:
    set_voxel(place.image(CASE), np.nan)


def add_infinity(place: Dataset) -> None:
    set_voxel(place.image(CASE), -np.inf)


def shorten_the_label(place: Dataset) -> None:
    change_voxels(place.label(CASE), lambda voxels: voxels[:-3])


def add_a_strange_label(place: Dataset) -> None:
    set_voxel(place.label(CASE), 77)


def add_a_channel_of_another_shape(place: Dataset) -> None:
    description = json.loads((place.raw / "dataset.json").read_text())
    description["channel_names"]["1"] = "second"
    (place.raw / "dataset.json").write_text(json.dumps(description))
    for image in sorted((place.raw / "imagesTr").iterdir()):
        second = image.with_name(image.name.replace("_0000", "_0001"))
        shutil.copy(image, second)
    change_voxels(place.raw / "imagesTr" / f"{CASE}_0001.nii.gz", lambda voxels: voxels[:, :-5])


def name_a_channel_that_is_not_there(place: Dataset) -> None:
    description = json.loads((place.raw / "dataset.json").read_text())
    description["channel_names"]["1"] = "second"
    (place.raw / "dataset.json").write_text(json.dumps(description))


def empty_the_image(place: Dataset) -> None:
    place.image(CASE).write_bytes(b"")


def take_the_label_away(place: Dataset) -> None:
    place.label(CASE).unlink()


BAD = {
    truncate: ("_0000.nii.gz is damaged",),
    flip_a_byte: ("_0000.nii.gz is damaged",),
    truncate_the_label: (f"{CASE}.nii.gz is damaged",),
    add_nan: (f"1 voxels of {CASE}_0000.nii.gz are NaN or infinite",),
    add_infinity: (f"1 voxels of {CASE}_0000.nii.gz are NaN or infinite",),
    replace_by_a_page: ("_0000.nii.gz is damaged", "Not a gzipped file"),
    name_a_channel_that_is_not_there: ("it has 1 image channels, dataset.json names 2",),
    empty_the_image: (f"{CASE}_0000.nii.gz is empty",),
    shorten_the_label: ("the image has 48 x 48 x 48 voxels, its label 45 x 48 x 48",),
    add_a_strange_label: ("values that are not in dataset.json: 77",),
    add_a_channel_of_another_shape: ("channels differ in shape", "48 x 48 x 48", "48 x 43 x 48", "_0001.nii.gz"),
}


def refused(job: CaseJob) -> Outcome:
    outcome = preprocess_case(job)
    assert outcome.result is Result.FAILED
    assert "\n" not in outcome.message
    assert outcome.error_number is None, "the next case is not concerned"
    assert not in_the_making(job.folder)
    return outcome


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_case_is_named_with_its_fault_and_leaves_nothing(
    spoil: Callable[[Dataset], None], dataset: Dataset
) -> None:
    spoil(dataset)
    outcome = refused(dataset.jobs()[0])
    assert outcome.case == CASE
    for words in BAD[spoil]:
        assert words in outcome.message
    assert [p for p in dataset.folder.rglob("*") if p.is_file()] == []
    assert not dataset.records.exists()


def test_a_case_that_has_become_bad_keeps_what_was_made_of_it_before(dataset: Dataset) -> None:
    make(dataset.jobs()[0])
    before, record = dataset.files(), dataset.record(CASE)
    truncate(dataset)
    refused(dataset.jobs()[0])
    assert (dataset.files(), dataset.record(CASE)) == (before, record)


def test_a_file_that_is_taken_away_before_its_turn_fails_its_case(dataset: Dataset) -> None:
    job = dataset.jobs()[0]
    take_the_label_away(dataset)
    assert f"{CASE}.nii.gz" in refused(job).message


def test_an_uncompressed_image_that_is_cut_off_is_named(dataset: Dataset) -> None:
    for path in [*(dataset.raw / "imagesTr").iterdir(), *(dataset.raw / "labelsTr").iterdir()]:
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).removesuffix(".gz"))
        path.unlink()
    description = json.loads((dataset.raw / "dataset.json").read_text())
    (dataset.raw / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii"}))
    image = dataset.image(CASE).with_suffix("")
    image.write_bytes(image.read_bytes()[:-1000])
    assert refused(dataset.jobs()[0]).case == CASE
    assert make(dataset.jobs()[1]) is Result.MADE
