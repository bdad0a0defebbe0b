"""Sources that cannot be imported: one line that says what is wrong, exit code 1, and nothing written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.cli import import_dataset
from tests.commands import nnunet_environment, run_command
from tests.conftest import Workplace
from tests.datasets.tables import Table, damage, on_disk, voxels
from tests.disks import fill, mounted
from tests.end_to_end import importable
from tests.end_to_end.conftest import enter
from tests.end_to_end.importable import Source
from tests.end_to_end.refusal import Refuses

COMMAND = "nnUNetv2_import_dataset"
NAME = "Dataset123_Cells"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A user's folders, in which nothing is yet."""
    return Workplace(tmp_path / "user", nnunet_environment(tmp_path / "user"), NAME)


def files(place: Workplace) -> dict[str, tuple[int, int] | None]:
    """Every file and folder; the time of a folder says no more than that a lock has lain in it."""
    return {**dict.fromkeys(str(p.relative_to(place.root)) for p in place.root.rglob("*")), **on_disk(place.root)}


@pytest.fixture
def import_refused(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Imports a source; as `refused`, but what libraries write to stderr past Python counts as well."""
    enter(place, monkeypatch)

    def call(source: Source, *expected: str, more: tuple[object, ...] = (), d: int = 123, name: str = "Cells") -> str:
        before = files(place)
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            import_dataset.main([*map(str, source.arguments(d, name)), "-np", "1", *map(str, more)])
        message = capfd.readouterr().err
        assert exit_info.value.code == 1
        assert message.count("\n") == 1, message
        assert message.startswith(f"{COMMAND}: error: ") or message.startswith(f"{COMMAND} "), message
        assert "Traceback" not in message
        for text in expected:
            assert text in message, message
        assert files(place) == before, "something was written"
        return message

    return call


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Five cases that can be imported."""
    made = Table(tmp_path / "source")
    for name in "abcde":
        made.add(name)
    return made


def of(table: Table, *options: object) -> Source:
    return Source("csv", table.path, options)


@pytest.fixture
def zarr_source(tmp_path: Path) -> Source:
    """Five crops of 16 voxels along each axis."""
    (tmp_path / "cells").mkdir()
    return importable.zarr_csv(tmp_path / "cells", size=16)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, text
    path.write_text(text.replace(old, new))


# ---- arguments ----


@pytest.mark.parametrize("number", [0, -1, 1000])
def test_an_id_that_nnunet_does_not_take(number: int, table: Table, import_refused: Refuses) -> None:
    import_refused(of(table), f"-d is {number}, and must be 1 to 999", d=number)


@pytest.mark.parametrize("name", ["a b", "a__b", "a/b", "../a", "", "_a", "ä", "a.b"])
def test_a_name_that_nnunet_does_not_take(name: str, table: Table, import_refused: Refuses) -> None:
    import_refused(of(table), f"-name is {name!r}, and may hold letters, digits, - and single underscores", name=name)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), ("nan", 1, 1), (1, 1, "inf")])
def test_a_spacing_that_cannot_be(spacing: tuple[object, ...], table: Table, import_refused: Refuses) -> None:
    said = " ".join(map(str, spacing))
    import_refused(of(table), f"-spacing is {said}, and must be above 0", more=("-spacing", *spacing))


@pytest.mark.parametrize("number", [0, -2])
def test_fewer_processes_than_one(number: int, table: Table, import_refused: Refuses) -> None:
    import_refused(of(table), f"-np must be at least 1, not {number}", more=("-np", number))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("-spacing", 1, 1), "-spacing: expected 3 arguments"),
        (("-spacing", 1, 1, "x"), "-spacing: invalid float value: 'x'"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--copy", "--symlink"), "--symlink: not allowed with argument --copy"),
        (("-np", "two"), "-np: invalid int value: 'two'"),
        (("-d", "Dataset123_Cells"), "-d: invalid int value: 'Dataset123_Cells'"),
    ],
)
def test_arguments_that_are_unknown_or_of_another_form(
    more: tuple[object, ...], text: str, table: Table, import_refused: Refuses
) -> None:
    import_refused(of(table), text, "--help", more=more)


def test_a_kind_that_is_unknown(table: Table, import_refused: Refuses) -> None:
    import_refused(Source("dicom", table.path), "'dicom'", "'zarr-csv'", "'patterns'", "'csv'", "'bids'", "--help")


def test_options_of_another_kind(zarr_source: Source, import_refused: Refuses) -> None:
    import_refused(zarr_source, "unrecognized arguments: -label seg", more=("-label", "seg"))


