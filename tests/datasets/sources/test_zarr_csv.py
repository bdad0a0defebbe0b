"""`zarr-csv`: the crops that the tables name, against the arrays they were cut out of."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import SimpleITK as sitk

from nnunetv2_ext.datasets.checking import CheckJob, Finding, check_case
from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case
from nnunetv2_ext.datasets.labelling import number_classes
from nnunetv2_ext.datasets.sources.zarr_csv import COLUMNS, read_zarr_csv
from nnunetv2_ext.datasets.volumes.volume import Volume
from nnunetv2_ext.errors import UserError

zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")

SHAPE = (3, 6, 7, 8)
CORNER, SIZE = (1, 2, 3), (2, 3, 4)
BOX = (slice(1, 3), slice(2, 5), slice(3, 7))
SPACING = (2.0, 0.5, 0.25)
Row = dict[str, object]


def voxels(shape: Sequence[int] = SHAPE, seed: int = 0) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 60000, shape, dtype=np.uint16)


def make_array(where: Path | str, zarr_format: int = 3, seed: int = 0) -> npt.NDArray[np.uint16]:
    data = voxels(seed=seed)
    array = zarr.create_array(
        str(where), shape=data.shape, chunks=(1, 4, 4, 4), dtype=data.dtype, zarr_format=zarr_format
    )
    array[:] = data
    return data


def make_ome(where: Path, scale: Sequence[float] = SPACING, unit: str | None = "micrometer") -> npt.NDArray[np.uint16]:
    """An OME-Zarr image of version 0.4 with one level."""
    data = voxels()
    group = zarr.open_group(str(where), mode="w", zarr_format=2)
    group.create_array("0", shape=data.shape, dtype=data.dtype)[:] = data
    space = [{"name": name, "type": "space", **({"unit": unit} if unit else {})} for name in "zyx"]
    scales = [{"type": "scale", "scale": [1.0, *scale]}]
    axes = [{"name": "c", "type": "channel"}, *space]
    levels = [{"path": "0", "coordinateTransformations": scales}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    return data


def row(**values: object) -> Row:
    usual = {"ID": 7, "corner": CORNER, "source": "cells.zarr", "ref_channel": 0, "channel": 2, "crop_size": SIZE}
    return {**usual, **values}


def mask(seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 3, SIZE, dtype=np.uint8)


def write(root: Path, *rows: Row, part: str = "train", masks: Sequence[object] | None = None) -> Path:
    """A table, and a mask for every row, or for those named."""
    with (root / f"{part}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (root / part).mkdir(exist_ok=True)
    for identifier in [row["ID"] for row in rows] if masks is None else masks:
        np.save(root / part / f"{identifier}_mask.npy", mask())
    return root


def the_case(root: Path, **options: Any) -> Case:
    (case,) = read_zarr_csv(root, **options).cases
    return case


def array_of(volume: Volume | None) -> npt.NDArray[Any]:
    assert volume is not None
    return sitk.GetArrayFromImage(volume.image())


def finding(case: Case) -> Finding:
    return check_case(CheckJob(case, resample_labels=False))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_reference_is_channel_0_and_the_signal_channel_1(zarr_format: int, tmp_path: Path) -> None:
    data = make_array(tmp_path / "cells.zarr", zarr_format)
    collection = read_zarr_csv(write(tmp_path, row(ref_channel=2, channel=1)), spacing=SPACING)
    (case,) = collection.cases
    assert collection.channel_names == ("reference", "signal")
    np.testing.assert_array_equal(array_of(case.images[0]), data[2][BOX])
    np.testing.assert_array_equal(array_of(case.images[1]), data[1][BOX])


def test_without_the_reference_the_signal_is_the_only_channel_and_its_column_is_not_needed(tmp_path: Path) -> None:
    data = make_array(tmp_path / "cells.zarr")
    write(tmp_path, row())
    table = tmp_path / "train.csv"
    table.write_text(table.read_text().replace("ref_channel", "not_that"))
    collection = read_zarr_csv(tmp_path, reference=False, spacing=SPACING)
    assert collection.channel_names == ("signal",)
    (image,) = collection.cases[0].images
    np.testing.assert_array_equal(array_of(image), data[2][BOX])


def make_plain(where: Path) -> npt.NDArray[np.uint16]:
    """An array of three axes, all of space."""
    data = voxels()[0]
    zarr.create_array(str(where), shape=data.shape, chunks=(4, 4, 4), dtype=data.dtype)[:] = data
    return data


@pytest.mark.parametrize("column", ["channel", "not_that"])
def test_an_array_without_channels_is_the_only_channel_where_none_is_named(column: str, tmp_path: Path) -> None:
    data = make_plain(tmp_path / "cells.zarr")
    write(tmp_path, row(channel="", ref_channel=""))
    table = tmp_path / "train.csv"
    table.write_text(table.read_text().replace(",channel,", f",{column},"))
    collection = read_zarr_csv(tmp_path, reference=False, spacing=SPACING)
    (case,) = collection.cases
    assert (case.problems, collection.channel_names) == ((), ("signal",))
    (image,) = case.images
    np.testing.assert_array_equal(array_of(image), data[BOX])
    assert finding(case).problems == ()


@pytest.mark.parametrize(
    ("values", "reference", "words"),
    [
        ({}, True, "there is no channel 0 in {}, which has no axis of channels: leave the column channel empty, and"),
        ({"channel": 0}, False, "there is no channel 0 in {}, which has no axis of channels: leave the column"),
        ({"channel": ""}, True, "channel is '', where the index of a channel is needed (arrays without an axis of"),
    ],
)
def test_a_channel_of_an_array_without_channels_is_a_problem_that_says_so(
    values: Row, reference: bool, words: str, tmp_path: Path
) -> None:
    make_plain(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row(**values)), reference=reference, spacing=SPACING)
    (problem,) = finding(case).problems
    assert problem.startswith(words.format(tmp_path / "cells.zarr"))
    assert "--no_ref" in problem


def test_one_of_several_channels_must_be_named(tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row(channel="")), reference=False, spacing=SPACING)
    (problem,) = finding(case).problems
    assert problem == f"{tmp_path}/cells.zarr has 3 channels: say which is meant (column channel)"


def test_channels_and_the_masks_values_have_the_names_that_are_given(tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    write(tmp_path, row())
    classes = {1: "nucleus", 2: "background"}
    collection = read_zarr_csv(tmp_path, classes=classes, channel_names=["membrane", "DNA"], spacing=SPACING)
    assert collection.channel_names == ("membrane", "DNA")
    (case,) = collection.cases
    found = finding(case)
    labelling = number_classes(collection.class_names, [(case, found.values)])
    assert labelling.numbers == {"background": 0, "nucleus": 1}
    assert labelling.table(case, found.values) == {0: 0, 1: 1, 2: 0}


def test_a_value_of_a_mask_without_a_name_is_found(tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row()), classes={1: "nucleus"}, spacing=SPACING)
    (problem,) = finding(case).problems
    assert problem == f"{tmp_path}/train/7_mask.npy holds 2, which the labels do not name (they name 1)"


@pytest.mark.parametrize(("reference", "names"), [(True, ["signal"]), (False, ["reference", "signal"])])
def test_other_numbers_of_channel_names_than_of_channels_are_refused(
    reference: bool, names: list[str], tmp_path: Path
) -> None:
    write(tmp_path, row())
    with pytest.raises(UserError, match=rf"^-channels gives {len(names)} names? \({', '.join(names)}\) for "):
        read_zarr_csv(tmp_path, reference=reference, channel_names=names)


def test_a_source_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = make_array(tmp_path / "cells.zarr")
    root = tmp_path / "root"
    root.mkdir()
    case = the_case(write(root, row(source="~/cells.zarr")), spacing=SPACING)
    np.testing.assert_array_equal(array_of(case.images[0]), data[0][BOX])


def test_a_source_may_be_a_relative_path_an_absolute_one_or_an_address(tmp_path: Path) -> None:
    folder = tmp_path / "somewhere"
    folder.mkdir()
    data = make_array(folder / "cells.zarr")
    sources = ["../somewhere/cells.zarr", str(folder / "cells.zarr"), f"file://{folder}/cells.zarr"]
    root = tmp_path / "root"
    root.mkdir()
    write(root, *(row(ID=i, source=source) for i, source in enumerate(sources)))
    for case in read_zarr_csv(root, spacing=SPACING).cases:
        np.testing.assert_array_equal(array_of(case.images[1]), data[2][BOX])


def test_a_source_may_lie_in_any_file_system_of_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    data = make_array("memory://test_zarr_csv/cells.zarr")
    try:
        case = the_case(write(tmp_path, row(source="memory://test_zarr_csv/cells.zarr")), spacing=SPACING)
        np.testing.assert_array_equal(array_of(case.images[0]), data[0][BOX])
    finally:
        fsspec.filesystem("memory").rm("/test_zarr_csv", recursive=True)


def test_the_mask_is_the_label_on_the_grid_of_its_crop(tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row()), spacing=SPACING)
    np.testing.assert_array_equal(array_of(case.label), mask())
    found = finding(case)
    assert (found.problems, found.values) == ((), (0, 1, 2))
    assert found.geometry is not None
    assert found.geometry.size == SIZE[::-1]


def test_the_spacing_is_that_of_the_ome_metadata_and_its_unit_is_said(tmp_path: Path) -> None:
    make_ome(tmp_path / "cells.zarr")
    collection = read_zarr_csv(write(tmp_path, row()), spacing=(9, 9, 9))
    assert collection.cases[0].images[0].geometry().spacing == SPACING[::-1]
    assert collection.described == {"spacing_unit": "micrometer"}
    assert "micrometers" in " ".join(collection.remarks)


def test_arrays_that_do_not_say_their_spacing_have_the_one_that_is_given(tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    collection = read_zarr_csv(write(tmp_path, row()), spacing=SPACING)
    assert collection.cases[0].images[0].geometry().spacing == SPACING[::-1]
    assert not collection.described
    assert not collection.remarks


def test_a_spacing_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    (problem,) = finding(the_case(write(tmp_path, row()))).problems
    assert "does not say its spacing: give it (-spacing Z Y X)" in problem


def test_arrays_whose_spacings_are_in_different_units_are_not_mixed(tmp_path: Path) -> None:
    make_ome(tmp_path / "a.zarr", unit="micrometer")
    make_ome(tmp_path / "b.zarr", unit="nanometer")
    write(tmp_path, row(ID=1, source="a.zarr"), row(ID=2, source="b.zarr"))
    with pytest.raises(UserError, match=r"different units \(micrometer, nanometer\)"):
        read_zarr_csv(tmp_path)


@pytest.mark.parametrize(
    ("identifier", "mask_of", "name"),
    [
        ("7", "7", "train_00007"),
        ("007", "007", "train_00007"),
        ("007", "7", "train_00007"),
        ("7", "007", "train_00007"),
        ("7", "7.0", "train_00007"),
        ("7.0", "7", "train_00007"),
        ("0", "0", "train_00000"),
        ("1234567", "1234567", "train_1234567"),
    ],
)
def test_whole_numbers_become_names_and_find_their_masks(
    identifier: str, mask_of: str, name: str, tmp_path: Path
) -> None:
    make_array(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row(ID=identifier), masks=[mask_of]), spacing=SPACING)
    assert case.name == name
    assert finding(case).problems == ()


@pytest.mark.parametrize(
    ("corner", "size"),
    [
        ("(1, 2, 3)", "(2, 3, 4)"),
        ("[1 2 3]", "[2 3 4]"),
        ("[ 1  2  3]", "2;3;4"),
        ("1,2,3", "2,3,4"),
        ("1.0, 2.0, 3.0", "[2. 3. 4.]"),
        (" ( 1, 2, 3 ) ", "(2, 3, 4,)"),
        ("(np.int64(1), np.int64(2), np.int64(3))", "[np.int32(2), np.int32(3), np.int32(4)]"),
        ("array([1, 2, 3])", "torch.Size([2, 3, 4])"),
        ("['1', '2', '3']", "(2,\n 3, 4)\n"),
        ("(np.float64(1.0), np.float64(2.0), np.float64(3.0))", "2x3x4"),
    ],
)
def test_corner_and_size_are_read_as_numpy_and_pandas_write_them(corner: str, size: str, tmp_path: Path) -> None:
    data = make_array(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row(corner=corner, crop_size=size)), spacing=SPACING)
    np.testing.assert_array_equal(array_of(case.images[0]), data[0][BOX])


def test_one_number_is_the_size_of_a_cube(tmp_path: Path) -> None:
    data = make_array(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row(crop_size=3)), spacing=SPACING)
    np.testing.assert_array_equal(array_of(case.images[0]), data[0, 1:4, 2:5, 3:6])


def test_three_tables_are_three_parts_and_validation_is_one_fold(tmp_path: Path) -> None:
    write(tmp_path, row(ID=1), row(ID=2))
    write(tmp_path, row(ID=1, corner=(0, 2, 3)), row(ID=3, corner=(0, 1, 3)), part="val")
    write(tmp_path, row(ID=1, corner=(0, 0, 0)), part="test", masks=[])
    collection = read_zarr_csv(tmp_path).checked()
    assert [(case.name, case.part) for case in collection.cases] == [
        ("train_00001", TRAIN), ("train_00002", TRAIN), ("val_00001", VAL), ("val_00003", VAL), ("test_00001", TEST),
    ]  # fmt: skip
    assert not [problem for case in collection.cases for problem in case.problems]
    assert collection.splits == [{"train": ["train_00001", "train_00002"], "val": ["val_00001", "val_00003"]}]


def test_without_a_table_of_validation_the_split_is_left_to_nnunet(tmp_path: Path) -> None:
    write(tmp_path, *(row(ID=i) for i in range(5)))
    write(tmp_path, row(ID=1), part="test")
    assert read_zarr_csv(tmp_path).splits is None


def test_masks_of_test_cases_are_taken_where_there_are_any(tmp_path: Path) -> None:
    write(tmp_path, row(ID=1))
    write(tmp_path, row(ID=1), row(ID=2), part="test", masks=[2])
    labels = {case.name: case.label for case in read_zarr_csv(tmp_path).cases}
    assert labels["test_00001"] is None
    np.testing.assert_array_equal(array_of(labels["test_00002"]), mask())


WRONG: list[tuple[Row, str]] = [
    ({"ID": ""}, r"^the ID '' is no whole number$"),
    ({"ID": "seven"}, r"^the ID 'seven' is no whole number$"),
    ({"ID": "7.5"}, r"^the ID '7\.5' is no whole number$"),
    ({"corner": ""}, r"^corner is '', where three whole numbers are needed$"),
    ({"corner": "(1, 2)"}, r"^corner is '\(1, 2\)', where three"),
    ({"corner": "(1, 2, 3, 4)"}, r"^corner is '\(1, 2, 3, 4\)'"),
    ({"corner": "(1, 2.5, 3)"}, r"^corner is"),
    ({"corner": "(1, 2, 3O)"}, r"^corner is"),
    ({"corner": "1e5, 2"}, r"^corner is"),
    ({"corner": "5"}, r"^corner is '5'"),
    ({"corner": "(np.float64(1.5), 2, 3)"}, r"^corner is"),
    ({"corner": "array(1, 2, 3], end)"}, r"^corner is"),
    ({"corner": "1, 2, 3, end"}, r"^corner is '1, 2, 3, end'"),
    ({"crop_size": "(2, 3)"}, r"^crop_size is '\(2, 3\)'"),
    ({"crop_size": "2.5"}, r"^crop_size is '2\.5'"),
    ({"crop_size": "big"}, r"^crop_size is 'big'"),
    ({"channel": ""}, r"^channel is '', where the index of a channel is needed "),
    ({"channel": "-1"}, r"^channel is '-1'"),
    ({"channel": "1.5"}, r"^channel is '1\.5'"),
    ({"ref_channel": "DAPI"}, r"^ref_channel is 'DAPI'"),
    ({"source": ""}, r"^source is empty$"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_is_wrong_with_a_row_is_its_case_s_problem_and_no_other_s(
    values: Row, message: str, tmp_path: Path
) -> None:
    make_array(tmp_path / "cells.zarr")
    write(tmp_path, row(ID=1), row(**{"ID": 2, **values}), row(ID=3), masks=[1, 2, 3])
    first, wrong, last = read_zarr_csv(tmp_path, spacing=SPACING).checked().cases
    assert (finding(first).problems, finding(last).problems) == ((), ())
    assert wrong.row == "train.csv, line 3"
    (problem,) = finding(wrong).problems
    assert re.search(message, problem)


def test_all_that_is_wrong_with_a_row_is_listed(tmp_path: Path) -> None:
    case = the_case(write(tmp_path, row(corner="?", crop_size="?", channel="?", ref_channel="?", source="")))
    assert [problem.split()[0] for problem in case.problems] == [
        "corner", "crop_size", "ref_channel", "channel", "source",
    ]  # fmt: skip


@pytest.mark.parametrize("again", ["7", "007", "7.0"])
def test_an_id_that_stands_twice_is_a_problem_of_both_rows(again: str, tmp_path: Path) -> None:
    write(tmp_path, row(ID=7), row(ID=8), row(ID=again), masks=[7, 8])
    cases = read_zarr_csv(tmp_path).cases
    assert [case.problems for case in cases] == [
        ("the ID 7 stands 2 times in train.csv: give each row its own",), (),
        ("the ID 7 stands 2 times in train.csv: give each row its own",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"corner": "(5, 2, 3)"}, "is not inside the array, which has 6, 7, 8 voxels"),
        ({"corner": "(-1, 2, 3)"}, "is not inside the array"),
        ({"crop_size": "(0, 3, 4)"}, "is not inside the array"),
        ({"channel": 3}, "there is no channel 3 in"),
        ({"ref_channel": 3}, "which has 3 channels (0 to 2)"),
        ({"source": "other.zarr"}, "there is no Zarr array"),
        ({"crop_size": "(2, 3, 5)"}, "differ in size 2 x 3 x 5 (z, y, x) and 2 x 3 x 4 (z, y, x)"),
    ],
)
def test_what_only_the_array_shows_is_found_when_the_case_is_checked(values: Row, words: str, tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row(**values)), spacing=SPACING)
    (problem,) = finding(case).problems
    assert words in problem


def test_a_training_mask_that_is_not_there_is_named(tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    case = the_case(write(tmp_path, row(), masks=[]), spacing=SPACING)
    assert finding(case).problems == (f"there is no file {tmp_path}/train/7_mask.npy",)


@pytest.mark.parametrize("identifier", ["7", "07"])
def test_two_masks_for_one_id_are_a_problem_that_names_both(identifier: str, tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    write(tmp_path, row(ID=identifier), masks=["7", "007"])
    assert the_case(tmp_path, spacing=SPACING).problems == (
        f"007_mask.npy and 7_mask.npy may be the mask of the ID {identifier}: remove one",
    )


@pytest.mark.parametrize(("number", "folds"), [(1, None), (3, 3), (5, None)])
def test_fewer_than_five_crops_are_divided_for_nnunet_cannot(number: int, folds: int | None, tmp_path: Path) -> None:
    make_array(tmp_path / "cells.zarr")
    splits = read_zarr_csv(write(tmp_path, *(row(ID=i) for i in range(number))), spacing=SPACING).splits
    assert (None if splits is None else [len(fold["val"]) for fold in splits]) == (folds and [1] * folds)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path, row())
    with pytest.raises(UserError, match=r"train\.csv is a file: give the folder that it is in"):
        read_zarr_csv(tmp_path / "train.csv")


def test_a_table_without_a_row_to_train_with_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, row(ID=1), part="val")
    with pytest.raises(UserError, match=r"/train\.csv has no rows: it names the crops to train with$"):
        read_zarr_csv(tmp_path)


def test_a_table_of_pandas_with_its_index_and_windows_line_ends_is_read(tmp_path: Path) -> None:
    data = make_array(tmp_path / "cells.zarr")
    write(tmp_path, row())
    table = pd.DataFrame([{**row(), "channel": 1.0, "source": " cells.zarr "}])
    table.to_csv(tmp_path / "train.csv", lineterminator="\r\n", encoding="utf-8-sig")
    case = the_case(tmp_path, spacing=SPACING)
    assert finding(case).problems == ()
    np.testing.assert_array_equal(array_of(case.images[1]), data[1][BOX])


def test_corners_without_quotes_are_named(tmp_path: Path) -> None:
    write(tmp_path, row())
    table = tmp_path / "train.csv"
    table.write_text(table.read_text().replace('"', ""))
    with pytest.raises(UserError, match=r"^train\.csv, line 2 has more cells than the header: put quotes around those"):
        read_zarr_csv(tmp_path)


def test_a_root_without_train_csv_is_refused(tmp_path: Path) -> None:
    write(tmp_path, row(), part="val")
    with pytest.raises(UserError, match=r"^there is no file .*/train\.csv$"):
        read_zarr_csv(tmp_path)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_that_is_missing_is_named(column: str, tmp_path: Path) -> None:
    write(tmp_path, row())
    table = tmp_path / "train.csv"
    header, _, rest = table.read_text().partition("\n")
    names = ["other" if name == column else name for name in header.split(",")]
    table.write_text(",".join(names) + "\n" + rest)
    spared = r" \(not needed with --no_ref.*\)" if "channel" in column else ""
    with pytest.raises(UserError, match=rf"train\.csv has no column {column}{spared}; it has "):
        read_zarr_csv(tmp_path)
