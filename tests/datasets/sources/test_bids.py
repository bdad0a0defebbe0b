"""`bids`: small BIDS datasets on disk, and which of their files become which case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.datasets.checking import CheckJob, Finding, check_case
from nnunetv2_ext.datasets.collection import TRAIN, Case, Collection
from nnunetv2_ext.datasets.labelling import number_classes
from nnunetv2_ext.datasets.sources.bids import BidsQuery, parse_entities, read_bids
from nnunetv2_ext.errors import UserError

DESCRIPTION = {"Name": "Brains", "BIDSVersion": "1.8.0"}
OF_DERIVATIVES = {**DESCRIPTION, "DatasetType": "derivative", "GeneratedBy": [{"Name": "manual"}]}
MANUAL = "derivatives/manual"


def add(root: Path, *names: str, values: tuple[int, ...] = (0, 1, 2)) -> None:
    """NIfTI files of 2 x 3 x 4 voxels; `sub-01_T1w` lies where BIDS has it."""
    for name in names:
        folder, _, file = name.rpartition("/")
        entities = dict(part.split("-") for part in file.split(".")[0].split("_") if "-" in part)
        place = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
        path = root.joinpath(folder, *place, "anat", file if ".nii" in file else f"{file}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(np.resize(np.uint8(values), (2, 3, 4))), str(path))


def dataset(root: Path, *names: str) -> Path:
    """Images (`sub-01_T1w`) and label maps (`derivatives/manual/sub-01_dseg`), described as BIDS wants it."""
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(DESCRIPTION))
    add(root, *names)
    if (root / MANUAL).is_dir():
        (root / MANUAL / "dataset_description.json").write_text(json.dumps(OF_DERIVATIVES))
    return root


def plain(root: Path, *subjects: str) -> Path:
    """One scan and one label map for each subject, without sessions."""
    return dataset(root, *(name for s in subjects for name in (f"sub-{s}_T1w", f"{MANUAL}/sub-{s}_dseg")))


def files(root: Path, case: Case) -> list[str]:
    """Of its images and its label map, below the root and without `.nii.gz`."""
    volumes = [*case.images, *([case.label] if case.label else [])]
    return [volume.files[0].relative_to(root).as_posix().removesuffix(".nii.gz") for volume in volumes]


def problems(collection: Collection) -> dict[str, tuple[str, ...]]:
    return {case.name: case.problems for case in collection.checked().cases if case.problems}


def finding(case: Case) -> Finding:
    return check_case(CheckJob(case, resample_labels=False))


def test_an_image_without_sessions_has_the_label_map_of_its_subject(tmp_path: Path) -> None:
    collection = read_bids(plain(tmp_path, "01", "02"), BidsQuery())
    assert collection.channel_names == ("T1w",)
    assert [(case.name, case.subject, case.part, case.row) for case in collection.cases] == [
        ("sub-01", "01", TRAIN, "sub-01/anat/sub-01_T1w.nii.gz"),
        ("sub-02", "02", TRAIN, "sub-02/anat/sub-02_T1w.nii.gz"),
    ]
    assert [files(tmp_path, case) for case in collection.cases] == [
        [f"sub-{s}/anat/sub-{s}_T1w", f"{MANUAL}/sub-{s}/anat/sub-{s}_dseg"] for s in ("01", "02")
    ]
    assert not problems(collection)
    assert finding(collection.cases[0]).values == (0, 1, 2)


def test_sessions_are_cases_of_one_subject(tmp_path: Path) -> None:
    names = [f"sub-{s}_ses-{t}" for s in ("01", "02") for t in ("pre", "post")]
    root = dataset(tmp_path, *(f"{n}_T1w" for n in names), *(f"{MANUAL}/{n}_dseg" for n in names))
    collection = read_bids(root, BidsQuery())
    assert {case.name: case.subject for case in collection.cases} == {name: name[4:6] for name in names}
    assert not problems(collection)
    for case in collection.cases:
        assert case.label is not None
        assert case.label.files[0].name == f"{case.name}_dseg.nii.gz"


def test_runs_have_their_own_label_maps_whatever_zeros_their_numbers_have(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_run-1_T1w", "sub-01_run-2_T1w")
    add(root, f"{MANUAL}/sub-01_run-01_dseg", f"{MANUAL}/sub-01_run-02_dseg")
    collection = read_bids(root, BidsQuery())
    assert {case.name: files(root, case)[1][-11:] for case in collection.cases} == {
        "sub-01_run-1": "run-01_dseg", "sub-01_run-2": "run-02_dseg",
    }  # fmt: skip


def test_a_label_map_that_names_no_run_is_that_of_the_image_that_names_none(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_T1w", "sub-01_acq-hi_T1w")
    add(root, f"{MANUAL}/sub-01_dseg", f"{MANUAL}/sub-01_acq-hi_dseg")
    collection = read_bids(root, BidsQuery())
    assert not problems(collection)
    assert {case.name: files(root, case)[1].rpartition("/")[2] for case in collection.cases} == {
        "sub-01": "sub-01_dseg", "sub-01_acq-hi": "sub-01_acq-hi_dseg",
    }  # fmt: skip


def test_suffixes_are_channels_in_their_order(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_T1w", "sub-01_T2w", "sub-01_FLAIR", f"{MANUAL}/sub-01_dseg")
    collection = read_bids(root, BidsQuery(("T2w", "T1w")))
    assert collection.channel_names == ("T2w", "T1w")
    assert [name.rpartition("/")[2] for name in files(root, collection.cases[0])] == [
        "sub-01_T2w", "sub-01_T1w", "sub-01_dseg",
    ]  # fmt: skip


def test_channels_are_of_the_same_session(tmp_path: Path) -> None:
    sessions = [f"sub-01_ses-{t}" for t in ("a", "b")]
    root = dataset(tmp_path, *(f"{s}_{suffix}" for s in sessions for suffix in ("T1w", "T2w")))
    add(root, *(f"{MANUAL}/{s}_dseg" for s in sessions))
    for case in read_bids(root, BidsQuery(("T1w", "T2w"))).cases:
        assert [case.name in name for name in files(root, case)] == [True, True, True]


def test_a_channel_that_a_subject_lacks_is_its_problem_alone(tmp_path: Path) -> None:
    root = plain(tmp_path, "01", "02")
    add(root, "sub-02_T2w")
    assert problems(read_bids(root, BidsQuery(("T1w", "T2w")))) == {
        "sub-01": ("there is no file with suffix T2w for it",)
    }


def test_a_label_map_that_a_subject_lacks_is_its_problem_alone(tmp_path: Path) -> None:
    root = plain(tmp_path, "01", "02")
    add(root, "sub-03_T1w")
    assert problems(read_bids(root, BidsQuery())) == {"sub-03": ("there is no file with suffix dseg for it",)}


@pytest.mark.parametrize("key", ["ses", "run", "acq"])
def test_a_label_map_of_another_scan_is_not_taken(key: str, tmp_path: Path) -> None:
    root = dataset(tmp_path, f"sub-01_{key}-1_T1w", f"sub-01_{key}-2_T1w", f"{MANUAL}/sub-01_{key}-1_dseg")
    assert list(problems(read_bids(root, BidsQuery()))) == [f"sub-01_{key}-2"]


def test_a_label_map_of_no_session_is_not_that_of_one(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_ses-a_T1w", f"{MANUAL}/sub-01_dseg")
    assert list(problems(read_bids(root, BidsQuery()))) == ["sub-01_ses-a"]


def test_a_label_map_that_names_a_run_is_not_that_of_an_image_that_names_none(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_T1w", "sub-01_run-2_T1w", f"{MANUAL}/sub-01_run-2_dseg")
    assert list(problems(read_bids(root, BidsQuery()))) == ["sub-01"]


def test_a_label_map_that_names_no_run_is_that_of_an_image_that_names_one(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_run-1_T1w", f"{MANUAL}/sub-01_dseg")
    assert not problems(read_bids(root, BidsQuery()))


def test_several_label_maps_are_a_problem_until_one_is_chosen_by_its_entities(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    (root / MANUAL / "sub-01/anat/sub-01_dseg.nii.gz").unlink()
    add(root, f"{MANUAL}/sub-01_desc-auto_dseg", f"{MANUAL}/sub-01_desc-expert_dseg")
    ((problem,),) = problems(read_bids(root, BidsQuery())).values()
    assert problem == (
        "2 files with suffix dseg fit it: sub-01_desc-auto_dseg.nii.gz, sub-01_desc-expert_dseg.nii.gz; "
        "choose by entities"
    )
    chosen = read_bids(root, BidsQuery(label_entities={"desc": "expert"}))
    assert not problems(chosen)
    assert files(root, chosen.cases[0])[1].endswith("sub-01_desc-expert_dseg")


def test_a_mask_is_asked_for_by_its_suffix(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    add(root, f"{MANUAL}/sub-01_desc-lesion_mask")
    (case,) = read_bids(root, BidsQuery(label_suffix="mask")).cases
    assert files(root, case)[1].endswith("sub-01_desc-lesion_mask")


def test_a_file_that_lies_packed_and_unpacked_is_a_problem_of_its_case(tmp_path: Path) -> None:
    root = plain(tmp_path, "01", "02", "03")
    add(root, "sub-01_T1w.nii", f"{MANUAL}/sub-02_dseg.nii")
    found = problems(read_bids(root, BidsQuery()))
    assert found == {
        "sub-01": ("the name stands 2 times in the source",),
        "sub-02": (
            "2 files with suffix dseg fit it: sub-02_dseg.nii, sub-02_dseg.nii.gz; choose by entities",
        ),
    }  # fmt: skip


def test_an_image_that_is_not_packed_is_read_as_well(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_T1w.nii", f"{MANUAL}/sub-01_dseg.nii")
    (case,) = read_bids(root, BidsQuery()).cases
    assert case.name == "sub-01"
    assert finding(case).problems == ()


# Filters


def test_subjects_and_sessions_are_chosen(tmp_path: Path) -> None:
    names = [f"sub-{s}_ses-{t}" for s in ("01", "02", "03") for t in ("pre", "post")]
    root = dataset(tmp_path, *(f"{n}_T1w" for n in names), *(f"{MANUAL}/{n}_dseg" for n in names))
    query = BidsQuery(subjects=("01", "03"), sessions=("post",))
    assert [case.name for case in read_bids(root, query).cases] == ["sub-01_ses-post", "sub-03_ses-post"]


def test_entities_are_compared_whole(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_acq-hi_T1w", "sub-01_acq-high_T1w", f"{MANUAL}/sub-01_dseg")
    assert [case.name for case in read_bids(root, BidsQuery(entities={"acq": "hi"})).cases] == ["sub-01_acq-hi"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (BidsQuery(subjects=("01", "09")), r"has no subject 09; it has 01, 02$"),
        (BidsQuery(subjects=("1",)), r"has no subject 1; it has 01, 02$"),
        (BidsQuery(sessions=("pre",)), r"has no session pre; it has none$"),
        (BidsQuery(("T1W",)), r"has no image that ends in _T1W\.nii\.gz as asked for$"),
        (BidsQuery(entities={"acq": "hi"}), r"has no image that ends in _T1w\.nii\.gz as asked for$"),
        (BidsQuery(label_suffix="mask"), r"manual has no label map that ends in _mask\.nii\.gz as asked for$"),
        (BidsQuery(label_entities={"desc": "x"}), r"manual has no label map that ends in _dseg\.nii\.gz as asked for$"),
        (BidsQuery(derivatives="auto"), r"^there is no folder .*derivatives/auto \(-derivatives\)$"),
    ],
)
def test_what_a_dataset_does_not_have_is_named(query: BidsQuery, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_bids(plain(tmp_path, "01", "02"), query)


def test_entities_are_keys_and_values() -> None:
    assert parse_entities(["acq=highres", "run=1"]) == {"acq": "highres", "run": "1"}


@pytest.mark.parametrize("text", ["acq", "acq=", "=x", "acq=high res", "acq-highres", "Acq=x", "acq=a_b"])
def test_what_is_no_entity_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="an entity is KEY=VALUE"):
        parse_entities([text])


# Folders


def test_a_folder_without_a_description_is_no_dataset(tmp_path: Path) -> None:
    add(tmp_path, "sub-01_T1w", f"{MANUAL}/sub-01_dseg")
    with pytest.raises(UserError, match=r"is no BIDS dataset: it has no dataset_description\.json$"):
        read_bids(tmp_path, BidsQuery())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no folder .*/missing$"):
        read_bids(tmp_path / "missing", BidsQuery())


def test_derivatives_need_no_description(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    (root / MANUAL / "dataset_description.json").unlink()
    collection = read_bids(root, BidsQuery())
    assert not problems(collection)
    assert files(root, collection.cases[0])[1] == f"{MANUAL}/sub-01/anat/sub-01_dseg"


def test_label_maps_may_lie_in_derivatives_without_a_pipeline(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_T1w", "sub-02_T1w", "derivatives/sub-01_dseg", "derivatives/sub-02_dseg")
    collection = read_bids(root, BidsQuery())
    assert [files(root, case)[1] for case in collection.cases] == [
        f"derivatives/sub-{s}/anat/sub-{s}_dseg" for s in ("01", "02")
    ]


def test_label_maps_may_lie_without_a_folder_for_their_kind(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    labels = root / MANUAL / "sub-01"
    (labels / "anat" / "sub-01_dseg.nii.gz").rename(labels / "sub-01_dseg.nii.gz")
    assert not problems(read_bids(root, BidsQuery()))


def test_of_several_pipelines_one_is_chosen(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    add(root, "derivatives/auto/sub-01_dseg")
    with pytest.raises(UserError, match=r"has auto, manual: say which has the labels \(-derivatives\)$"):
        read_bids(root, BidsQuery())
    (case,) = read_bids(root, BidsQuery(derivatives="auto")).cases
    assert files(root, case)[1] == "derivatives/auto/sub-01/anat/sub-01_dseg"


def test_a_pipeline_may_lie_outside_of_the_dataset(tmp_path: Path) -> None:
    root = dataset(tmp_path / "raw", "sub-01_T1w")
    add(tmp_path / "labels", "sub-01_dseg")
    (case,) = read_bids(root, BidsQuery(derivatives=str(tmp_path / "labels"))).cases
    assert case.label is not None
    assert case.label.where == f"{tmp_path}/labels/sub-01/anat/sub-01_dseg.nii.gz"


@pytest.mark.parametrize("empty", [False, True])
def test_a_dataset_without_derivatives_is_refused(empty: bool, tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_T1w")
    if empty:
        (root / "derivatives").mkdir()
    with pytest.raises(UserError, match=r"derivatives has no pipeline with label maps$"):
        read_bids(root, BidsQuery())


def test_hidden_folders_are_no_pipelines(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    (root / "derivatives" / ".git").mkdir()
    assert len(read_bids(root, BidsQuery()).cases) == 1


@pytest.mark.parametrize("folder", ["sourcedata", "code", "derivatives/manual/sourcedata", ".datalad"])
def test_folders_that_bids_keeps_for_other_things_hold_no_cases(folder: str, tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    add(root, f"{folder}/sub-01_T1w", f"{folder}/sub-01_dseg", f"{folder}/sub-02_T1w", f"{folder}/sub-02_dseg")
    collection = read_bids(root, BidsQuery())
    assert not problems(collection)
    assert [files(root, case) for case in collection.cases] == [
        ["sub-01/anat/sub-01_T1w", f"{MANUAL}/sub-01/anat/sub-01_dseg"]
    ]


def test_a_template_of_no_subject_is_no_case(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    add(root, "mean_T1w", f"{MANUAL}/mean_dseg")
    collection = read_bids(root, BidsQuery())
    assert [case.name for case in collection.cases] == ["sub-01"]
    assert not problems(collection)


def test_a_dataset_behind_a_link_or_below_a_folder_called_derivatives_is_read(tmp_path: Path) -> None:
    root = tmp_path / "derivatives" / "brains"
    root.parent.mkdir()
    plain(root, "01")
    (tmp_path / "link").symlink_to(root)
    for place in (root, tmp_path / "link"):
        assert not problems(read_bids(place, BidsQuery()))


# Classes


def test_classes_have_the_names_of_the_pipeline_s_table(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    (root / MANUAL / "dseg.tsv").write_text(
        "index\tname\tcolor\n0\tUnknown\t#000\n2\tputamen\t#f00\n1\tcaudate\t#0f0\n"
    )
    collection = read_bids(root, BidsQuery())
    labelling = number_classes(collection.class_names, [(collection.cases[0], (0, 1, 2))])
    assert labelling.table(collection.cases[0], (0, 1, 2)) == {
        0: 0, 1: labelling.numbers["caudate"], 2: labelling.numbers["putamen"],
    }  # fmt: skip
    assert set(labelling.numbers) == {"background", "caudate", "putamen"}


def test_names_that_are_given_go_before_the_table(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    (root / MANUAL / "dseg.tsv").write_text("index\tname\n1\tcaudate\n")
    collection = read_bids(root, BidsQuery(), {1: "lesion", 2: "lesion"})
    assert collection.class_names == ("lesion", "lesion")
    assert finding(collection.cases[0]).problems == ()


def test_the_table_of_segmentations_does_not_name_the_values_of_masks(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    add(root, f"{MANUAL}/sub-01_mask", values=(0, 1))
    (root / MANUAL / "dseg.tsv").write_text("index\tname\n1\tcaudate\n")
    collection = read_bids(root, BidsQuery(label_suffix="mask"))
    assert (collection.class_names, collection.cases[0].classes) == ((), None)


def test_a_value_that_the_table_does_not_name_is_found_in_the_label_map(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    (root / MANUAL / "dseg.tsv").write_text("index\tname\n1\tcaudate\n")
    (problem,) = finding(read_bids(root, BidsQuery()).cases[0]).problems
    assert "sub-01_dseg.nii.gz holds 2, which the labels do not name (they name 1)" in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tlabel\n1\tcaudate\n", r"dseg\.tsv has no column name; it has index, label$"),
        ("name\tindex\ncaudate\t1\n1\tputamen\n", r"dseg\.tsv, line 3: the index is 'putamen', where a whole number"),
        ("index,name\n1,caudate\n", r"dseg\.tsv has no column index and no column name; it has index,name$"),
        ("index\tname\n1.5\tcaudate\n", r"dseg\.tsv, line 2: the index is '1\.5'"),
        ("index\tname\n1\tcaudate\n1\tputamen\n", r"dseg\.tsv, line 3: the index 1 has two names$"),
        ("index\tname\n1\t\n", r"dseg\.tsv, line 2: the index 1 has no name$"),
    ],
)
def test_a_table_of_classes_that_is_mixed_up_is_refused(text: str, message: str, tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    (root / MANUAL / "dseg.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_bids(root, BidsQuery())


def test_several_tables_of_classes_are_refused_unless_names_are_given(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    for name in ("desc-a_dseg.tsv", "desc-b_dseg.tsv"):
        (root / MANUAL / name).write_text("index\tname\n1\tcaudate\n")
    with pytest.raises(UserError, match=r"tables desc-a_dseg\.tsv, desc-b_dseg\.tsv: name the classes \(-labels\)$"):
        read_bids(root, BidsQuery())
    assert len(read_bids(root, BidsQuery(), {1: "a", 2: "b"}).cases) == 1


# Split


@pytest.mark.parametrize(("num_subjects", "num_folds"), [(6, 5), (3, 3), (2, 2)])
def test_a_subject_is_on_one_side_of_every_fold(num_subjects: int, num_folds: int, tmp_path: Path) -> None:
    names = [f"sub-{s:02d}_ses-{t}" for s in range(num_subjects) for t in ("pre", "post")]
    root = dataset(tmp_path, *(f"{n}_T1w" for n in names), *(f"{MANUAL}/{n}_dseg" for n in names))
    splits = read_bids(root, BidsQuery()).splits
    assert splits is not None
    assert len(splits) == num_folds
    assert sorted(name for fold in splits for name in fold["val"]) == sorted(names)
    for fold in splits:
        train, val = ({name[:6] for name in fold[part]} for part in ("train", "val"))
        assert not train & val
        assert sorted(fold["train"] + fold["val"]) == sorted(names)


def test_a_single_subject_is_not_divided(tmp_path: Path) -> None:
    names = ["sub-01_ses-pre", "sub-01_ses-post"]
    root = dataset(tmp_path, *(f"{n}_T1w" for n in names), *(f"{MANUAL}/{n}_dseg" for n in names))
    assert read_bids(root, BidsQuery()).splits is None
