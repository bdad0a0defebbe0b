"""Files of BIDS datasets by their names, and where label maps are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_ext.datasets.sources.bids_files import pipeline_folder, read_folder
from nnunetv2_ext.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_names_are_read_into_entities(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/ses-pre/anat/sub-01_ses-pre_acq-hi_run-02_rater-a_T1w.nii.gz")
    (file,) = read_folder(tmp_path)
    assert file.suffix == "T1w"
    assert file.visit == ("01", "pre")
    assert file.stem == "sub-01_ses-pre_acq-hi_run-02_rater-a"
    assert file.entities == {
        "sub": "01", "ses": "pre", "acq": "hi", "run": "2", "rater": "a", "datatype": "anat",
    }  # fmt: skip


def test_a_name_counts_and_not_the_folders_above_the_dataset(tmp_path: Path) -> None:
    root = touch(tmp_path / "sub-99" / "run-7" / "acq-x", "sub-01/sub-01_T1w.nii")
    (file,) = read_folder(root)
    assert file.entities == {"sub": "01"}


def test_a_session_that_the_name_leaves_out_is_that_of_the_folder(tmp_path: Path) -> None:
    root = touch(tmp_path / "ses-x", "sub-01/ses-a/anat/sub-01_dseg.nii.gz", "sub-02/anat/sub-02_dseg.nii.gz")
    assert [file.visit for file in read_folder(root)] == [("01", "a"), ("02", None)]


def test_only_nifti_files_of_subjects_are_read(tmp_path: Path) -> None:
    touch(tmp_path, *(f"sub-01/anat/sub-01_T1w{e}" for e in (".nii.gz", ".nii", ".json", ".mgz")), "mean_T1w.nii.gz")
    assert [file.name for file in read_folder(tmp_path)] == ["sub-01_T1w.nii", "sub-01_T1w.nii.gz"]


def test_conditions_are_whole_values_and_numbers_without_zeros(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_acq-high_run-01_T1w.nii.gz")
    (file,) = read_folder(tmp_path)
    for conditions in ({"acq": "high"}, {"run": "1"}, {"run": "01"}, {"ce": "none"}, {"datatype": "anat"}, {}):
        assert file.has(conditions)
    for conditions in ({"acq": "hi"}, {"acq": "none"}, {"run": "2"}, {"ce": "gd"}, {"acq": "high", "run": "2"}):
        assert not file.has(conditions)


# Pipelines


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("derivatives/manual/sub-01/anat/sub-01_dseg.nii.gz", "derivatives/manual"),
        ("derivatives/manual/sub-01_dseg.nii.gz", "derivatives/manual"),
        ("derivatives/sub-01/sub-01_dseg.nii.gz", "derivatives"),
        ("derivatives/labels/v2/manual/sub-01/anat/sub-01_dseg.nii.gz", "derivatives/labels/v2/manual"),
    ],
)
def test_a_pipeline_is_where_subjects_are_however_deep_it_lies(name: str, folder: str, tmp_path: Path) -> None:
    touch(tmp_path, name, "derivatives/.git/sub-01/x", "derivatives/notes/README", "derivatives/code/sub-01.py")
    assert pipeline_folder(tmp_path, None) == tmp_path / folder


def test_of_several_pipelines_one_has_to_be_chosen(tmp_path: Path) -> None:
    touch(tmp_path, *(f"derivatives/{p}/sub-01/anat/sub-01_dseg.nii.gz" for p in ("auto", "group/a", "group/b")))
    with pytest.raises(UserError, match=r"has auto, group/a, group/b: say which has the labels \(-derivatives\)$"):
        pipeline_folder(tmp_path, None)
    with pytest.raises(UserError, match=r"no folder .*/c \(-derivatives\); .*derivatives has auto, group/a, group/b$"):
        pipeline_folder(tmp_path, "c")
    assert pipeline_folder(tmp_path, "group/b") == tmp_path / "derivatives" / "group" / "b"


def test_a_pipeline_may_lie_anywhere(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    assert pipeline_folder(tmp_path / "raw", str(tmp_path / "labels")) == tmp_path / "labels"


def test_a_pipeline_of_a_pipeline_is_chosen_by_its_path(tmp_path: Path) -> None:
    touch(tmp_path, "derivatives/a/sub-01/x", "derivatives/a/derivatives/b/sub-01/anat/sub-01_dseg.nii.gz")
    folder = pipeline_folder(tmp_path, "a/derivatives/b")
    assert [file.name for file in read_folder(folder)] == ["sub-01_dseg.nii.gz"]
    assert pipeline_folder(tmp_path, None) == tmp_path / "derivatives" / "a"
    assert read_folder(tmp_path / "derivatives" / "a") == []


@pytest.mark.parametrize("inside", [None, "README", ".git/sub-01/x"])
def test_a_dataset_without_a_pipeline_is_refused(inside: str | None, tmp_path: Path) -> None:
    if inside is not None:
        touch(tmp_path / "derivatives", inside)
    with pytest.raises(UserError, match=r"derivatives has no pipeline with label maps: name the folder .*-derivatives"):
        pipeline_folder(tmp_path, None)
