"""`patterns`: HSF's YAML file, read as the cases, classes and splits that it means."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.datasets.checking import CheckJob, Finding, check_case
from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case, Collection
from nnunetv2_ext.datasets.importing import ImportOptions, import_dataset
from nnunetv2_ext.datasets.labelling import number_classes
from nnunetv2_ext.datasets.sources.patterns import read_patterns
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training.marginal import read_merged_classes

SIDES = ("left", "right")
PATTERNS = {f"{side}_t2": {"mri": f"**/t2w_{side}.nii.gz", "label": f"t2w_{side}_seg.nii.gz"} for side in SIDES}
NAMES = {1: "DG", 2: "CA2/3", 3: "CA1"}
CLARK = {"path": "clark", "patterns": PATTERNS, "labels": {1: 1, 2: 2, 3: 3}, "labels_names": NAMES}

# The file of HSF's documentation, word for word but for main_path.
EXAMPLE = """\
main_path: "{main_path}"
output_path: "/mnt/hsf/models/"
batch_size: 1
num_workers: 16
pin_memory: True
train_ratio: .9
replace: False
k_sample: Null  # i.e. k = train_ratio * num_samples
train_val_test_idx: Null
train_on_all: False

datasets:
  clark:
    path: "hippocampus_clark_3T"
    ca_type: "1/23"
    patterns:
      right_t2:
        mri: "**/t2w_Hippocampus_right_ElasticSyN_crop.nii.gz"
        label: "t2w_Hippocampus_right_ElasticSyN_seg_crop.nii.gz"
      left_t2:
        mri: "**/t2w_Hippocampus_left_ElasticSyN_crop.nii.gz"
        label: "t2w_Hippocampus_left_ElasticSyN_seg_crop.nii.gz"
      averaged_right_t2:
        mri: "**/averaged_t2w_Hippocampus_right_ElasticSyN_crop.nii.gz"
        label: "averaged_t2w_Hippocampus_right_ElasticSyN_seg_crop.nii.gz"
      averaged_left_t2:
        mri: "**/averaged_t2w_Hippocampus_left_ElasticSyN_crop.nii.gz"
        label: "averaged_t2w_Hippocampus_left_ElasticSyN_seg_crop.nii.gz"
    labels:
      1: 1
      2: 2
      3: 3
      4: 4
      5: 5
      6: 6
      7: 7
    labels_names:
      1: "DG"
      2: "CA2/3"
      3: "CA1"
      4: "PRESUB"
      5: "UNCUS"
      6: "PARASUB"
      7: "KYST"
"""


def touch(folder: Path, *names: str) -> None:
    """Files of which nothing is read: the importer lists folders only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def make_subjects(folder: Path, number: int) -> None:
    """`sub-00/t2w_left.nii.gz` and so on, each with its label map."""
    for i in range(number):
        touch(folder / f"sub-{i:02d}", *(f"t2w_{side}{end}.nii.gz" for side in SIDES for end in ("", "_seg")))


def write_scan(folder: Path, image: str, label: str, values: tuple[int, ...]) -> None:
    """An image of 2 x 3 x 4 voxels and a label map with these values."""
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3, 4), np.float32)), str(folder / image))
    sitk.WriteImage(sitk.GetImageFromArray(np.resize(np.uint8(values), (2, 3, 4))), str(folder / label))


def read(folder: Path, datasets: Mapping[str, Any] | None = None, **keys: Any) -> Collection:
    """Write the file and read it; `clark` alone, if no data sets are given."""
    config = folder / "datasets.yaml"
    content = {"main_path": str(folder), **keys, "datasets": datasets or {"clark": CLARK}}
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_patterns(config)


def problems(collection: Collection) -> dict[str, tuple[str, ...]]:
    return {case.name: case.problems for case in collection.cases if case.problems}


def finding(case: Case) -> Finding:
    return check_case(CheckJob(case, resample_labels=False))


def subjects(collection: Collection, names: list[str]) -> list[str]:
    """Of cases by their names, each once, sorted."""
    of_case = {case.name: case.subject for case in collection.cases}
    return sorted({of_case[name] for name in names})


def test_the_example_of_hsf_s_documentation_is_read_as_it_is(tmp_path: Path) -> None:
    names = [f"{a}t2w_Hippocampus_{side}_ElasticSyN" for a in ("", "averaged_") for side in SIDES]
    for subject in ("S01", "S02"):
        files = [f"{name}{end}.nii.gz" for name in names for end in ("_crop", "_seg_crop")]
        touch(tmp_path / "hippocampus_clark_3T" / subject / "anat", *files)
    config = tmp_path / "custom_dataset.yaml"
    config.write_text(EXAMPLE.format(main_path=tmp_path))
    collection = read_patterns(config).checked()
    assert not problems(collection)
    assert Counter(case.subject for case in collection.cases) == {"clark S01": 4, "clark S02": 4}
    assert "clark_S01_anat_averaged_left_t2" in {case.name for case in collection.cases}
    assert collection.class_names == ("DG", "CA2/3", "CA1", "PRESUB", "UNCUS", "PARASUB", "KYST")
    assert not any(case.merged for case in collection.cases)
    assert collection.splits is not None
    assert [len(collection.splits[0][part]) for part in ("train", "val")] == [4, 4]


