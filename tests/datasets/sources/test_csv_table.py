"""`csv`: a table's rows as cases, their parts, and what is wrong with each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.datasets.checking import CheckJob, check_case
from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case, Collection
from nnunetv2_ext.datasets.labelling import number_classes
from nnunetv2_ext.datasets.sources.csv_table import Columns, read_csv_table
from nnunetv2_ext.errors import UserError

SPLIT = Columns(split="split")
PATIENTS = Columns(split="split", subject="patient")


def touch(folder: Path, *names: str) -> None:
    """Files of which nothing is read: the importer looks whether they are there."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def read(folder: Path, header: str, *lines: str, columns: Columns | None = None, **options: Any) -> Collection:
    """Write the table and read it."""
    table = folder / "cases.csv"
    table.write_text("\n".join((header, *lines)) + "\n")
    return read_csv_table(table, columns or Columns(), **options)


def pairs(folder: Path, number: int) -> list[str]:
    """`scans/0.nii.gz,labels/0.nii.gz` and so on; the files are made."""
    names = [(f"scans/{i}.nii.gz", f"labels/{i}.nii.gz") for i in range(number)]
    touch(folder, *(name for pair in names for name in pair))
    return [",".join(pair) for pair in names]


def with_values(lines: Sequence[str], *columns: Sequence[str]) -> list[str]:
    return [",".join(values) for values in zip(lines, *columns, strict=True)]


def where(case: Case) -> list[str]:
    """Of its images, and its label if it has one."""
    return [volume.where for volume in (*case.images, *([case.label] if case.label else []))]


def problems(collection: Collection) -> list[tuple[str, ...]]:
    return [case.problems for case in collection.cases]


def test_every_row_is_a_case_named_by_its_image(tmp_path: Path) -> None:
    collection = read(tmp_path, "image,label", *pairs(tmp_path, 2))
    assert [(case.name, case.part, case.row) for case in collection.cases] == [
        ("0", TRAIN, "cases.csv, line 2"),
        ("1", TRAIN, "cases.csv, line 3"),
    ]
    assert where(collection.cases[1]) == [f"{tmp_path}/scans/1.nii.gz", f"{tmp_path}/labels/1.nii.gz"]


@pytest.mark.parametrize(
    "file", ["a.b.nii.gz", "a.b.nii", "a.b.nrrd", "a.b.mha", "a.b.mhd", "a.b.tif", "a.b.TIFF", "a.b.npy", "a.b.img.gz"]
)
def test_a_case_is_named_by_the_file_without_its_ending(file: str, tmp_path: Path) -> None:
    touch(tmp_path, file, "seg.nii.gz")
    (case,) = read(tmp_path, "image,label", f"{file},seg.nii.gz").cases
    assert (case.name, case.problems) == ("a.b", ())


def test_a_folder_of_dicom_is_an_image_named_by_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "scans/patient.01/1.dcm", "seg.nii.gz")
    (case,) = read(tmp_path, "image,label", "scans/patient.01,seg.nii.gz").cases
    assert (case.name, case.problems) == ("patient.01", ())
    assert case.images[0].where == f"{tmp_path}/scans/patient.01"


def test_names_may_stand_in_a_column_and_become_such_as_nnunet_takes(tmp_path: Path) -> None:
    lines = with_values(pairs(tmp_path, 3), ["P 01/scan", "Ünal", "b_1.2"])
    collection = read(tmp_path, "image,label,name", *lines, columns=Columns(case="name"))
    assert [case.name for case in collection.cases] == ["P-01-scan", "nal", "b_1.2"]


def test_relative_paths_are_meant_from_the_root_and_absolute_ones_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "data", "a.nii.gz")
    touch(tmp_path / "else", "seg.nii.gz")
    (case,) = read(tmp_path, "image,label", f"a.nii.gz,{tmp_path}/else/seg.nii.gz", root=tmp_path / "data").cases
    assert where(case) == [f"{tmp_path}/data/a.nii.gz", f"{tmp_path}/else/seg.nii.gz"]


def test_without_a_root_relative_paths_are_meant_from_the_table_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "tables", "a.nii.gz", "seg.nii.gz")
    (tmp_path / "tables" / "cases.csv").write_text("image,label\na.nii.gz,seg.nii.gz\n")
    monkeypatch.chdir(tmp_path)
    (case,) = read_csv_table(Path("tables/cases.csv"), Columns()).cases
    assert where(case) == [f"{tmp_path}/tables/a.nii.gz", f"{tmp_path}/tables/seg.nii.gz"]