@pytest.mark.parametrize("kind", ["zarr-csv", "patterns", "csv", "bids"])
def test_a_source_that_is_not_there(kind: str, tmp_path: Path, import_refused: Refuses) -> None:
    import_refused(Source(kind, tmp_path / "nothing"), "there is no f", str(tmp_path / "nothing"))


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_folders_that_are_not_set(
    variable: str, table: Table, import_refused: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable)
    import_refused(of(table), f"the environment variable {variable} is not set", f"export {variable}=")


@pytest.mark.parametrize("labels", [("1",), ("liver=1",), ("1=",), ("1=a", "1=b"), ("0=liver",)])
def test_names_of_labels_of_another_form(labels: tuple[str, ...], table: Table, import_refused: Refuses) -> None:
    import_refused(of(table, "-labels", *labels), "-labels ")


def test_fewer_names_of_channels_than_images(table: Table, import_refused: Refuses) -> None:
    import_refused(
        of(table, "-channels", "T1", "T2"), "-channels gives 2 names (T1, T2) for 1 channel (image): give one for each"
    )


# ---- tables and their files ----


@pytest.mark.parametrize("path", ["a.nii.gz", "a_seg.nii.gz"])
def test_a_missing_file(path: str, table: Table, import_refused: Refuses) -> None:
    (table.folder / path).unlink()
    import_refused(
        of(table), "a (table.csv, line 2): there is no file", str(table.folder / path), "nothing was imported"
    )


def test_a_missing_column(table: Table, import_refused: Refuses) -> None:
    import_refused(of(table, "-split", "fold"), "has no column fold (-split); it has image, label, part")


def test_a_missing_file_whose_path_is_made_of_columns(table: Table, import_refused: Refuses) -> None:
    import_refused(
        of(table, "-images", "scans/{image}.gz"), f"no file {table.folder}/scans/a.nii.gz.gz (scans/{{image}}"
    )


def test_an_empty_subject(table: Table, import_refused: Refuses) -> None:
    edit(table.path, "c_seg.nii.gz,train", "c_seg.nii.gz,")
    import_refused(of(table, "-subject", "part"), "c (table.csv, line 4): part is empty: say which subject it is (-sub")


def test_no_label_for_a_training_case(table: Table, import_refused: Refuses) -> None:
    edit(table.path, "c_seg.nii.gz", "")
    import_refused(of(table), "c (table.csv, line 4): label is empty")


def test_the_same_name_twice(table: Table, import_refused: Refuses) -> None:
    table.rows["f"] = table.rows["b"]
    table.write()
    import_refused(of(table), "b (table.csv, line 7): the name b stands 2 times in the source", "-case COLUMN")


def test_a_subject_in_training_and_test(table: Table, import_refused: Refuses) -> None:
    rows = [f"{name}.nii.gz,{name}_seg.nii.gz,train,P{name}" for name in "abcd"]
    table.path.write_text("\n".join(["image,label,part,patient", *rows, "e.nii.gz,e_seg.nii.gz,test,Pb"]))
    source = of(table, "-split", "part", "-subject", "patient")
    import_refused(source, "b (table.csv, line 3): subject Pb is in test and in train")


def test_a_part_that_is_none(table: Table, import_refused: Refuses) -> None:
    table.add("b", part="holdout")
    import_refused(of(table, "-split", "part"), "part is 'holdout', where train, val or test is meant")


def test_a_file_that_is_no_image(table: Table, import_refused: Refuses) -> None:
    table.image("b").write_bytes(b"<!DOCTYPE html><html>log in</html>")
    import_refused(of(table), f"{table.image('b')} is no NIfTI file, or is damaged: copy or download it again")


def test_a_label_map_that_is_cut_off(table: Table, import_refused: Refuses) -> None:
    damage(table.label("b"), 20)
    import_refused(of(table), f"b (table.csv, line 3): {table.label('b')} is damaged: ", ": copy or download it again")


def test_a_mask_of_another_shape(table: Table, import_refused: Refuses) -> None:
    table.add("x", shape=(6, 7, 9))
    os.replace(table.label("x"), table.label("b"))
    table.remove("x")
    import_refused(
        of(table), "b (table", "differ in size 6 x 7 x 8 (z, y, x) and 6 x 7 x 9 (z, y, x)", "--resample_labels"
    )