def test_every_image_has_the_label_of_its_own_folder(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 3)
    collection = read(tmp_path)
    assert len(collection.cases) == 6
    for case in collection.cases:
        (image,) = case.images
        assert case.label is not None
        assert case.label.where == image.where.replace(".nii.gz", "_seg.nii.gz")


def test_relative_paths_are_meant_from_the_file_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_subjects(tmp_path / "data" / "clark", 1)
    monkeypatch.chdir("/")
    collection = read(tmp_path, main_path="data")
    assert collection.cases[0].images[0].where == str(tmp_path / "data/clark/sub-00/t2w_left.nii.gz")


def test_left_and_right_are_two_cases_of_one_subject(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 2)
    assert [(case.name, case.subject) for case in read(tmp_path).cases] == [
        ("clark_sub-00_left_t2", "clark sub-00"), ("clark_sub-01_left_t2", "clark sub-01"),
        ("clark_sub-00_right_t2", "clark sub-00"), ("clark_sub-01_right_t2", "clark sub-01"),
    ]  # fmt: skip


def test_subjects_of_the_same_name_in_two_data_sets_are_two(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_subjects(tmp_path / name, 1)
    collection = read(tmp_path, {name: {**CLARK, "path": name} for name in ("a", "b")})
    assert {case.subject for case in collection.cases} == {"a sub-00", "b sub-00"}
    assert not problems(collection.checked())


def test_the_subject_is_the_first_folder_below_the_one_that_all_share(tmp_path: Path) -> None:
    for subject in ("s1", "s2"):
        for session in ("a", "b"):
            touch(tmp_path / "clark/raw/mri" / subject / session, "t2w_left.nii.gz", "t2w_left_seg.nii.gz")
    collection = read(tmp_path, {"clark": {**CLARK, "patterns": {"left": PATTERNS["left_t2"]}}})
    assert Counter(case.subject for case in collection.cases) == {"clark s1": 2, "clark s2": 2}
    assert not problems(collection.checked())


LEFT = {"left": PATTERNS["left_t2"]}


def make_sessions(folder: Path) -> None:
    """`ses1/sub0/t2w_left.nii.gz` and so on: what comes first is not the subject."""
    for session, subject in ((1, 0), (1, 1), (2, 0), (2, 1)):
        touch(folder / f"ses{session}" / f"sub{subject}", "t2w_left.nii.gz", "t2w_left_seg.nii.gz")


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("sub-?[0-9]+", ["sub0", "sub1", "sub0", "sub1"]),
        ("/sub([0-9]+)/", ["0", "1", "0", "1"]),
        ("(?i)(SUB)(?:-|_)?([0-9]+)", ["sub-0", "sub-1", "sub-0", "sub-1"]),
        (None, ["ses1", "ses1", "ses2", "ses2"]),
    ],
)
def test_the_subject_may_be_searched_in_the_image_s_path(subject: str | None, names: list[str], tmp_path: Path) -> None:
    make_sessions(tmp_path / "clark")
    collection = read(tmp_path, {"clark": {**CLARK, "patterns": LEFT, "subject": subject}}).checked()
    assert not problems(collection)
    assert [case.subject for case in collection.cases] == [f"clark {name}" for name in names]
    assert [case.name for case in collection.cases] == [
        "clark_ses1_sub0_left", "clark_ses1_sub1_left", "clark_ses2_sub0_left", "clark_ses2_sub1_left",
    ]  # fmt: skip


def test_the_split_keeps_the_subjects_that_were_searched_together(tmp_path: Path) -> None:
    make_sessions(tmp_path / "clark")
    collection = read(
        tmp_path,
        {"clark": {**CLARK, "patterns": LEFT, "subject": "sub[0-9]+"}},
        train_val_test_idx=[[0, 2], [1, 3], []],
    )
    assert not problems(collection.checked())
    (fold,) = collection.splits or []
    assert (subjects(collection, fold["train"]), subjects(collection, fold["val"])) == (["clark sub0"], ["clark sub1"])


def test_the_folder_of_the_data_set_is_not_searched(tmp_path: Path) -> None:
    make_sessions(tmp_path / "sub9")
    collection = read(tmp_path, {"clark": {**CLARK, "path": "sub9", "patterns": LEFT, "subject": "sub[0-9]+"}})
    assert {case.subject for case in collection.cases} == {"clark sub0", "clark sub1"}