def test_several_columns_are_channels_in_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "seg.nii.gz")
    columns = Columns(images=("t2", "t1"), label="seg")
    collection = read(tmp_path, "t1,t2,seg", "a.nii.gz,b.nii.gz,seg.nii.gz", columns=columns)
    assert collection.channel_names == ("t2", "t1")
    assert where(collection.cases[0]) == [f"{tmp_path}/{name}.nii.gz" for name in ("b", "a", "seg")]


def test_channel_names_may_be_given_one_for_each_column(tmp_path: Path) -> None:
    lines = pairs(tmp_path, 1)
    assert read(tmp_path, "image,label", *lines, channel_names=["CT"]).channel_names == ("CT",)
    with pytest.raises(UserError, match=r"^-channels gives 2 names \(CT, PET\) for 1 channel \(image\): give one"):
        read(tmp_path, "image,label", *lines, channel_names=["CT", "PET"])


def test_the_spacing_is_given_to_files_that_do_not_say_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.float32))
    for name in ("b", "seg"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(tmp_path / f"{name}.nii.gz"))
    lines = ("a.npy,seg.nii.gz", "b.nii.gz,seg.nii.gz")
    first, second = read(tmp_path, "image,label", *lines, spacing=(3, 2, 1)).cases
    assert first.images[0].geometry().spacing == (1, 2, 3)
    assert second.images[0].geometry().spacing == (1, 1, 1)


# Parts


def test_parts_are_read_however_they_are_written(tmp_path: Path) -> None:
    parts = ["train", "Training", "VAL", "valid", "validation", "dev", "Test", " ts "]
    collection = read(tmp_path, "image,label,split", *with_values(pairs(tmp_path, 8), parts), columns=SPLIT)
    assert [case.part for case in collection.cases] == [TRAIN, TRAIN, VAL, VAL, VAL, VAL, TEST, TEST]
    assert collection.splits == [{"train": ["0", "1"], "val": ["2", "3", "4", "5"]}]
    assert problems(collection) == [()] * 8


def test_without_a_column_of_parts_nnunet_divides_the_cases(tmp_path: Path) -> None:
    assert read(tmp_path, "image,label", *pairs(tmp_path, 6)).splits is None


def test_subjects_stay_together_in_five_folds_where_nothing_validates(tmp_path: Path) -> None:
    patients = [f"P{i // 2}" for i in range(12)]
    lines = with_values(pairs(tmp_path, 12), patients)
    collection = read(tmp_path, "image,label,patient", *lines, columns=Columns(subject="patient"))
    assert collection.splits is not None
    assert len(collection.splits) == 5
    assert sorted(name for fold in collection.splits for name in fold["val"]) == sorted(map(str, range(12)))
    for fold in collection.splits:
        train, val = ({patients[int(name)] for name in fold[part]} for part in ("train", "val"))
        assert not train & val
        assert len(fold["train"]) + len(fold["val"]) == 12


def test_test_cases_are_in_no_fold_and_need_no_label(tmp_path: Path) -> None:
    lines = with_values(pairs(tmp_path, 4), ["train", "val", "test", "test"])
    lines[3] = "scans/3.nii.gz,,test"
    collection = read(tmp_path, "image,label,split", *lines, columns=SPLIT).checked()
    assert problems(collection) == [()] * 4
    assert [case.label is None for case in collection.cases] == [False, False, False, True]
    assert collection.splits == [{"train": ["0"], "val": ["1"]}]


@pytest.mark.parametrize(
    ("parts", "of_p1"),
    [(("train", "test"), "is in test and in train"), (("train", "val"), "is in train and in val")],
)
def test_a_subject_in_two_parts_is_a_problem_of_all_its_cases(
    parts: tuple[str, str], of_p1: str, tmp_path: Path
) -> None:
    lines = with_values(pairs(tmp_path, 4), [*parts, "train", "test"], ["P1", "P1", "P2", "P3"])
    collection = read(tmp_path, "image,label,split,patient", *lines, columns=PATIENTS).checked()
    assert problems(collection) == [(f"subject P1 {of_p1}",), (f"subject P1 {of_p1}",), (), ()]


def test_an_empty_subject_is_a_problem_of_its_row(tmp_path: Path) -> None:
    lines = with_values(pairs(tmp_path, 3), ["train", "test", "train"], ["", " ", "P1"])
    collection = read(tmp_path, "image,label,split,patient", *lines, columns=PATIENTS).checked()
    assert problems(collection) == [("patient is empty: say which subject it is (-subject)",)] * 2 + [()]
    assert [case.row for case in collection.cases if case.problems] == ["cases.csv, line 2", "cases.csv, line 3"]