def test_a_mask_on_another_grid(table: Table, import_refused: Refuses) -> None:
    label = sitk.ReadImage(str(table.label("b")))
    label.SetOrigin((0, 0, 0))
    sitk.WriteImage(label, str(table.label("b")))
    import_refused(of(table), "differ in origin -10 20 30.5 and 0 0 0 (x, y, z)", "--resample_labels")


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [(-1, "int16", "-1, where labels are 0 to"), (0.5, "float32", "0.5, where labels are whole"),
     (70000, "int32", "70000, where labels are 0 to 65535"), (np.nan, "float32", "NaN or infinite")],
)  # fmt: skip
def test_values_that_are_no_labels(value: float, dtype: str, said: str, table: Table, import_refused: Refuses) -> None:
    label = sitk.ReadImage(str(table.label("b")))
    array = sitk.GetArrayFromImage(label).astype(dtype)
    array[1, 2, 3] = value
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(label)
    sitk.WriteImage(changed, str(table.label("b")))
    import_refused(of(table), "b (table.csv, line 3): ", "b_seg.nii.gz", said)


def test_a_value_that_has_no_name(table: Table, import_refused: Refuses) -> None:
    import_refused(of(table, "-labels", "1=liver"), "a_seg.nii.gz holds 2, which the labels do not name (they name 1)")


def test_an_image_without_a_spacing(table: Table, import_refused: Refuses) -> None:
    np.save(table.folder / "b.npy", np.zeros((6, 7, 8)))
    np.save(table.folder / "b_seg.npy", np.zeros((6, 7, 8), np.uint8))
    edit(table.path, "b.nii.gz,b_seg.nii.gz", "b.npy,b_seg.npy")
    import_refused(of(table), "b.npy does not say its spacing: give it (-spacing Z Y X)")


