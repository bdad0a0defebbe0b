"""`bids`: small BIDS datasets on disk, and which of their files become which case."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_ext.datasets.checking import CheckJob, Finding, check_case
from nnunetv2_ext.datasets.collection import TEST, TRAIN, Case
from nnunetv2_ext.datasets.labelling import number_classes
from nnunetv2_ext.datasets.sources.bids import read_bids
from nnunetv2_ext.datasets.sources.bids_query import BidsQuery, Channel, Unlabelled, parse_channel
from nnunetv2_ext.errors import UserError
from tests.datasets.sources.bids_datasets import MANUAL, add, dataset, files, plain, problems

T1_AND_T2 = BidsQuery((Channel("T1w"), Channel("T2w")))


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


def test_suffixes_are_channels_in_their_order(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_T1w", "sub-01_T2w", "sub-01_FLAIR", f"{MANUAL}/sub-01_dseg")
    collection = read_bids(root, BidsQuery((Channel("T2w"), Channel("T1w"))))
    assert collection.channel_names == ("T2w", "T1w")
    assert [name.rpartition("/")[2] for name in files(root, collection.cases[0])] == [
        "sub-01_T2w", "sub-01_T1w", "sub-01_dseg",
    ]  # fmt: skip


def test_channels_are_of_the_same_session(tmp_path: Path) -> None:
    sessions = [f"sub-01_ses-{t}" for t in ("a", "b")]
    root = dataset(tmp_path, *(f"{s}_{suffix}" for s in sessions for suffix in ("T1w", "T2w")))
    add(root, *(f"{MANUAL}/{s}_dseg" for s in sessions))
    for case in read_bids(root, T1_AND_T2).cases:
        assert [case.name in name for name in files(root, case)] == [True, True, True]


def test_a_channel_that_a_subject_lacks_is_its_problem_alone(tmp_path: Path) -> None:
    root = plain(tmp_path, "01", "02")
    add(root, "sub-02_T2w")
    ((name, (problem,)),) = problems(read_bids(root, T1_AND_T2)).items()
    assert name == "sub-01"
    assert problem.startswith("there is no T2w image for it: ")


def test_a_label_map_that_a_subject_lacks_is_its_problem_alone(tmp_path: Path) -> None:
    root = plain(tmp_path, "01", "02")
    add(root, "sub-03_T1w")
    assert problems(read_bids(root, BidsQuery())) == {
        "sub-03": (
            "there is no label map for it: -unlabelled skip leaves such images out, -unlabelled test makes them test "
            "cases",
        )
    }


def test_channels_of_one_suffix_are_told_apart_by_entities(tmp_path: Path) -> None:
    root = plain(tmp_path, "01", "02")
    add(root, "sub-01_ce-gd_T1w", "sub-02_ce-gd_T1w")
    for plain_one in ("T1w", "T1w:ce=none"):
        query = BidsQuery((parse_channel(plain_one), parse_channel("T1w:ce=gd")))
        collection = read_bids(root, query)
        assert not problems(collection)
        assert collection.channel_names == ("T1w", "T1w_ce-gd")
        assert not collection.remarks
        assert [[name.rpartition("/")[2] for name in files(root, case)] for case in collection.cases] == [
            [f"sub-{s}_T1w", f"sub-{s}_ce-gd_T1w", f"sub-{s}_dseg"] for s in ("01", "02")
        ]


def test_a_channel_that_was_acquired_differently_is_taken_with_a_remark(tmp_path: Path) -> None:
    names = [f"sub-{s}_acq-{a}" for s in ("01", "02") for a in ("mprage_T1w", "space_T2w")]
    root = dataset(tmp_path, *names, f"{MANUAL}/sub-01_dseg", f"{MANUAL}/sub-02_dseg")
    collection = read_bids(root, T1_AND_T2)
    assert not problems(collection)
    assert [files(root, case)[1] for case in collection.cases] == [
        f"sub-{s}/anat/sub-{s}_acq-space_T2w" for s in ("01", "02")
    ]
    assert collection.remarks == (
        "2 T2w images taken as the best fit that differ in acq from their T1w image "
        "(sub-01_acq-space_T2w.nii.gz with sub-01_acq-mprage_T1w.nii.gz); -suffix T2w:KEY=VALUE chooses others",
    )
    asked_for = BidsQuery((Channel("T1w"), Channel("T2w", {"acq": "space"})))
    assert not read_bids(root, asked_for).remarks


def test_entities_of_a_channel_go_before_those_of_all(tmp_path: Path) -> None:
    names = [f"sub-01_acq-{a}_{suffix}" for a in ("hi", "lo") for suffix in ("T1w", "T2w")]
    root = dataset(tmp_path, *names, f"{MANUAL}/sub-01_dseg")
    query = BidsQuery((Channel("T1w"), Channel("T2w", {"acq": "lo"})), entities={"acq": "hi"})
    (case,) = read_bids(root, query).cases
    assert [name.rpartition("/")[2] for name in files(root, case)] == [
        "sub-01_acq-hi_T1w", "sub-01_acq-lo_T2w", "sub-01_dseg",
    ]  # fmt: skip


def test_names_of_channels_are_given(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    assert read_bids(root, BidsQuery(), channel_names=["CT"]).channel_names == ("CT",)
    with pytest.raises(UserError, match=r"-channels gives 2 names \(CT, PET\) for 1 channel \(T1w\)"):
        read_bids(root, BidsQuery(), channel_names=["CT", "PET"])


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
        "sub-01": (
            "the name sub-01 stands 2 times in the source: remove all but one of these files",
        ),
        "sub-02": (
            "2 label maps fit it, of the same entities (sub-02_dseg.nii, sub-02_dseg.nii.gz): remove all but one",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("image", ["sub-01_T1w.nii", "sub-01_T1w.nii.gz"])
def test_files_that_are_not_packed_are_read_as_well(image: str, tmp_path: Path) -> None:
    root = dataset(tmp_path, image, f"{MANUAL}/sub-01_dseg.nii")
    (case,) = read_bids(root, BidsQuery()).cases
    assert case.name == "sub-01"
    assert finding(case).problems == ()


def test_images_that_are_links_to_nothing_are_found_and_named(tmp_path: Path) -> None:
    """A dataset of DataLad whose files were not fetched."""
    root = plain(tmp_path, "01")
    image = root / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image.unlink()
    image.symlink_to("../../.git/annex/objects/x")
    assert finding(read_bids(root, BidsQuery()).cases[0]).problems == (f"there is no file {image}",)


# Images without a label map


def test_unlabelled_images_are_left_out_if_that_is_wanted(tmp_path: Path) -> None:
    root = dataset(plain(tmp_path, "01", "02"), "sub-03_T1w", "sub-04_ses-a_T1w")
    collection = read_bids(root, BidsQuery(unlabelled=Unlabelled.SKIP))
    assert [case.name for case in collection.cases] == ["sub-01", "sub-02"]
    assert collection.remarks == ("2 images without a label map (sub-03, sub-04_ses-a): left out",)


def test_why_an_image_has_no_label_map_is_said_where_it_is_left_out(tmp_path: Path) -> None:
    root = dataset(plain(tmp_path, "01", "02"), "sub-03_T1w", f"{MANUAL}/sub-03_space-MNI_dseg")
    assert read_bids(root, BidsQuery(unlabelled=Unlabelled.SKIP)).remarks == (
        "1 image without a label map (sub-03): left out (sub-03: sub-03_space-MNI_dseg.nii.gz differs in space, "
        "-label_entities space=MNI takes it nevertheless)",
    )


def test_unlabelled_images_become_test_cases_if_that_is_wanted(tmp_path: Path) -> None:
    root = dataset(plain(tmp_path, "01", "02"), "sub-03_T1w")
    collection = read_bids(root, BidsQuery(unlabelled=Unlabelled.TEST))
    assert not problems(collection)
    assert [(case.name, case.part) for case in collection.cases] == [
        ("sub-01", TRAIN), ("sub-02", TRAIN), ("sub-03", TEST),
    ]  # fmt: skip
    assert files(root, collection.cases[2]) == ["sub-03/anat/sub-03_T1w"]
    assert collection.remarks == ("1 image without a label map (sub-03): 1 test case",)
    assert collection.splits is not None
    assert "sub-03" not in {name for fold in collection.splits for name in fold["train"] + fold["val"]}


def test_no_subject_comes_into_training_and_test_for_want_of_a_label_map(tmp_path: Path) -> None:
    names = [f"sub-01_ses-{t}_T1w" for t in ("pre", "post")]
    root = dataset(tmp_path, *names, "sub-02_T1w", f"{MANUAL}/sub-01_ses-pre_dseg")
    collection = read_bids(root, BidsQuery(unlabelled=Unlabelled.TEST))
    assert not problems(collection)
    assert [(case.name, case.part) for case in collection.cases] == [("sub-01_ses-pre", TRAIN), ("sub-02", TEST)]
    assert collection.remarks == (
        "1 image without a label map (sub-02): 1 test case",
        "1 image without a label map (sub-01_ses-post): left out, as other images of their subjects are for training",
    )


@pytest.mark.parametrize("unlabelled", list(Unlabelled))
def test_an_image_with_several_label_maps_is_a_problem_whatever_becomes_of_those_without(
    unlabelled: Unlabelled, tmp_path: Path
) -> None:
    root = plain(tmp_path, "01", "02")
    add(root, f"{MANUAL}/sub-02_desc-b_dseg")
    assert list(problems(read_bids(root, BidsQuery(unlabelled=unlabelled)))) == ["sub-02"]


def test_a_test_case_needs_all_channels(tmp_path: Path) -> None:
    root = dataset(plain(tmp_path, "01"), "sub-01_T2w", "sub-02_T1w")
    query = BidsQuery(T1_AND_T2.channels, unlabelled=Unlabelled.TEST)
    ((name, (problem,)),) = problems(read_bids(root, query)).items()
    assert name == "sub-02"
    assert problem.startswith("there is no T2w image for it: ")


# Filters


def test_subjects_and_sessions_are_chosen(tmp_path: Path) -> None:
    names = [f"sub-{s}_ses-{t}" for s in ("01", "02", "03") for t in ("pre", "post")]
    root = dataset(tmp_path, *(f"{n}_T1w" for n in names), *(f"{MANUAL}/{n}_dseg" for n in names))
    for query in (
        BidsQuery(subjects=("01", "03"), sessions=("post",)),
        BidsQuery(subjects=("sub-01", "03"), sessions=("ses-post",)),
    ):
        assert [case.name for case in read_bids(root, query).cases] == ["sub-01_ses-post", "sub-03_ses-post"]


def test_entities_are_compared_whole(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_acq-hi_T1w", "sub-01_acq-high_T1w", f"{MANUAL}/sub-01_dseg")
    assert [case.name for case in read_bids(root, BidsQuery(entities={"acq": "hi"})).cases] == ["sub-01_acq-hi"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (BidsQuery(subjects=("01", "09")), r"has no subject 09 with _T1w images \(-sub\); it has 01, 02$"),
        (BidsQuery(subjects=("1",)), r"has no subject 1 with _T1w images \(-sub\); it has 01, 02$"),
        (BidsQuery(subjects=("03",)), r"has no subject 03 with _T1w images \(-sub\); it has 01, 02$"),
        (BidsQuery(sessions=("pre",)), r"has no session pre with _T1w images \(-ses\); it has none$"),
        (BidsQuery((Channel("T1W"),)), r"has no _T1W\.nii\.gz \(-suffix, -entities\); it has _T1w, _T2w$"),
        (
            BidsQuery(entities={"acq": "hi"}),
            r"_T1w\.nii\.gz with acq=hi \(-suffix, -entities\); it has acq=lo, ",
        ),
        (
            BidsQuery((Channel("T1w"), Channel("T2w", {"acq": "x"}))),
            r"_T2w\.nii\.gz with acq=x \(.*it has acq=none$",
        ),
        (BidsQuery(label_suffix="mask"), r"manual has no _mask\.nii\.gz \(.*-label_suffix.*; it has _dseg$"),
        (
            BidsQuery(label_entities={"desc": "x"}),
            r"_dseg\.nii\.gz with desc=x \(.*; it has desc=none$",
        ),
    ],
)
def test_what_a_dataset_does_not_have_is_named(query: BidsQuery, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_bids(dataset(plain(tmp_path, "01", "02"), "sub-03_T2w", "sub-02_acq-lo_T1w"), query)


# Folders


def test_a_folder_without_a_description_is_no_dataset(tmp_path: Path) -> None:
    add(tmp_path, "sub-01_T1w", f"{MANUAL}/sub-01_dseg")
    with pytest.raises(UserError, match=r"is no BIDS dataset: it has no dataset_description\.json$"):
        read_bids(tmp_path, BidsQuery())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no folder .*/missing$"):
        read_bids(tmp_path / "missing", BidsQuery())


def test_label_maps_may_lie_without_a_folder_for_their_kind(tmp_path: Path) -> None:
    root = plain(tmp_path, "01")
    labels = root / MANUAL / "sub-01"
    (labels / "anat" / "sub-01_dseg.nii.gz").rename(labels / "sub-01_dseg.nii.gz")
    assert not problems(read_bids(root, BidsQuery()))


def test_a_pipeline_may_lie_outside_of_the_dataset(tmp_path: Path) -> None:
    root = dataset(tmp_path / "raw", "sub-01_T1w")
    add(tmp_path / "labels", "sub-01_dseg")
    (case,) = read_bids(root, BidsQuery(derivatives=str(tmp_path / "labels"))).cases
    assert case.label is not None
    assert case.label.where == f"{tmp_path}/labels/sub-01/anat/sub-01_dseg.nii.gz"


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
        0: 0, 1: 1, 2: 2,
    }  # fmt: skip
    assert labelling.numbers == {"background": 0, "caudate": 1, "putamen": 2}  # not the table's order


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
