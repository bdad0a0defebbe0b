"""Tables, row by row: separators, places for messages, and what is no table."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_ext.datasets.sources.tables import rows
from nnunetv2_ext.errors import UserError

COLUMNS = ("image", "label")


def table(folder: Path, text: str, name: str = "cases.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cases.csv", "image,label\na.nii.gz,b.nii.gz\n"),
        ("cases.csv", "image;label\na.nii.gz;b.nii.gz\n"),
        ("cases.tsv", "image\tlabel\na.nii.gz\tb.nii.gz\n"),
        ("cases.tsv", "image,label\na.nii.gz,b.nii.gz\n"),
        ("cases.TSV", "image\tlabel\na.nii.gz\tb.nii.gz\n"),
        ("cases.txt", "image\tlabel\na.nii.gz\tb.nii.gz\n"),
        ("cases.csv", "image,label\r\na.nii.gz,b.nii.gz\r\n"),
        ("cases.csv", "\ufeffimage,label\na.nii.gz,b.nii.gz\n"),
        ("cases.csv", " image , label\n a.nii.gz ,  b.nii.gz \n"),
        ("cases.csv", '"image","label"\n"a.nii.gz", "b.nii.gz"\n'),
        ("cases.csv", "label,note,image\nb.nii.gz,hello,a.nii.gz\n"),
        ("cases.csv", ",image,label\n0,a.nii.gz,b.nii.gz\n"),
        ("cases.csv", "image,label,\na.nii.gz,b.nii.gz,\n"),
        ("cases.csv", "image,label\na.nii.gz,b.nii.gz,\n"),
        ("cases.csv", 'image,label,note\na.nii.gz,b.nii.gz,"two\nlines, \u2028 and more"\n'),
    ],
)
def test_a_row_is_read_whatever_separates_its_values(name: str, text: str, tmp_path: Path) -> None:
    ((_, row),) = rows(table(tmp_path, text, name), COLUMNS)
    assert (row["image"], row["label"]) == ("a.nii.gz", "b.nii.gz")


def test_a_quoted_value_may_hold_the_separator(tmp_path: Path) -> None:
    ((_, row),) = rows(table(tmp_path, 'image,label\n"scan, first.nii.gz",b.nii.gz\n'), COLUMNS)
    assert row["image"] == "scan, first.nii.gz"


def test_a_semicolon_separates_nothing_where_the_header_has_commas(tmp_path: Path) -> None:
    ((_, row),) = rows(table(tmp_path, "image,label,size; mm\na;1.nii.gz,b.nii.gz,3\n"), COLUMNS)
    assert row["image"] == "a;1.nii.gz"


def test_the_place_is_the_line_that_an_editor_shows(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label\na,b\n\n,\nc,d\n")
    assert [(place, row["image"]) for place, row in rows(path, COLUMNS)] == [
        ("cases.csv, line 2", "a"),
        ("cases.csv, line 5", "c"),
    ]


def test_values_that_a_short_row_lacks_are_empty(tmp_path: Path) -> None:
    ((_, row),) = rows(table(tmp_path, "image,label\na\n"), COLUMNS)
    assert row == {"image": "a", "label": ""}


def test_a_table_with_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert list(rows(table(tmp_path, "image,label\n"), COLUMNS)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask\na,b\n", r"cases\.csv has no column label; it has image, mask$"),
        ("scan,mask\na,b\n", r"has no column image and no column label; it has scan, mask$"),
        ("", r"has no column image and no column label; it has none$"),
        ("image,label,label\na,b,c\n", r"cases\.csv has 2 columns label: rename one$"),
        ("image,label\na,b\n" + f'"{"x" * 200_000}\n', r"cases\.csv cannot be read as a table, line 2: .*field"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        list(rows(table(tmp_path, text), COLUMNS))


def test_a_missing_column_is_named_with_the_flag_that_chooses_it(tmp_path: Path) -> None:
    path = table(tmp_path, ",scan,label\n0,a,b\n")
    flags = {"image": "-images", "label": "-label", "part": "-split"}
    message = r"cases\.csv has no column image \(-images\) and no column part \(-split\); it has scan, label$"
    with pytest.raises(UserError, match=message):
        list(rows(path, list(flags), flags))


def test_a_row_with_more_cells_than_the_header_lacks_quotes(tmp_path: Path) -> None:
    path = table(tmp_path, "ID,corner,source\n7,(1, 2, 3),cells.zarr\n")
    with pytest.raises(UserError, match=r"^cases\.csv, line 2 has more cells than the header: put quotes around"):
        list(rows(path, ["ID"]))


def test_a_column_that_nobody_needs_may_stand_twice(tmp_path: Path) -> None:
    ((_, row),) = rows(table(tmp_path, "image,note,note,label\na,x,y,b\n"), COLUMNS)
    assert (row["image"], row["label"]) == ("a", "b")


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no file .*missing\.csv$"):
        list(rows(tmp_path / "missing.csv", COLUMNS))


@pytest.mark.parametrize("content", [b"\xff\xfei\x00m\x00", b"PK\x03\x04\xde\xad\xbe\xef"])
def test_a_file_that_is_no_text_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cases\.csv cannot be read as a table.*; save it as CSV in UTF-8$"):
        list(rows(path, COLUMNS))


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r" is a folder: give the table in it$"):
        list(rows(tmp_path, COLUMNS))
