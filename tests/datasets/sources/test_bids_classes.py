"""Names of classes from BIDS's lookup tables, and which table is for which label map."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_ext.datasets.sources.bids_classes import classes_of_labels, names_in_order, remarks_on_names
from nnunetv2_ext.datasets.sources.bids_files import BidsFile, entities_of
from nnunetv2_ext.errors import UserError


def label(folder: Path, name: str = "sub-01_dseg") -> BidsFile:
    return BidsFile(folder / "sub-01" / "anat" / f"{name}.nii.gz", "dseg", entities_of(name))


def table(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["index\tname", *(f"{i}\t{name}" for i, name in enumerate(names, 1))]))


def names_for(folder: Path, name: str) -> list[str] | None:
    of_label = label(folder, name)
    classes = classes_of_labels(folder, [of_label])[of_label.path]
    return None if classes is None else list(classes.values())


def test_without_a_table_there_are_no_names(tmp_path: Path) -> None:
    assert names_for(tmp_path, "sub-01_dseg") is None


def test_a_table_is_for_the_label_maps_that_have_all_of_its_entities(tmp_path: Path) -> None:
    table(tmp_path / "dseg.tsv", "all")
    table(tmp_path / "desc-aseg_dseg.tsv", "aseg")
    table(tmp_path / "desc-aseg_res-1_dseg.tsv", "fine")
    table(tmp_path / "sub-02_dseg.tsv", "other")
    assert names_for(tmp_path, "sub-01_dseg") == ["all"]
    assert names_for(tmp_path, "sub-01_desc-manual_dseg") == ["all"]
    assert names_for(tmp_path, "sub-01_desc-aseg_dseg") == ["aseg"]
    assert names_for(tmp_path, "sub-01_desc-aseg_res-1_dseg") == ["fine"]


def test_the_nearest_table_counts(tmp_path: Path) -> None:
    table(tmp_path / "desc-aseg_dseg.tsv", "far")
    table(tmp_path / "sub-01" / "anat" / "sub-01_dseg.tsv", "near")
    assert names_for(tmp_path, "sub-01_desc-aseg_dseg") == ["near"]
    assert names_for(tmp_path, "sub-01_desc-aseg_rec-x_dseg") == ["near"]


def test_tables_outside_of_the_pipeline_do_not_count(tmp_path: Path) -> None:
    table(tmp_path / "dseg.tsv", "outside")
    assert names_for(tmp_path / "manual", "sub-01_dseg") is None


def test_tables_of_which_none_is_for_a_label_map_are_an_error(tmp_path: Path) -> None:
    for name in ("desc-a_dseg.tsv", "desc-b_dseg.tsv"):
        table(tmp_path / name, "x")
    with pytest.raises(
        UserError,
        match=r"has desc-a_dseg\.tsv, desc-b_dseg\.tsv, but no table for sub-01_dseg\.nii\.gz .*: name .* \(-labels\)$",
    ):
        names_for(tmp_path, "sub-01_dseg")


def test_tables_of_which_several_are_for_a_label_map_are_an_error(tmp_path: Path) -> None:
    for name in ("desc-a_dseg.tsv", "atlas-b_dseg.tsv"):
        table(tmp_path / name, "x")
    with pytest.raises(UserError, match=r"has atlas-b_dseg\.tsv, desc-a_dseg\.tsv, which are all for sub-01_atlas-b_"):
        names_for(tmp_path, "sub-01_atlas-b_desc-a_dseg")


def test_classes_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    (tmp_path / "dseg.tsv").write_text("index\tname\n10\tc\n2\tb\n0\tUnknown\n1\ta\n3\tb\n")
    of_label = label(tmp_path)
    classes = classes_of_labels(tmp_path, [of_label])[of_label.path]
    assert classes == {10: "c", 2: "b", 0: "background", 1: "a", 3: "b"}
    assert names_in_order([classes, None]) == ("background", "a", "b", "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tlabel\n1\tcaudate\n", r"dseg\.tsv has no column name; it has index, label$"),
        ("name\tindex\ncaudate\t1\n1\tputamen\n", r"dseg\.tsv, line 3: the index is 'putamen', where a whole number"),
        ("index\tname\n1.5\tcaudate\n", r"dseg\.tsv, line 2: the index is '1\.5'"),
        ("index\tname\n1\tcaudate\n1\tputamen\n", r"dseg\.tsv, line 3: the index 1 has two names$"),
        ("index\tname\n1\t\n", r"^/[^,]*/dseg\.tsv, line 2: the index 1 has no name$"),
    ],
)
def test_a_table_of_classes_that_is_mixed_up_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dseg.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        classes_of_labels(tmp_path, [label(tmp_path)])


def test_a_table_that_is_separated_by_commas_is_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "dseg.tsv").write_text("index,name\n1,caudate\n")
    of_label = label(tmp_path)
    assert classes_of_labels(tmp_path, [of_label]) == {of_label.path: {1: "caudate"}}


def test_a_name_of_several_values_is_remarked_on_and_background_is_not() -> None:
    classes = {0: "background", 9: "background", 1: "a", 2: "lesion", 3: "lesion"}
    assert remarks_on_names([None, classes, {1: "b"}, classes]) == [
        "dseg.tsv gives one name to several indices, which become one class (lesion: 2, 3)"
    ]
    assert remarks_on_names([{1: "a"}, {2: "a"}]) == []