def test_without_a_column_of_subjects_every_case_is_its_own(tmp_path: Path) -> None:
    collection = read(tmp_path, "image,label", *pairs(tmp_path, 3)).checked()
    assert len({case.subject for case in collection.cases}) == 3


# What is wrong


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (",labels/0.nii.gz,train,c", "image is empty"),
        ("scans/0.nii.gz,,train,c", "label is empty"),
        ("scans/0.nii.gz,,val,c", "label is empty"),
        ("scans/9.nii.gz,labels/0.nii.gz,train,c", "there is no file {folder}/scans/9.nii.gz (image)"),
        ("scans/0.nii.gz,labels/9.nii.gz,train,c", "there is no file {folder}/labels/9.nii.gz (label)"),
        ("scans/0.nii.gz,labels/9.nii.gz,test,c", "there is no file {folder}/labels/9.nii.gz (label)"),
        ("scans/0.nii.gz,labels/0.nii.gz,holdout,c", "split is 'holdout', where train, val or test is meant"),
        ("scans/0.nii.gz,labels/0.nii.gz,,c", "split is '', where train, val or test is meant"),
        ("scans/0.nii.gz,labels/0.nii.gz,train,", "name is empty"),
        ("scans/0.nii.gz,labels/0.nii.gz,train,///", "'///' is no name"),
    ],
)
def test_what_is_wrong_with_a_row_is_its_case_s_problem_and_no_other_s(line: str, message: str, tmp_path: Path) -> None:
    good = with_values(pairs(tmp_path, 3), ["train"] * 3, ["a", "b", "d"])
    columns = Columns(split="split", case="name")
    collection = read(tmp_path, "image,label,split,name", good[1], line, good[2], columns=columns).checked()
    assert problems(collection) == [(), (message.format(folder=tmp_path),), ()]
    assert collection.cases[1].row == "cases.csv, line 3"


def test_a_file_that_is_no_image_is_a_problem_of_its_case(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "seg.nii.gz")
    ((problem,),) = problems(read(tmp_path, "image,label", "a.jpg,seg.nii.gz"))
    assert problem.startswith(f"{tmp_path}/a.jpg ends like no image that can be read")


def test_all_that_is_wrong_with_a_row_is_listed(tmp_path: Path) -> None:
    columns = Columns(images=("t1", "t2"), split="split")
    ((one, two, three, four),) = problems(read(tmp_path, "t1,t2,label,split", "a.nii.gz,,,all", columns=columns))
    assert "a.nii.gz (t1)" in one
    assert [two, three] == ["t2 is empty", "split is 'all', where train, val or test is meant"]
    assert four == "label is empty"


def test_two_images_of_the_same_file_name_are_told_apart_by_a_column_only(tmp_path: Path) -> None:
    touch(tmp_path, "P1/t1.nii.gz", "P1/seg.nii.gz", "P2/t1.nii.gz", "P2/seg.nii.gz")
    lines = ("P1/t1.nii.gz,P1/seg.nii.gz,P1", "P2/t1.nii.gz,P2/seg.nii.gz,P2")
    twice = read(tmp_path, "image,label,patient", *lines).checked()
    assert problems(twice) == [("the name t1 stands 2 times in the source: give names in a column (-case COLUMN)",)] * 2
    same = read(tmp_path, "image,label,site", *(line[:-2] + "A" for line in lines), columns=Columns(case="site"))
    assert (
        problems(same.checked())
        == [("the name A stands 2 times in the source: give each case a name of its own in site (-case)",)] * 2
    )
    named = read(tmp_path, "image,label,patient", *lines, columns=Columns(case="patient")).checked()
    assert problems(named) == [(), ()]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (Columns(("t1",)), "no column t1 (-images)"),
        (Columns(("image", "{uuid}.nii.gz")), "no column uuid (-images)"),
        (Columns(label="seg"), "no column seg (-label)"),
        (SPLIT, "no column split (-split)"),
        (Columns(case="id"), "no column id (-case)"),
        (PATIENTS, "no column split (-split) and no column patient (-subject)"),
        (Columns(("{image",)), "no column {image (-images)"),
    ],
)
def test_a_column_that_is_missing_is_named_with_its_flag(columns: Columns, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, "image,label", *pairs(tmp_path, 1), columns=columns)
    assert str(caught.value) == f"{tmp_path}/cases.csv has {said}; it has image, label"