def test_in_a_flat_folder_the_subject_may_be_searched_in_the_file_s_name(tmp_path: Path) -> None:
    names = [f"{subject}_{session}_left" for subject in ("s1", "s2") for session in ("a", "b")]
    touch(tmp_path / "clark", *(f"{name}{end}.nii.gz" for name in names for end in ("", "_seg")))
    patterns = {"left": {"mri": "*_left.nii.gz", "label": "*_left_seg.nii.gz"}}
    collection = read(tmp_path, {"clark": {**CLARK, "patterns": patterns, "subject": "s[0-9]"}}).checked()
    assert not problems(collection)
    assert [(case.name, case.subject) for case in collection.cases] == [
        ("clark_s1_a_left", "clark s1"), ("clark_s1_b_left", "clark s1"),
        ("clark_s2_a_left", "clark s2"), ("clark_s2_b_left", "clark s2"),
    ]  # fmt: skip
    (tmp_path / "clark" / "s1_b_left_seg.nii.gz").unlink()
    (tmp_path / "clark" / "s2_a_left_seg.nii.gz").unlink()
    (tmp_path / "clark" / "s2_b_left_seg.nii.gz").unlink()
    found = problems(read(tmp_path, {"clark": {**CLARK, "patterns": patterns, "subject": "s[0-9]"}}))
    assert sorted(found) == ["clark_s1_b_left", "clark_s2_a_left", "clark_s2_b_left"]  # not theirs, though the one left


@pytest.mark.parametrize("subject", ["patient[0-9]+", "", "(x)?"])
def test_a_path_without_a_subject_is_a_problem_of_its_case(subject: str, tmp_path: Path) -> None:
    make_sessions(tmp_path / "clark")
    touch(tmp_path / "clark/ses1/patient7", "t2w_left.nii.gz", "t2w_left_seg.nii.gz")
    collection = read(tmp_path, {"clark": {**CLARK, "patterns": LEFT, "subject": subject}}).checked()
    found = problems(collection)
    assert len(found) == (4 if subject.startswith("patient") else 5)
    place = "ses1/sub0/t2w_left.nii.gz"
    assert found["clark_ses1_sub0_left"] == (f"subject of clark matches nothing in {place}",)


@pytest.mark.parametrize("wildcard", ["*", "sub??", "sub0[1-3]", "[!x]*"])
def test_in_a_flat_folder_the_wildcards_stand_for_the_subject(wildcard: str, tmp_path: Path) -> None:
    for i in (1, 2, 3):
        touch(tmp_path / "clark", *(f"sub0{i}_{side}{end}.nii.gz" for side in SIDES for end in ("", "_seg")))
    patterns = {s: {"mri": f"{wildcard}_{s}.nii.gz", "label": f"{wildcard}_{s}_seg.nii.gz"} for s in SIDES}
    collection = read(tmp_path, {"clark": {**CLARK, "patterns": patterns}}).checked()
    assert not problems(collection)
    assert list(Counter(case.subject for case in collection.cases).values()) == [2, 2, 2]
    for case in collection.cases:
        assert case.label is not None
        assert case.label.where == case.images[0].where.replace(".nii.gz", "_seg.nii.gz")


def test_several_images_of_a_pattern_in_one_folder_have_names_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path / "clark/s1", "a_t2.nii.gz", "b_t2.nii.gz", "a_seg.nii.gz", "b_seg.nii.gz")
    touch(tmp_path / "clark/s2", "a_t2.nii.gz", "a_seg.nii.gz")
    patterns = {"t2": {"mri": "**/*_t2.nii.gz", "label": "*_seg.nii.gz"}}
    collection = read(tmp_path, {"clark": {**CLARK, "patterns": patterns}}).checked()
    assert not problems(collection)
    assert [case.name for case in collection.cases] == ["clark_s1_t2_a_t2", "clark_s1_t2_b_t2", "clark_s2_t2"]


# Labels


def test_values_are_renumbered_as_the_file_says_and_0_leaves_them_out(tmp_path: Path) -> None:
    for side in SIDES:
        write_scan(tmp_path / "clark/s1", f"t2w_{side}.nii.gz", f"t2w_{side}_seg.nii.gz", (0, 10, 20, 77))
    labels = {10: 2, 20: 1, 77: 0}
    collection = read(tmp_path, {"clark": {**CLARK, "labels": labels, "labels_names": {1: "DG", 2: "CA1"}}})
    case = collection.cases[0]
    found = finding(case)
    assert (found.problems, found.values) == ((), (0, 10, 20, 77))
    labelling = number_classes(collection.class_names, [(case, found.values)])
    table = labelling.table(case, found.values)
    names = {number: name for name, number in labelling.numbers.items()}
    assert {value: names[number] for value, number in table.items()} == {
        0: "background", 10: "CA1", 20: "DG", 77: "background",
    }  # fmt: skip


def test_a_value_that_labels_do_not_list_is_found_in_the_label_map(tmp_path: Path) -> None:
    for side, values in zip(SIDES, [(0, 1, 3), (0, 1, 9)], strict=True):
        write_scan(tmp_path / "clark/s1", f"t2w_{side}.nii.gz", f"t2w_{side}_seg.nii.gz", values)
    left, right = read(tmp_path).cases
    assert finding(left).problems == ()
    (problem,) = finding(right).problems
    assert "t2w_right_seg.nii.gz holds 9, which the labels do not name (they name 1, 2, 3)" in problem


