"""Classes that no case has, and what a change of the dataset makes out of date, are said with what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.datasets.collection import TEST
from nnunetv2_ext.datasets.remarks import remark_on_outdated, remark_on_shared_images, remark_on_unused_classes
from nnunetv2_ext.datasets.volumes.opening import volume_at
from tests.datasets.overviews import case

DATASET = "Dataset123_Cells"
DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


def described(**changes: Any) -> dict[str, Any]:
    return {**DESCRIPTION, **changes}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's, in which nothing is yet."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def preprocessed(folders: Path) -> Path:
    """As stock nnU-Net leaves it."""
    folder = folders / "nnUNet_preprocessed" / DATASET
    put(folder / "dataset.json", DESCRIPTION)
    put(folder / "dataset_fingerprint.json", {"spacings": []})
    put(folder / "nnUNetPlans.json", {"configurations": {}})
    put(folder / "splits_final.json", [{"train": ["a"], "val": ["b"]}])
    put(folder / "nnUNetPlans_3d_fullres" / "a.pkl", "")
    put(folder / "gt_segmentations" / "a.nii.gz", "")
    return folder


@pytest.fixture
def model(folders: Path) -> Path:
    folder = folders / "nnUNet_results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    put(folder / "dataset.json", DESCRIPTION)
    put(folder / "fold_0" / "checkpoint_final.pth", "")
    return folder


# ---- classes ----


def test_classes_that_no_training_case_has_are_named() -> None:
    classes = {1: "liver", 2: "cyst", 3: "vessel"}
    numbers = {"background": 0, "liver": 1, "cyst": 2, "vessel": 3}
    found = [(case("a", classes=classes), (0, 1)), (case("b", classes=classes), (0,))]
    assert remark_on_unused_classes("bids", numbers, found) == [
        "2 of 3 classes are in no training case: cyst, vessel; nnU-Net will train outputs for them: "
        "leave them out with -labels"
    ]


def test_a_class_of_test_cases_alone_is_in_no_training_case() -> None:
    found = [(case("a"), (0, 1)), (case("t", part=TEST), (0, 1, 9))]
    (remark,) = remark_on_unused_classes("csv", {"background": 0, "label_1": 1, "label_9": 2}, found)
    assert remark.startswith("1 of 2 classes are in no training case: label_9;")


def test_patterns_are_told_of_their_own_keys() -> None:
    found = [(case("a", classes={1: "DG", 2: "CA1"}), (1,))]
    (remark,) = remark_on_unused_classes("patterns", {"background": 0, "DG": 1, "CA1": 2}, found)
    assert "labels_names" in remark
    assert "-labels" not in remark


def test_nothing_is_said_where_training_cases_have_all_classes_between_them() -> None:
    numbers = {"background": 0, "label_1": 1, "label_2": 2, "ignore": 3}
    assert remark_on_unused_classes("csv", numbers, [(case("a"), (0, 1)), (case("b"), (2,))]) == []


def test_a_class_that_was_annotated_as_part_of_another_is_learnt_from_it() -> None:
    merged = case("a", classes={1: "CA2"}, merged=(("CA2", "CA3"),))
    numbers = {"background": 0, "CA2": 1, "CA3": 2}
    assert remark_on_unused_classes("patterns", numbers, [(merged, (0, 1))]) == []
    assert remark_on_unused_classes("patterns", {**numbers, "DG": 3}, [(merged, (0,)), (case("b"), (0,))]) != []


def test_a_long_list_of_classes_is_shortened() -> None:
    numbers = {"background": 0, **{f"label_{i}": i for i in range(1, 101)}}
    (remark,) = remark_on_unused_classes("bids", numbers, [(case("a"), (1,))])
    assert (
        "99 of 100 classes are in no training case: label_2, label_3, label_4, label_5, label_6 and 94 more;" in remark
    )


# ---- what is out of date ----


@pytest.mark.parametrize(
    ("change", "changed", "said"),
    [
        ({"labels": {"background": 0, "liver": 1, "cyst": 2}}, (), "labels"),
        ({"channel_names": {"0": "MRI"}}, (), "channel names"),
        ({"file_ending": ".mha"}, (), "file ending"),
        ({"numTraining": 4}, ("d",), "1 training case (d)"),
        ({"numTraining": 4}, (), "the number of training cases"),
        ({"file_ending": ".mha", "channel_names": {"0": "MRI"}}, ("c", "d"),
         "channel names, file ending and 2 training cases (c, d)"),
    ],
)  # fmt: skip
def test_what_was_made_before_a_change_is_named_with_the_command_that_makes_it_again(
    change: dict[str, Any], changed: tuple[str, ...], said: str, preprocessed: Path
) -> None:
    assert remark_on_outdated(DATASET, described(**change), DESCRIPTION, changed) == [
        f"{preprocessed} holds dataset_fingerprint.json, nnUNetPlans.json, nnUNetPlans_3d_fullres of the dataset "
        f"before a change of {said}: plan and preprocess again: nnUNetv2_plan_and_preprocess -d 123 --clean"
    ]


def test_nothing_is_said_where_nothing_has_changed(preprocessed: Path, model: Path) -> None:
    assert remark_on_outdated(DATASET, described(name="Cells"), DESCRIPTION, ()) == []


def test_nothing_is_said_before_anything_was_planned(folders: Path) -> None:
    put(folders / "nnUNet_preprocessed" / DATASET / "splits_final.json", [])
    assert remark_on_outdated(DATASET, described(labels={}), DESCRIPTION, ("a",)) == []


def test_a_change_is_said_until_the_plans_are_made_anew(preprocessed: Path) -> None:
    new = described(labels={"background": 0, "cyst": 1})
    assert len(remark_on_outdated(DATASET, new, new, ())) == 1  # an import has made the change before
    put(preprocessed / "dataset.json", new)  # as planning does
    assert remark_on_outdated(DATASET, new, new, ()) == []


def test_a_fingerprint_without_plans_is_compared_with_the_import_before(folders: Path) -> None:
    folder = folders / "nnUNet_preprocessed" / DATASET
    put(folder / "dataset_fingerprint.json", {})
    (remark,) = remark_on_outdated(DATASET, described(file_ending=".mha"), DESCRIPTION, ())
    assert remark.startswith(f"{folder} holds dataset_fingerprint.json of")


def test_plans_for_fine_tuning_are_made_again_by_their_own_command(preprocessed: Path) -> None:
    long = "ptPlans__x____Spacing__1.00_1.00_1.00___Norm__Z"
    for name in (long, "ptPlans_x_Spacing_1.00_1.00_1.00_Norm_Z"):  # one plan under two names
        put(preprocessed / f"{name}.json", {"configurations": {}})
    put(preprocessed / "Spacing__1.00_1.00_1.00___Norm__Z" / "a.pkl", "")
    (remark,) = remark_on_outdated(DATASET, DESCRIPTION, DESCRIPTION, ("a",))
    assert remark.endswith(f"-d 123 --clean, then the command that made {long}")
    (preprocessed / "nnUNetPlans_3d_fullres" / "a.pkl").unlink()  # stock nnU-Net has preprocessed nothing
    (remark,) = remark_on_outdated(DATASET, DESCRIPTION, DESCRIPTION, ("a",))
    assert remark.endswith(f"-d 123 --clean --no_pp, then the command that made {long}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": {"background": 0}}, "labels"),
        ({"labels": {"background": 0}, "channel_names": {"0": "MRI"}}, "labels and channel names"),
    ],
)
def test_a_model_of_other_labels_or_channels_is_named(change: dict[str, Any], said: str, model: Path) -> None:
    assert remark_on_outdated(DATASET, described(**change), DESCRIPTION, ()) == [
        f"{model} was trained with other {said}, and predicts with those: train it anew"
    ]


def test_a_model_is_still_good_for_another_file_ending_or_more_cases(model: Path) -> None:
    assert remark_on_outdated(DATASET, described(file_ending=".mha", numTraining=9), DESCRIPTION, ("a",)) == []


def test_no_folder_of_results_is_needed(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results")
    assert remark_on_outdated(DATASET, described(labels={}), DESCRIPTION, ()) == []


def test_images_that_two_subjects_share_are_remarked_on_and_those_of_one_subject_are_not() -> None:
    scans = [(volume_at(Path(f"/{name}.nii.gz")),) for name in "abc"]
    cases = [
        replace(case("one"), images=scans[0], subject="P1"),
        replace(case("two"), images=scans[1], subject="P2"),
        replace(case("three"), images=scans[0], subject="P3"),
        replace(case("four"), images=scans[1], subject="P2"),
        replace(case("bad"), images=()),
    ]
    (line,) = remark_on_shared_images(cases)
    assert line.startswith("1 case with the image of another subject's case (three of one): one may validate")
    (line,) = remark_on_shared_images([replace(case, part=TEST) for case in cases])
    assert "(three of one): it counts twice; make" in line
    assert remark_on_shared_images([cases[1], cases[3], cases[4], cases[4]]) == []