def test_an_image_that_is_its_own_label_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    ((problem,),) = problems(read(tmp_path, "image,label", "a.nii.gz,./a.nii.gz"))
    assert problem == f"{tmp_path}/a.nii.gz is its image and its label: correct one (-images, -label)"


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/cases\.csv has no rows below its header: give each case one$"):
        read(tmp_path, "image,label")


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no folder .*/nowhere \(-root\)$"):
        read(tmp_path, "image,label", *pairs(tmp_path, 1), root=tmp_path / "nowhere")


# Paths


@pytest.mark.parametrize("root", ["data", "~/data"])
def test_a_root_may_be_relative_or_in_the_home_folder(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "data", "a.nii.gz", "seg.nii.gz")
    (case,) = read(tmp_path, "image,label", "a.nii.gz,~/data/seg.nii.gz", root=Path(root)).cases
    assert where(case) == [f"{tmp_path}/data/a.nii.gz", f"{tmp_path}/data/seg.nii.gz"]


def test_a_table_of_medvae_names_files_without_folder_and_ending(tmp_path: Path) -> None:
    """Its columns, and its settings img_dir, img_suffix, msk_dir and msk_suffix."""
    touch(
        tmp_path, *(f"{folder}/{i}.5{end}" for i in (1, 2) for folder, end in (("ct", ".nii.gz"), ("m", "_m.nii.gz")))
    )
    columns = Columns(images=("ct/{image_uuid}.nii.gz",), label="m/{image_uuid}_m.nii.gz", split="split")
    collection = read(tmp_path, "row_nr,image_uuid,split", "0,1.5,train", "1,2.5,val", columns=columns)
    assert problems(collection) == [(), ()]
    assert [where(case) for case in collection.cases] == [
        [f"{tmp_path}/ct/{i}.5.nii.gz", f"{tmp_path}/m/{i}.5_m.nii.gz"] for i in (1, 2)
    ]
    assert [case.name for case in collection.cases] == ["1.5", "2.5"]
    assert collection.channel_names == ("image",)


def test_a_path_with_an_empty_column_is_empty(tmp_path: Path) -> None:
    touch(tmp_path, "P1/1.nii.gz", "seg.nii.gz")
    columns = Columns(images=("{patient}/{scan}.nii.gz", "{patient}/1.nii.gz"))
    lines = ("P1,1,seg.nii.gz", "P1,,seg.nii.gz")
    collection = read(tmp_path, "patient,scan,label", *lines, columns=columns)
    assert collection.cases[0].problems == ()
    assert collection.cases[1].problems[0] == "{patient}/{scan}.nii.gz is empty"
    assert collection.channel_names == ("image_0", "image_1")


# Classes


def write_label(path: Path, *values: int) -> None:
    image = sitk.GetImageFromArray(np.resize(np.uint8(values), (2, 3, 4)))
    sitk.WriteImage(image, str(path))


def test_several_values_may_be_one_class_and_background_leaves_one_out(tmp_path: Path) -> None:
    for name in ("a", "seg"):
        write_label(tmp_path / f"{name}.nii.gz", 0, 1, 2, 5, 7)
    classes = {1: "liver", 2: "tumour", 5: "tumour", 7: "background"}
    collection = read(tmp_path, "image,label", "a.nii.gz,seg.nii.gz", classes=classes)
    (case,) = collection.cases
    found = check_case(CheckJob(case, resample_labels=False))
    assert found.problems == ()
    labelling = number_classes(collection.class_names, [(case, found.values)])
    assert labelling.numbers == {"background": 0, "liver": 1, "tumour": 2}
    assert labelling.table(case, found.values) == {0: 0, 1: 1, 2: 2, 5: 2, 7: 0}


def test_without_names_every_value_is_a_class(tmp_path: Path) -> None:
    for name in ("a", "seg"):
        write_label(tmp_path / f"{name}.nii.gz", 0, 3, 9)
    collection = read(tmp_path, "image,label", "a.nii.gz,seg.nii.gz")
    (case,) = collection.cases
    labelling = number_classes(collection.class_names, [(case, (0, 3, 9))])
    assert labelling.numbers == {"background": 0, "label_3": 1, "label_9": 2}


def test_a_value_without_a_name_is_found_in_the_label_map(tmp_path: Path) -> None:
    for name in ("a", "seg"):
        write_label(tmp_path / f"{name}.nii.gz", 0, 1, 4)
    (case,) = read(tmp_path, "image,label", "a.nii.gz,seg.nii.gz", classes={1: "liver"}).cases
    (problem,) = check_case(CheckJob(case, resample_labels=False)).problems
    assert problem == f"{tmp_path}/seg.nii.gz holds 4, which the labels do not name (they name 1)"