def test_classes_of_the_same_name_are_one_however_each_data_set_numbers_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_subjects(tmp_path / name, 1)
    datasets = {
        "a": {**CLARK, "path": "a", "labels": {1: 1, 2: 2}, "labels_names": {1: "DG", 2: "CA1"}},
        "b": {**CLARK, "path": "b", "labels": {5: 1, 6: 2}, "labels_names": {1: "CA1", 2: "SUB"}},
    }
    collection = read(tmp_path, datasets)
    assert collection.class_names == ("DG", "CA1", "SUB")
    found = [(case, (0, 1, 2) if case.subject.startswith("a") else (0, 5, 6)) for case in collection.cases]
    labelling = number_classes(collection.class_names, found)
    tables = {case.subject[0]: labelling.table(case, values) for case, values in found}
    assert tables["a"][2] == tables["b"][5] == labelling.numbers["CA1"]


def test_classes_are_numbered_as_the_file_numbers_them(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    labels = {1: 2, 2: 3, 3: 1, 9: 0, 101: 2}
    collection = read(tmp_path, {"clark": {**CLARK, "labels": labels}})
    labelling = number_classes(collection.class_names, [])
    assert {name: number for number, name in NAMES.items()} == {
        name: number for name, number in labelling.numbers.items() if number
    }
    assert labelling.table(collection.cases[0], labels) == labels


FINE = {
    "path": "fine", "ca_type": "1/2/3", "patterns": PATTERNS,
    "labels": {1: 1, 2: 2, 3: 3, 4: 4}, "labels_names": {1: "CA1", 2: "CA2", 3: "CA3", 4: "DG"},
}  # fmt: skip
COARSE = {**CLARK, "ca_type": "1/23"}


def label_manager(collection: Collection) -> tuple[dict[str, int], LabelManager]:
    """Stock nnU-Net's, of the labels that the importer numbers."""
    labels = dict(number_classes(collection.class_names, []).numbers)
    return labels, LabelManager(labels, None)


def merged_of(collection: Collection) -> dict[str, Any]:
    return {case.name: [list(group) for group in case.merged] for case in collection.cases if case.merged}


def test_merged_fields_are_read_by_the_marginal_loss_as_the_labels_they_may_be(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    make_subjects(tmp_path / "fine", 1)
    collection = read(tmp_path, {"clark": COARSE, "fine": FINE})
    labels, manager = label_manager(collection)
    assert set(labels) == {"background", "DG", "CA1", "CA2", "CA3"}
    merged = read_merged_classes({"merged_classes": merged_of(collection)}, manager)
    expected = tuple(sorted((labels["CA2"], labels["CA3"])))
    assert merged == {f"clark_sub-00_{side}_t2": (expected,) for side in SIDES}
    number = number_classes(collection.class_names, []).table(collection.cases[0], (0, 1, 2, 3))
    assert (number[1], number[3]) == (labels["DG"], labels["CA1"])
    assert number[2] in expected


def test_fields_that_are_merged_in_two_ways_are_two_groups_of_labels(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    make_subjects(tmp_path / "other", 1)
    other = {**CLARK, "path": "other", "ca_type": "12/3", "labels_names": {1: "DG", 2: "CA1/2", 3: "CA3"}}
    collection = read(tmp_path, {"clark": COARSE, "other": other})
    labels, manager = label_manager(collection)
    merged = read_merged_classes({"merged_classes": merged_of(collection)}, manager)
    groups = {case: {tuple(sorted(group)) for group in of_case} for case, of_case in merged.items()}
    assert groups["clark_sub-00_left_t2"] == {tuple(sorted((labels["CA2"], labels["CA3"])))}
    assert groups["other_sub-00_left_t2"] == {tuple(sorted((labels["CA1"], labels["CA2"])))}


def test_the_loss_reads_the_merged_classes_of_the_imported_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(folder, str(tmp_path / folder))
    for name, values in (("clark", (0, 1, 2, 3)), ("fine", (0, 1, 2, 3, 4))):
        for side in SIDES:
            write_scan(tmp_path / name / "s1", f"t2w_{side}.nii.gz", f"t2w_{side}_seg.nii.gz", values)
    collection = read(tmp_path, {"clark": COARSE, "fine": FINE})
    import_dataset("patterns", str(tmp_path), collection, ImportOptions(1, "Hippo"))
    folder = tmp_path / "nnUNet_raw" / "Dataset001_Hippo"
    content = json.loads((folder / "dataset.json").read_text())
    labels = content["labels"]
    merged = read_merged_classes(content, LabelManager(labels, None))
    group = tuple(sorted((labels["CA2"], labels["CA3"])))
    assert merged == {f"clark_s1_{side}_t2": (group,) for side in SIDES}
    source = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "clark/s1/t2w_left_seg.nii.gz")))
    made = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr/clark_s1_left_t2.nii.gz")))
    np.testing.assert_array_equal(np.isin(made, group), source == 2)
    np.testing.assert_array_equal(made == labels["CA1"], source == 3)