def test_several_bad_cases_are_counted_and_all_are_listed_by_a_dry_run(
    table: Table, import_refused: Refuses, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in "bd":
        table.label(name).unlink()
    import_refused(of(table), "b (table.csv, line 3)", "(and 1 more case; --dry_run lists all)")
    message = import_refused(of(table), "b (table.csv, line 3)", "all are listed above", more=("--dry_run",))
    assert "--dry_run" not in message


# ---- zarr-csv ----


@pytest.mark.parametrize(
    ("corner", "size"),
    [
        ("(0, 4, 3)", "(16, 16, 16)"),
        ("(-1, 2, 3)", "(16, 16, 16)"),
        ("(0, 2, 3)", "(16, 18, 16)"),
        ("(900, 2, 3)", "16"),
    ],
)
def test_a_crop_beyond_the_array(corner: str, size: str, zarr_source: Source, import_refused: Refuses) -> None:
    edit(
        zarr_source.path / "train.csv",
        '7,"(0, 2, 3)",cells.zarr,0,1,"(16, 16, 16)"',
        f'7,"{corner}",cells.zarr,0,1,"{size}"',
    )
    import_refused(
        zarr_source, "train_00007 (train.csv, line 2): ", "is not inside the array, which has 80, 19, 21 voxels"
    )


def test_a_channel_that_is_not_there(zarr_source: Source, import_refused: Refuses) -> None:
    edit(zarr_source.path / "train.csv", '7,"(0, 2, 3)",cells.zarr,0,1', '7,"(0, 2, 3)",cells.zarr,0,2')
    import_refused(zarr_source, "there is no channel 2 in", "has 2 channels (0 to 1)")


def test_an_array_that_is_not_there(zarr_source: Source, import_refused: Refuses) -> None:
    edit(zarr_source.path / "val.csv", "cells.zarr", "cell.zarr")
    import_refused(zarr_source, "val_00001 (val.csv, line 2): there is no Zarr array", "cell.zarr")


def test_a_mask_of_another_shape_than_its_crop(zarr_source: Source, import_refused: Refuses) -> None:
    np.save(zarr_source.path / "train" / "8_mask.npy", np.ones((16, 16, 17), np.uint8))
    import_refused(zarr_source, "train_00008 (train.csv, line 3)", "size 16 x 16 x 16 (z, y, x) and 16 x 16 x 17")


def test_a_mask_that_is_not_there(zarr_source: Source, import_refused: Refuses) -> None:
    (zarr_source.path / "train" / "8_mask.npy").unlink()
    import_refused(zarr_source, "train_00008 (train.csv, line 3): there is no file", "8_mask.npy")


def test_the_same_id_twice(zarr_source: Source, import_refused: Refuses) -> None:
    path = zarr_source.path / "train.csv"
    path.write_text("\n".join([path.read_text(), path.read_text().splitlines()[1]]))
    import_refused(zarr_source, "the ID 7 stands 2 times in train.csv")


def test_fewer_names_of_channels_than_zarr_has(zarr_source: Source, import_refused: Refuses) -> None:
    import_refused(
        zarr_source, "-channels gives 1 name (DNA) for 2 channels (reference, signal)", more=("-channels", "DNA")
    )


def test_a_value_of_a_mask_that_has_no_name(zarr_source: Source, import_refused: Refuses) -> None:
    import_refused(zarr_source, "_mask.npy holds 2, which the labels do not name", more=("-labels", "1=cell"))


def test_zarr_without_a_spacing(zarr_source: Source, import_refused: Refuses) -> None:
    source = Source("zarr-csv", zarr_source.path)
    import_refused(source, "cells.zarr", "does not say its spacing: give it (-spacing Z Y X)")


def test_an_unreadable_chunk_stops_at_its_case_and_what_is_done_is_kept(
    zarr_source: Source, place: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    enter(place, monkeypatch)
    chunks = sorted(p for p in (zarr_source.path / "cells.zarr").rglob("*") if p.is_file() and p.name.isdecimal())
    damaged = next(p for p in chunks if p.parts[-4:-2] == ("1", "2"))  # the second crop begins with this layer's chunks
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    arguments = [*map(str, zarr_source.arguments(123, "Cells")), "-np", "1"]
    with pytest.raises(SystemExit) as exit_info:
        import_dataset.main(arguments)
    assert exit_info.value.code == 1
    message = capfd.readouterr().err
    assert message.count("\n") == 1, message
    assert "train_00008 could not be imported: " in message
    assert "cells.zarr (corner 16, 2, 3, size 16, 16, 16, channel 1) cannot be read" in message
    assert message.endswith("; mend or leave out that case; what is done is kept, and the same command goes on\n")
    assert not place.raw.exists()
    assert not place.preprocessed.exists()
    unfinished = place.raw.with_name(f".{NAME}.importing")
    before = {k: v for k, v in on_disk(unfinished).items() if k.endswith(".nii.gz") and "00008" not in k}
    assert len(before) == 4 * 3
    damaged.write_bytes(content)
    import_dataset.main(arguments)
    after = on_disk(place.raw)
    assert {name: after[name] for name in before} == before
    assert len([name for name in after if "00008" in name]) == 3


# ---- patterns and bids ----


@pytest.fixture
def patterns_source(tmp_path: Path) -> Source:
    return importable.patterns(tmp_path / "hippo")


@pytest.fixture
def bids_source(tmp_path: Path) -> Source:
    return importable.bids(tmp_path / "brains")


def test_a_pattern_that_matches_nothing(patterns_source: Source, import_refused: Refuses) -> None:
    edit(patterns_source.path, '"**/t2w_right.nii.gz"', '"**/t1w_right.nii.gz"')
    import_refused(patterns_source, "the pattern right of clinic matches no file", "**/t1w_right.nii.gz")


def test_an_image_that_two_patterns_match(patterns_source: Source, import_refused: Refuses) -> None:
    edit(patterns_source.path, '"**/t2w_right.nii.gz"', '"**/t2w_*t.nii.gz"')
    import_refused(patterns_source, "is matched by the patterns left and right", "(and ")


def test_a_subject_that_no_path_names(patterns_source: Source, import_refused: Refuses) -> None:
    edit(patterns_source.path, "    path: clinic\n", "    path: clinic\n    subject: 'patient[0-9]+'\n")
    import_refused(patterns_source, "subject of clinic matches nothing in sub00/t2w_left.nii.gz (and 5 more cases")


def test_a_label_pattern_that_matches_twice(patterns_source: Source, import_refused: Refuses) -> None:
    edit(patterns_source.path, '"t2w_left_seg.nii.gz"', '"t2w_*_seg.nii.gz"')
    import_refused(patterns_source, "its label pattern matches 2 files (t2w_left_seg.nii.gz, t2w_right_seg.nii.gz)")


def test_a_split_that_names_cases_that_are_not_there(patterns_source: Source, import_refused: Refuses) -> None:
    edit(patterns_source.path, "train_ratio: .7", "train_val_test_idx: [[0, 1, 2, 3], [4, 6], []]")
    import_refused(patterns_source, "train_val_test_idx name case 6, and there are 6 (0 to 5)")


def test_a_split_that_divides_a_subject(patterns_source: Source, import_refused: Refuses) -> None:
    edit(patterns_source.path, "train_ratio: .7", "train_val_test_idx: [[0, 1, 2], [3, 4, 5], []]")
    import_refused(patterns_source, "is in train and in val")


def test_a_value_that_patterns_do_not_list(patterns_source: Source, import_refused: Refuses) -> None:
    edit(patterns_source.path, "labels: {1: 1, 2: 2, 7: 0}", "labels: {1: 1, 2: 2}")
    import_refused(patterns_source, "holds 7, which the labels do not name (they name 1, 2)", "(and 5 more cases")


def test_a_subject_that_is_not_in_the_bids_dataset(bids_source: Source, import_refused: Refuses) -> None:
    import_refused(bids_source, "has no subject 09 with _T1w images (-sub); it has 01, 02, 03", more=("-sub", "09"))


def test_a_bids_image_without_a_label_map(bids_source: Source, import_refused: Refuses) -> None:
    next(bids_source.path.glob("derivatives/manual/sub-02/ses-a/anat/*.nii.gz")).unlink()
    import_refused(bids_source, "there is no label map for it: -unlabelled skip leaves such images out")


def test_several_label_maps_for_a_bids_image(bids_source: Source, import_refused: Refuses) -> None:
    (path,) = bids_source.path.glob("derivatives/manual/sub-02/ses-a/anat/*.nii.gz")
    (path.parent / path.name.replace("_dseg", "_desc-b_dseg")).write_bytes(path.read_bytes())
    import_refused(bids_source, "2 label maps fit it, which differ in desc", "-label_entities desc=b")


# ---- what is there already ----


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_id_that_exists_already(variable: str, place: Workplace, table: Table, import_refused: Refuses) -> None:
    (place.root / variable / "Dataset123_Livers").mkdir()
    import_refused(of(table), "the id 123 is taken by", f"{variable}/Dataset123_Livers: choose another (-d)")


def test_a_dataset_that_was_not_imported(place: Workplace, table: Table, import_refused: Refuses) -> None:
    (place.raw / "imagesTr").mkdir(parents=True)
    import_refused(of(table), f"{place.raw} exists and was not imported: choose another id (-d) or name (-name)")


def test_a_dataset_of_another_source(place: Workplace, table: Table, tmp_path: Path, import_refused: Refuses) -> None:
    run_command(COMMAND, *of(table).arguments(123, "Cells"), "-np", 1, env=place.env)
    other = Table(tmp_path / "other").add("a")
    import_refused(of(other), f"{NAME} was imported from {table.path} (csv): choose another id (-d)")


def test_another_split(place: Workplace, table: Table, import_refused: Refuses) -> None:
    place.preprocessed.mkdir()
    path = place.preprocessed / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a"], "val": ["b", "c", "d", "e"]}]))
    table.add("e", part="val")
    import_refused(of(table, "-split", "part"), f"{path} holds another split than the source defines: move it away")


# ---- the disk ----


@pytest.mark.parametrize("leave", [0, pytest.param(50_000, marks=pytest.mark.slow), 300_000])
def test_a_full_disk_is_said_in_one_line_and_the_same_command_goes_on_when_there_is_space(
    leave: int, tmp_path: Path
) -> None:
    table = Table(tmp_path / "source")
    for number, name in enumerate("abcde"):
        table.add(name, shape=(40, 40, 40), ending=".nrrd" if number == 3 else ".nii.gz")
    with mounted(tmp_path / "disk", "size=8m") as disk:
        env = {**nnunet_environment(tmp_path), "nnUNet_raw": str(disk)}
        filling = fill(disk, leave=leave)
        result = run_command(COMMAND, *of(table).arguments(123, "Cells"), "-np", 2, env=env, check=False)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1, result.stderr
        assert re.search(r"No space left on device|failed to write", result.stderr), result.stderr
        assert not (disk / NAME).exists()
        filling.unlink()
        run_command(COMMAND, *of(table).arguments(123, "Cells"), "-np", 2, env=env)
        for name in "abce":
            assert (disk / NAME / "imagesTr" / f"{name}_0000.nii.gz").read_bytes() == table.image(name).read_bytes()
        converted = voxels(disk / NAME / "imagesTr" / "d_0000.nii.gz")
    np.testing.assert_array_equal(converted, voxels(table.image("d", ".nrrd")))


def test_a_disk_that_cannot_be_written_to(tmp_path: Path, table: Table) -> None:
    with mounted(tmp_path / "disk", "ro,size=1m") as disk:
        env = {**nnunet_environment(tmp_path), "nnUNet_raw": str(disk)}
        result = run_command(COMMAND, *of(table).arguments(123, "Cells"), "-np", 1, env=env, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Read-only file system" in result.stderr


def test_verbose_shows_the_traceback(place: Workplace, tmp_path: Path) -> None:
    arguments = Source("csv", tmp_path / "nothing.csv").arguments(123, "Cells")
    result = run_command(COMMAND, *arguments, "--verbose", env=place.env, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