def test_the_loss_to_train_with_is_named_where_classes_are_merged(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    make_subjects(tmp_path / "fine", 1)
    remarks = read(tmp_path, {"clark": COARSE, "fine": FINE}).remarks
    assert remarks == ("2 cases have merged classes (CA2 and CA3): train with --set loss=marginal",)


def test_a_class_that_no_data_set_divides_stays_one_class(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    collection = read(tmp_path, {"clark": COARSE})
    assert collection.class_names == ("DG", "CA2/3", "CA1")
    assert not any(case.merged for case in collection.cases)


# Splits


@pytest.mark.parametrize("keys", [{}, {"train_ratio": 1}, {"train_ratio": 1.0, "replace": False, "k_sample": None}])
def test_without_a_ratio_five_folds_divide_the_subjects(keys: dict[str, Any], tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 10)
    collection = read(tmp_path, **keys)
    assert collection.splits is not None
    assert len(collection.splits) == 5
    validated = [name for fold in collection.splits for name in fold["val"]]
    assert sorted(validated) == sorted(case.name for case in collection.cases)
    for fold in collection.splits:
        assert not set(subjects(collection, fold["train"])) & set(subjects(collection, fold["val"]))
        assert len(fold["train"]) + len(fold["val"]) == 20


@pytest.mark.parametrize(
    ("ratio", "num_subjects", "num_validation"), [(0.8, 10, 2), (0.9, 10, 1), (0.95, 4, 1), (0.01, 4, 3), (0.5, 3, 2)]
)
def test_the_ratio_is_that_of_subjects_with_one_at_least_on_either_side(
    ratio: float, num_subjects: int, num_validation: int, tmp_path: Path
) -> None:
    make_subjects(tmp_path / "clark", num_subjects)
    collection = read(tmp_path, train_ratio=ratio)
    assert collection.splits is not None
    (fold,) = collection.splits
    train, val = subjects(collection, fold["train"]), subjects(collection, fold["val"])
    assert (len(train), len(val)) == (num_subjects - num_validation, num_validation)
    assert not set(train) & set(val)
    assert (len(fold["train"]), len(fold["val"])) == (2 * len(train), 2 * len(val))
    assert read(tmp_path, train_ratio=ratio).splits == collection.splits


def test_a_single_subject_is_not_divided(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    assert read(tmp_path, train_ratio=0.9).splits is None


def test_k_sample_draws_so_many_training_subjects(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 10)
    collection = read(tmp_path, train_ratio=0.8, k_sample=3)
    assert collection.splits is not None
    (fold,) = collection.splits
    assert (len(fold["train"]), len(set(fold["train"])), len(fold["val"])) == (6, 6, 4)
    whole = read(tmp_path, train_ratio=0.8).splits
    assert whole is not None
    assert fold["val"] == whole[0]["val"]
    assert set(fold["train"]) < set(whole[0]["train"])


@pytest.mark.parametrize("keys", [{"train_ratio": 1}, {}])
def test_what_is_not_drawn_validates_where_there_is_no_ratio(keys: dict[str, Any], tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 6)
    for more in ({"replace": True}, {"k_sample": 4}, {"replace": True, "k_sample": 3}):
        collection = read(tmp_path, **keys, **more)
        assert collection.splits is not None
        (fold,) = collection.splits
        assert set(fold["train"]) | set(fold["val"]) == {case.name for case in collection.cases}
        assert not set(fold["train"]) & set(fold["val"])
        assert len(fold["train"]) == 2 * more.get("k_sample", 6)


def test_a_subject_drawn_twice_stands_twice_with_all_its_cases(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 4)
    collection = read(tmp_path, train_ratio=0.75, replace=True, k_sample=12)
    assert collection.splits is not None
    (fold,) = collection.splits
    times = Counter(fold["train"])
    assert sum(times.values()) == 24
    assert max(times.values()) > 1
    for i in range(4):
        left, right = (f"clark_sub-{i:02d}_{side}_t2" for side in SIDES)
        assert times[left] == times[right]
    assert not set(times) & set(fold["val"])


def test_nnunet_draws_a_case_that_stands_twice_in_the_split_twice_as_often() -> None:
    """Stock nnU-Net's data set and its data loader, as its trainer makes them of a fold of splits_final.json."""
    data = nnUNetDatasetBlosc2("nowhere", ["a", "b", "b"])
    loader = nnUNetDataLoader(data, 3000, (4, 4, 4), (4, 4, 4), LabelManager({"background": 0, "x": 1}, None))
    np.random.seed(0)
    times = Counter(loader.get_indices())
    assert times["b"] / times["a"] == pytest.approx(2, rel=0.15)


def test_train_on_all_trains_on_the_validation_subjects_too(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 5)
    collection = read(tmp_path, train_ratio=0.8, train_on_all=True)
    assert collection.splits is not None
    (fold,) = collection.splits
    assert fold["train"] == sorted(case.name for case in collection.cases)
    assert len(fold["val"]) == 2


def test_indices_name_the_cases_in_the_order_of_the_collection(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 4)
    names = [case.name for case in read(tmp_path).cases]  # 0 to 3 left, 4 to 7 right
    collection = read(tmp_path, train_val_test_idx=[[0, 4], [5, 1], [2, 6]], train_ratio=0.5).checked()
    assert not problems(collection)
    parts = {case.name: case.part for case in collection.cases}
    expected = dict(zip((0, 4, 1, 5, 2, 6), (TRAIN, TRAIN, VAL, VAL, TEST, TEST), strict=True))
    assert parts == {names[i]: part for i, part in expected.items()}
    assert collection.splits == [{"train": [names[0], names[4]], "val": [names[1], names[5]]}]
    assert collection.remarks == (
        "train_val_test_idx leave out 2 cases",
        "train_ratio (0.5) is not used: train_val_test_idx say who validates",
    )


def test_of_the_subjects_that_indices_name_those_that_are_not_drawn_are_remarked_on(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 4)
    collection = read(tmp_path, train_val_test_idx=[[0, 1, 2, 4, 5, 6], [3, 7], []], k_sample=1)
    assert collection.splits is not None
    assert len(collection.splits[0]["train"]) == 2  # left and right
    assert collection.remarks == (
        "k_sample draws 1 of the 3 subjects that train_val_test_idx name for training: the others are in no fold",
    )


def test_indices_without_a_training_case_are_refused(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 2)
    with pytest.raises(UserError, match=r"^train_val_test_idx: cases are for validation, and none for training"):
        read(tmp_path, train_val_test_idx=[[], [0, 1], [2, 3]])


def test_cases_keep_their_index_when_others_are_left_out(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 4)
    names = [case.name for case in read(tmp_path).cases]
    collection = read(tmp_path, train_val_test_idx=[[1, 5], [7, 3], []])
    assert {case.index: case.name for case in collection.cases} == {i: names[i] for i in (1, 3, 5, 7)}


def test_indices_that_divide_a_subject_are_a_problem_of_its_cases(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 2)
    collection = read(tmp_path, train_val_test_idx=[[0, 1], [2], [3]]).checked()
    assert {name: of_case[0] for name, of_case in problems(collection).items()} == {
        "clark_sub-00_left_t2": "subject clark sub-00 is in train and in val",
        "clark_sub-00_right_t2": "subject clark sub-00 is in train and in val",
        "clark_sub-01_left_t2": "subject clark sub-01 is in test and in train",
        "clark_sub-01_right_t2": "subject clark sub-01 is in test and in train",
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train_ratio": 0}, r"^train_ratio is 0, and must be above 0 and at most 1$"),
        ({"train_ratio": 1.5}, r"^train_ratio is 1\.5"),
        ({"train_ratio": -0.5}, r"^train_ratio is -0\.5"),
        ({"train_ratio": float("nan")}, r"^train_ratio is nan"),
        ({"train_ratio": "most"}, r"^train_ratio is 'most'"),
        ({"train_ratio": True}, r"^train_ratio is True"),
        ({"train_ratio": 0.5, "k_sample": 0}, r"^k_sample is 0, and must be a whole number above 0, or null$"),
        ({"train_ratio": 0.5, "k_sample": 1.5}, r"^k_sample is 1\.5"),
        ({"train_ratio": 0.5, "k_sample": True}, r"^k_sample is True"),
        (
            {"train_ratio": 0.5, "k_sample": 3},
            r"^k_sample is 3, but there are 2 subjects to draw from: give at most that, or replace: tr",
        ),
        ({"replace": "no"}, r"^replace is 'no', and must be true or false$"),
        ({"train_on_all": "False"}, r"^train_on_all is 'False', and must be true or false$"),
        ({"train_val_test_idx": [[0], [1]]}, r"^train_val_test_idx must be three lists of whole numbers"),
        ({"train_val_test_idx": [0, 1, 2]}, r"^train_val_test_idx must be three lists"),
        ({"train_val_test_idx": [[0], [1], None]}, r"^train_val_test_idx must be three lists"),
        ({"train_val_test_idx": [["a"], [1], []]}, r"^train_val_test_idx must be three lists"),
        ({"train_val_test_idx": [[0], [1.0], []]}, r"^train_val_test_idx must be three lists"),
        ({"train_val_test_idx": "012"}, r"^train_val_test_idx must be three lists"),
        ({"train_val_test_idx": [[0], [8], []]}, r"^train_val_test_idx name case 8, and there are 8 \(0 to 7\)$"),
        ({"train_val_test_idx": [[0], [-1], []]}, r"^train_val_test_idx name case -1, and there are 8"),
        ({"train_val_test_idx": [[0, 1], [1], []]}, r"^train_val_test_idx name case 1 in train and in val$"),
        ({"train_val_test_idx": [[0], [1], [0]]}, r"^train_val_test_idx name case 0 in train and in test$"),
    ],
)
def test_a_split_that_cannot_be_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 4)
    with pytest.raises(UserError, match=message):
        read(tmp_path, **keys)


# Files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere"}, r"^there is no folder .*/nowhere, the path of clark$"),
        ({"path": None}, r"^the data set clark needs a path$"),
        ({"patterns": None}, r"^the data set clark needs patterns"),
        ({"patterns": {}}, r"^the data set clark needs patterns"),
        ({"patterns": {"left": "*.nii.gz"}}, r"^the pattern left of clark needs mri and label"),
        ({"patterns": {"left": {"mri": "*.nii.gz"}}}, r"^the pattern left of clark needs mri and label"),
        (
            {"patterns": {"left": {**PATTERNS["left_t2"], "mask": "m.nii.gz"}}},
            r"^the pattern left of clark needs mri and label, and nothing else$",
        ),
        (
            {"patterns": {**PATTERNS, "flair": {"mri": "**/flair.nii.gz", "label": "seg.nii.gz"}}},
            r"^the pattern flair of clark matches no file: .*/clark/\*\*/flair\.nii\.gz$",
        ),
        ({"patterns": {"left": {"mri": "/data/*.nii.gz", "label": "x"}}}, r"^the pattern '/data/\*\.nii\.gz' cannot"),
        ({"patterns": {"left": {"mri": "**.nii.gz", "label": "x"}}}, r"^the pattern '\*\*\.nii\.gz' cannot be used"),
        ({"patterns": {"left": {**PATTERNS["left_t2"], "label": ""}}}, r"^the pattern '' cannot be used below"),
        ({"labels": None}, r"^the data set clark needs labels,"),
        ({"labels": {1: 4}}, r"^labels of clark lead to 4, which labels_names do not name$"),
        ({"labels": {"one": 1}}, r"^labels and labels_names of clark need whole numbers: .*'one'$"),
        ({"labels": {1: 1.7}}, r"^labels and labels_names of clark need whole numbers: .*'1\.7'$"),
        ({"labels": {1: None}}, r"^labels and labels_names of clark need whole numbers"),
        ({"labels_names": None}, r"^the data set clark needs labels_names"),
        ({"labels_names": {1: "DG", 2: "CA1", 3: "DG"}}, r"^labels_names of clark have DG twice$"),
        ({"ca_type": "1/24"}, r"^ca_type of clark is '1/24'"),
        ({"ca_type": 12}, r"^ca_type of clark says that CA1 and CA2 are one class, but labels_names have none"),
        ({"ca_type": "1/2/3"}, r"^labels_names of clark have CA2/3, which is no class of its ca_type$"),
        ({"subject": "sub[0-9"}, r"^subject of clark is 'sub\[0-9', which is no regular expression: unterminated"),
        ({"subjects": "sub"}, r"^the data set clark has an unknown key subjects; there are path, .*, subject$"),
        ({"label_names": NAMES}, r"^the data set clark has an unknown key label_names; there are path, ca_type, "),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    with pytest.raises(UserError, match=message):
        read(tmp_path, {"clark": {**CLARK, **change}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"datasets\.yaml needs datasets"),
        ("main_path: /data\n", r"datasets\.yaml needs datasets"),
        ("datasets: {}\n", r"datasets\.yaml needs datasets"),
        ("datasets: {clark: null}\n", r"^the data set clark needs path, ca_type, patterns, labels, labels_names$"),
        ("- a\n- b\n", r"datasets\.yaml holds no keys and values$"),
        ("datasets: [\n", r"datasets\.yaml cannot be read as YAML: "),
        ("main_path: ${nothing}\ndatasets: {}\n", r"datasets\.yaml cannot be read as YAML: .*nothing"),
        ("main_path: ???\ndatasets: {}\n", r"datasets\.yaml cannot be read as YAML: .*main_path"),
        ("main_path: ${hydra:runtime.cwd}\ndatasets: {}\n", r"datasets\.yaml cannot be read as YAML: .*hydra"),
        ("datasets: {a: {}}\ndatasets: {b: {}}\n", r"datasets\.yaml cannot be read as YAML: .*duplicate key datasets"),
        ("train_ration: .9\ndatasets: {}\n", r"datasets\.yaml has an unknown key train_ration; there are main_path, "),
    ],
)
def test_what_is_wrong_with_the_file_is_said(text: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "datasets.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=message):
        read_patterns(config)


def read_text(folder: Path, text: str) -> Collection:
    """A file that begins with these lines, to the path of `clark`, and goes on with its other keys."""
    entry = yaml.safe_dump({key: value for key, value in CLARK.items() if key != "path"}, default_flow_style=True)
    config = folder / "datasets.yaml"
    config.write_text(f"{text}\n    <<: {entry}")
    return read_patterns(config)


@pytest.mark.parametrize(
    ("main", "path"),
    [
        ("{folder}", "${{main_path}}/clark"),
        ("${{oc.env:DATA}}", "clark"),
        ("~/", "clark"),
        ("/nowhere", "~/clark"),
        ("{folder}", "/clark"),
        ("{folder}/", "/clark/"),
    ],
)
def test_paths_may_be_written_in_all_ways_that_hsf_takes_and_in_the_home_folder(
    main: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    make_subjects(tmp_path / "clark", 1)
    main, path = (text.format(folder=tmp_path) for text in (main, path))
    collection = read_text(tmp_path, f'main_path: "{main}"\ndatasets:\n  clark:\n    path: "{path}"')
    assert [Path(case.images[0].where) for case in collection.cases] == [
        tmp_path / f"clark/sub-00/t2w_{side}.nii.gz" for side in SIDES
    ]


def test_keys_that_are_not_used_may_refer_to_what_is_not_there(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    unused = "output_path: ${hydra:runtime.cwd}/models\nbatch_size: ${models.batch}\nnum_workers: ???\n"
    collection = read_text(tmp_path, f"{unused}main_path: {tmp_path}\ndatasets:\n  clark:\n    path: clark")
    assert len(collection.cases) == 2


def test_what_macos_notes_beside_files_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path / "clark/s1", "a_t2.nii.gz", "._a_t2.nii.gz", "a_seg.nii.gz", "._a_seg.nii.gz")
    patterns = {"t2": {"mri": "**/*_t2.nii.gz", "label": "*_seg.nii.gz"}}
    collection = read(tmp_path, {"clark": {**CLARK, "patterns": patterns}})
    assert [case.images[0].where for case in collection.cases] == [f"{tmp_path}/clark/s1/a_t2.nii.gz"]


def test_two_folders_whose_names_become_one_are_named_with_what_to_do(tmp_path: Path) -> None:
    for subject in ("s 1", "s+1"):
        touch(tmp_path / "clark" / subject, "t2w_left.nii.gz", "t2w_left_seg.nii.gz")
    found = problems(read(tmp_path, {"clark": {**CLARK, "patterns": LEFT}}).checked())
    assert list(found.values()) == [
        ("the name clark_s-1_left_t2w_left stands 2 times in the source: rename its folder, or the pattern",)
    ]


def test_a_file_that_is_not_there_or_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no file .*/missing\.yaml$"):
        read_patterns(tmp_path / "missing.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"image\.yaml cannot be read as YAML"):
        read_patterns(tmp_path / "image.yaml")


def test_an_image_without_a_label_or_with_two_is_a_problem_of_its_own(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 3)
    (tmp_path / "clark/sub-00/t2w_left_seg.nii.gz").unlink()
    touch(tmp_path / "clark/sub-01", "t2w_left_new_seg.nii.gz")
    patterns = {"left": {"mri": "**/t2w_left.nii.gz", "label": "t2w_left*_seg.nii.gz"}}
    assert problems(read(tmp_path, {"clark": {**CLARK, "patterns": patterns}})) == {
        "clark_sub-00_left": (f"its label pattern matches no file: {tmp_path}/clark/sub-00/t2w_left*_seg.nii.gz",),
        "clark_sub-01_left": (
            "its label pattern matches 2 files (t2w_left_new_seg.nii.gz, t2w_left_seg.nii.gz): "
            f"{tmp_path}/clark/sub-01/t2w_left*_seg.nii.gz",
        ),
    }


def test_an_image_that_two_patterns_match_is_a_problem(tmp_path: Path) -> None:
    make_subjects(tmp_path / "clark", 1)
    patterns = {**PATTERNS, "all": {"mri": "**/t2w_*t.nii.gz", "label": "t2w_left_seg.nii.gz"}}
    found = problems(read(tmp_path, {"clark": {**CLARK, "patterns": patterns}}))
    assert len(found) == 4
    assert "t2w_left.nii.gz is matched by the patterns left_t2 and all" in found["clark_sub-00_left_t2"][0]


def test_a_label_map_that_an_image_pattern_matches_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path / "clark/s1", "t2.nii.gz", "t2_seg.nii.gz")
    touch(tmp_path / "clark/s2", "t2.nii.gz", "t2_seg.nii.gz")
    patterns = {"t2": {"mri": "**/*.nii.gz", "label": "*_seg.nii.gz"}}
    found = problems(read(tmp_path, {"clark": {**CLARK, "patterns": patterns}}))
    assert sorted(found) == ["clark_s1_t2_t2_seg", "clark_s2_t2_t2_seg"]
    assert "its label pattern matches the image itself" in found["clark_s1_t2_t2_seg"][0]


def test_the_label_of_one_subject_is_not_that_of_another(tmp_path: Path) -> None:
    touch(tmp_path / "clark", "s1_left.nii.gz", "s2_left.nii.gz", "s1_left_seg.nii.gz")
    patterns = {"left": {"mri": "*_left.nii.gz", "label": "*_left_seg.nii.gz"}}
    found = problems(read(tmp_path, {"clark": {**CLARK, "patterns": patterns}}))
    assert found == {"clark_s2_left": (f"its label is that of s1 too: {tmp_path}/clark/s1_left_seg.nii.gz",)}


def test_a_file_that_is_no_image_is_a_problem_of_its_case(tmp_path: Path) -> None:
    touch(tmp_path / "clark/s1", "t2.txt", "seg.nii.gz")
    patterns = {"t2": {"mri": "**/t2.txt", "label": "seg.nii.gz"}}
    ((problem,),) = problems(read(tmp_path, {"clark": {**CLARK, "patterns": patterns}})).values()
    assert "t2.txt ends like no image that can be read" in problem


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r" is a folder: give the YAML file in it$"):
        read_patterns(tmp_path)
