"""A source becomes a raw dataset and its split; the same command again goes on, and takes over what has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.datasets import importing
from nnunetv2_ext.datasets.collection import TEST, TRAIN, Case, Collection
from nnunetv2_ext.datasets.importing import ImportOptions, common_ending, import_dataset
from nnunetv2_ext.datasets.sources.csv_table import Columns, read_csv_table
from nnunetv2_ext.datasets.staging import Staging
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.datasets.workers import num_processes
from nnunetv2_ext.datasets.writing import Transfer, WriteJob, Written, write_case
from nnunetv2_ext.errors import UserError
from tests.commands import nnunet_environment
from tests.datasets.tables import Table, damage, on_disk, renumbered, tree, voxels
from tests.disks import fill, mounted

NAME = "Dataset123_Cells"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The dataset to be, in the folders of a user."""
    for variable, value in nnunet_environment(tmp_path).items():
        if variable.startswith("nnUNet_"):
            monkeypatch.setenv(variable, value)
    return tmp_path / "nnUNet_raw" / NAME


@pytest.fixture
def splits(raw: Path) -> Path:
    """The split that nnU-Net's training reads."""
    return raw.parent.parent / "nnUNet_preprocessed" / NAME / "splits_final.json"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Five cases, for which nnU-Net's own split will do; the image of `b` has to be converted."""
    return Table(tmp_path / "source").add("a").add("b", ending=".nrrd").add("c").add("d").add("e")


def import_table(table: Table, classes: Mapping[int, str] | None = None, **options: Any) -> None:
    """As the command does."""
    collection = read_csv_table(table.path, Columns(split="part"), classes=classes)
    import_dataset("csv", str(table.path), collection, ImportOptions(123, "Cells", **options))


def manifest(raw: Path) -> dict[str, Any]:
    return json.loads((raw / "import_manifest.json").read_text())


def description(raw: Path) -> dict[str, Any]:
    return json.loads((raw / "dataset.json").read_text())


def cases_on_disk(folder: Path) -> dict[str, tuple[int, int]]:
    """The files of cases, without the JSON beside them."""
    return {name: which for name, which in on_disk(folder).items() if name.endswith(".nii.gz")}


def files_of(*names: str) -> set[str]:
    return {f for name in names for f in (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz")}


def elsewhere(table: Table, tmp_path: Path, **options: Any) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What an undisturbed import into other folders makes, raw and preprocessed."""
    root = tmp_path / "elsewhere"
    shutil.rmtree(root, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in nnunet_environment(root).items():
            if variable.startswith("nnUNet_"):
                patch.setenv(variable, value)
        import_table(table, **options)
    return tree(root / "nnUNet_raw"), tree(root / "nnUNet_preprocessed")


# ---- what is made ----


def test_the_dataset_says_what_nnunet_needs(raw: Path, table: Table) -> None:
    table.add("t", part="test")
    import_table(table)
    assert description(raw) == {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "label_1": 1, "label_2": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
        "name": "Cells",
        "source_labels": {"background": [0], "label_1": [1], "label_2": [2]},
    }
    assert sorted(p.name for p in (raw / "imagesTs").iterdir()) == ["t_0000.nii.gz"]
    assert sorted(p.name for p in (raw / "labelsTs").iterdir()) == ["t.nii.gz"]


def test_values_are_numbered_over_all_cases(raw: Path, tmp_path: Path) -> None:
    table = Table(tmp_path / "source").add("a", values=(0, 7)).add("b", values=(0, 3)).add("c", values=(0,))
    import_table(table)
    numbers = {0: 0, 3: 1, 7: 2}
    assert description(raw)["labels"] == {"background": 0, "label_3": 1, "label_7": 2}
    for name in "abc":
        expected = renumbered(voxels(table.label(name)), numbers)
        np.testing.assert_array_equal(voxels(raw / "labelsTr" / f"{name}.nii.gz"), expected)


def test_values_of_one_name_are_one_class_and_ignore_comes_last(raw: Path, tmp_path: Path) -> None:
    table = Table(tmp_path / "source").add("a", values=(0, 1, 2, 4, 9)).add("b", values=(0, 2))
    import_table(table, {9: "ignore", 2: "liver", 1: "liver", 4: "background", 5: "vessel"})
    assert description(raw)["labels"] == {"background": 0, "liver": 1, "vessel": 2, "ignore": 3}
    assert description(raw)["source_labels"] == {"background": [0, 4], "ignore": [9], "liver": [1, 2]}
    expected = renumbered(voxels(table.label("a")), {0: 0, 4: 0, 1: 1, 2: 1, 9: 3})
    np.testing.assert_array_equal(voxels(raw / "labelsTr" / "a.nii.gz"), expected)


def test_a_label_map_that_is_consecutive_for_the_dataset_is_copied_others_are_renumbered(
    raw: Path, tmp_path: Path
) -> None:
    table = Table(tmp_path / "source").add("a", values=(0, 1)).add("b", values=(0, 3))
    import_table(table)
    assert (raw / "labelsTr" / "a.nii.gz").read_bytes() == table.label("a").read_bytes()
    entries = manifest(raw)["cases"]
    assert (entries["a"]["label"]["how"], entries["b"]["label"]["how"]) == ("copied", "converted")


def test_merged_classes_and_the_unit_of_the_spacing_stand_in_the_dataset(raw: Path, table: Table) -> None:
    classes = {1: "CA2", 2: "DG"}
    volumes = {name: volume_at(table.folder / line.split(",")[0]) for name, line in table.rows.items()}
    cases = tuple(
        Case(
            name, name, name, TRAIN if name != "c" else TEST, (volumes[name],), volume_at(table.label(name)), classes,
            merged=(("CA2", "CA3"),) if name in "bc" else (),
        )
        for name in table.rows
    )  # fmt: skip
    collection = Collection(cases, ("MRI",), ("CA2", "CA3", "DG"), described={"spacing_unit": "micrometer"})
    import_dataset("patterns", "file", collection, ImportOptions(123, "Cells"))
    made = description(raw)
    assert made["labels"] == {"background": 0, "CA2": 1, "CA3": 2, "DG": 3}
    assert made["merged_classes"] == {"b": [["CA2", "CA3"]]}, "of training cases"
    assert made["spacing_unit"] == "micrometer"


def test_tiff_is_left_to_nnunets_reader_of_volumes(raw: Path, tmp_path: Path) -> None:
    import tifffile

    for name in ("i.tif", "l.tif"):
        tifffile.imwrite(tmp_path / name, np.ones((3, 4, 5), np.uint8), photometric="minisblack")
    case = Case("a", "a", "a", TRAIN, (volume_at(tmp_path / "i.tif", (1, 1, 1)),), volume_at(tmp_path / "l.tif"))
    import_dataset("csv", "t", Collection((case,), ("image",)), ImportOptions(123, "Cells"))
    assert description(raw)["overwrite_image_reader_writer"] == "Tiff3DIO"
    assert sorted(p.name for p in raw.glob("*/*")) == ["a.json", "a.json", "a.tif", "a_0000.tif"]


@pytest.mark.parametrize(
    ("names", "ending"),
    [
        (["a.nii.gz", "b.nii.gz"], ".nii.gz"),
        (["a.nrrd", "b.nrrd"], ".nrrd"),
        (["a.tiff", "b.tiff"], ".tiff"),
        (["a.nrrd", "b.mha"], ".nii.gz"),
        (["a.tif", "b.tiff"], ".nii.gz"),
        (["a.npy", "b.npy"], ".nii.gz"),
        (["a.npy", "b.nrrd"], ".nii.gz"),
        (["a.mhd", "b.mhd"], ".nii.gz"),
    ],
)
def test_the_ending_is_the_images_own_where_all_have_the_same_that_nnunet_reads(names: list[str], ending: str) -> None:
    label = volume_at(Path("/data/label.nii"))
    cases = [Case(name, name, name, TRAIN, (volume_at(Path("/data") / name),), label) for name in names]
    assert common_ending(cases) == ending


def test_fewer_processes_than_one_are_refused_and_the_default_is_at_most_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_processes(3) == 3
    for cores, expected in ((2, 2), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert num_processes(None) == expected
    for wanted in (0, -1):
        with pytest.raises(UserError, match=f"-np must be at least 1, not {wanted}"):
            num_processes(wanted)


@pytest.mark.parametrize("processes", [1, 2])
def test_more_processes_make_the_same_files(processes: int, raw: Path, table: Table, tmp_path: Path) -> None:
    import_table(table, num_processes=processes)
    assert tree(raw.parent) == elsewhere(table, tmp_path)[0]


# ---- the split ----


def test_the_split_of_the_source_lies_where_nnunet_looks_for_it_and_with_the_raw_data(
    raw: Path, splits: Path, table: Table
) -> None:
    import_table(table.add("v", part="val").add("t", part="test"))
    assert json.loads(splits.read_text()) == [{"train": ["a", "b", "c", "d", "e"], "val": ["v"]}]
    assert (raw / "splits_final.json").read_bytes() == splits.read_bytes()


def test_a_source_without_a_split_leaves_it_to_nnunet(raw: Path, splits: Path, table: Table) -> None:
    import_table(table)
    assert not splits.exists()
    assert not (raw / "splits_final.json").exists()


@pytest.mark.parametrize("there", ['[{"train": ["a"], "val": ["b"]}]', "{"])
def test_another_split_is_never_replaced(there: str, raw: Path, splits: Path, table: Table) -> None:
    splits.parent.mkdir(parents=True)
    splits.write_text(there)
    with pytest.raises(UserError, match=f"{splits} holds another split than the source defines: move it away"):
        import_table(table.add("v", part="val"))
    assert splits.read_text() == there
    assert list(raw.parent.iterdir()) == []


def test_the_same_split_is_left_as_it_is(raw: Path, splits: Path, table: Table) -> None:
    splits.parent.mkdir(parents=True)
    content = '[{"train":["a","b","c","d","e"],"val":["v"]}]'
    splits.write_text(content)
    import_table(table.add("v", part="val"))
    assert splits.read_text() == content
    assert raw.exists()


def test_a_split_that_is_missing_though_all_cases_are_there_is_written(splits: Path, raw: Path, table: Table) -> None:
    import_table(table.add("v", part="val"))
    content = splits.read_bytes()
    shutil.rmtree(splits.parent)
    import_table(table)
    assert splits.read_bytes() == content


# ---- interruptions ----


def test_nothing_has_the_datasets_name_until_all_cases_are_there(raw: Path, table: Table) -> None:
    damage(table.image("b", ".nrrd"))
    with pytest.raises(UserError, match=r"b could not be imported: .*b\.nrrd.*; mend or leave out that case; what"):
        import_table(table)
    assert not raw.exists()
    assert [p.name for p in raw.parent.iterdir()] == [f".{NAME}.importing"]


def test_the_same_command_goes_on_with_what_is_missing(raw: Path, table: Table, tmp_path: Path) -> None:
    damage(table.image("b", ".nrrd"))
    with pytest.raises(UserError):
        import_table(table)
    before = cases_on_disk(raw.parent / f".{NAME}.importing")
    assert set(before) == files_of(*"acde")
    import_table(table.add("b", ending=".nrrd"))
    after = cases_on_disk(raw)
    assert set(after) == files_of(*"abcde")
    assert {name: after[name] for name in before} == before, "done again"
    assert tree(raw.parent) == elsewhere(table, tmp_path)[0]


def test_every_case_that_fails_is_counted_and_the_others_are_kept(raw: Path, table: Table) -> None:
    for name in "fg":
        table.add(name, ending=".nrrd")
        damage(table.image(name, ".nrrd"))
    with pytest.raises(UserError, match=r"^f could not be imported: .*\(and 1 more case\)"):
        import_table(table)
    assert set(cases_on_disk(raw.parent / f".{NAME}.importing")) == files_of(*"abcde")


def test_ctrl_c_keeps_what_is_done(raw: Path, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_c(job: WriteJob) -> Written:
        if job.case.name == "c":
            raise KeyboardInterrupt
        return write_case(job)

    with monkeypatch.context() as patch:
        patch.setattr(importing, "write_case", stop_at_c)
        with pytest.raises(KeyboardInterrupt):
            import_table(table)
    assert not raw.exists()
    before = cases_on_disk(raw.parent / f".{NAME}.importing")
    import_table(table)
    after = cases_on_disk(raw)
    assert set(before) == files_of("a", "b")
    assert {name: after[name] for name in before} == before
    assert tree(raw.parent) == elsewhere(table, tmp_path)[0]


STOPPED = 77


def import_in_a_process_that_stops(table: Table, after: int) -> int:
    """Import in a process that ends, as if killed, at its n-th change of the disk. Returns its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            _end_after(after)
            import_table(table)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _end_after(left: int) -> None:
    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                os._exit(STOPPED)
            left -= 1
            return function(*args, **kwargs)

        return call

    for name in ("replace", "link", "unlink", "fsync", "mkdir", "rmdir", "symlink"):
        setattr(os, name, counted(getattr(os, name)))


def test_a_split_that_changes_with_its_source_is_kept_beside_the_new_one(
    splits: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    table.add("v", part="val")
    import_table(table)
    before = splits.read_bytes()
    table.add("w", part="val")
    import_table(table)
    assert json.loads(splits.read_text())[0]["val"] == ["v", "w"]
    assert splits.with_name("splits_final_previous.json").read_bytes() == before
    assert "train all folds anew" in capsys.readouterr().out


def test_a_split_that_a_user_has_edited_is_not_replaced_when_the_source_changes(splits: Path, table: Table) -> None:
    table.add("v", part="val")
    import_table(table)
    splits.write_text('[{"train": ["a"], "val": ["b"]}]')
    table.add("w", part="val")
    with pytest.raises(UserError, match="holds another split than the source defines"):
        import_table(table)
    assert json.loads(splits.read_text()) == [{"train": ["a"], "val": ["b"]}]


def test_a_split_that_the_source_no_longer_defines_leaves_the_raw_data(raw: Path, splits: Path, table: Table) -> None:
    table.add("v", part="val")
    import_table(table)
    table.remove("v")
    import_table(table)
    assert not (raw / "splits_final.json").exists()
    assert splits.exists()


@pytest.mark.parametrize("content", ['[{"train": ["a", "b"], "val": ["c", "d"]}]', "no JSON"])
def test_a_split_of_nnunets_that_lacks_new_cases_is_remarked_on(
    content: str, splits: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    splits.parent.mkdir(parents=True)
    splits.write_text(content)
    import_table(table)
    assert f"{splits} does not name {'e' if content[0] == '[' else 'a'} (" in capsys.readouterr().out
    assert splits.read_text() == content


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("changed", [False, True])
def test_an_import_that_is_killed_at_any_step_is_continued_to_the_same_files(
    changed: bool, every: int, raw: Path, splits: Path, tmp_path: Path
) -> None:
    table = Table(tmp_path / "source").add("a").add("b", ending=".nrrd").add("v", part="val")
    folders = {raw.parent: tmp_path / "raw_before", splits.parent.parent: tmp_path / "preprocessed_before"}
    if changed:
        import_table(table)
        table.remove("a").add("b", seed=1, ending=".nrrd").add("c", values=(0, 2, 5))
    for folder, before in folders.items():
        shutil.copytree(folder, before)
    expected = elsewhere(table, tmp_path)
    for after in range(0, 1000, every):
        for folder, before in folders.items():
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
        exit_code = import_in_a_process_that_stops(table, after)
        if exit_code != STOPPED:
            break
        import_table(table)
        assert tree(raw.parent) == expected[0], after
        assert splits.read_bytes() == expected[1][f"{NAME}/splits_final.json"], after
    assert exit_code == 0
    assert after > 30, "hardly a step was reached"
    assert tree(raw.parent) == expected[0]


# ---- a source that has changed ----


def test_nothing_is_done_where_nothing_has_changed(
    raw: Path, splits: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    import_table(table.add("v", part="val"))
    before = on_disk(raw.parent.parent)
    capsys.readouterr()
    import_table(table)
    assert f"{raw} holds 6 cases as in the source: nothing to do" in capsys.readouterr().out
    assert on_disk(raw.parent.parent) == before


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_case_whose_file_has_changed_is_done_again_and_no_other(
    ending: str, raw: Path, table: Table, tmp_path: Path
) -> None:
    name = {".nii.gz": "a", ".nrrd": "b"}[ending]
    import_table(table)
    before = cases_on_disk(raw)
    import_table(table.add(name, seed=1, ending=ending))
    after = cases_on_disk(raw)
    assert {file for file in after if after[file] != before[file]} == files_of(name)
    np.testing.assert_array_equal(voxels(raw / "imagesTr" / f"{name}_0000.nii.gz"), voxels(table.image(name, ending)))
    assert tree(raw.parent) == elsewhere(table, tmp_path)[0]


def test_a_file_of_the_same_size_with_another_time_counts_as_changed(raw: Path, table: Table) -> None:
    import_table(table)
    content = bytearray(table.label("a").read_bytes())
    content[9] ^= 1  # gzip's note of the operating system
    stat = table.label("a").stat()
    table.label("a").write_bytes(content)
    os.utime(table.label("a"), ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    import_table(table)
    assert (raw / "labelsTr" / "a.nii.gz").read_bytes() == content
    assert manifest(raw)["cases"]["a"]["label"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_new_row_is_added_and_the_others_stay_as_they_are(raw: Path, table: Table, tmp_path: Path) -> None:
    import_table(table)
    before = cases_on_disk(raw)
    import_table(table.add("f"))
    after = cases_on_disk(raw)
    assert set(after) - set(before) == files_of("f")
    assert {name: after[name] for name in before} == before
    assert description(raw)["numTraining"] == 6
    assert tree(raw.parent) == elsewhere(table, tmp_path)[0]


def test_a_row_that_is_gone_takes_its_files_with_it(raw: Path, table: Table, tmp_path: Path) -> None:
    import_table(table)
    before = cases_on_disk(raw)
    import_table(table.remove("b"))
    assert cases_on_disk(raw) == {name: before[name] for name in files_of(*"acde")}
    assert list(manifest(raw)["cases"]) == [*"acde"]
    assert tree(raw.parent) == elsewhere(table, tmp_path)[0]


def test_a_case_that_moves_to_the_test_cases_moves_its_files(raw: Path, table: Table, tmp_path: Path) -> None:
    import_table(table)
    import_table(table.add("b", ending=".nrrd", part="test"))
    assert set(cases_on_disk(raw)) == files_of(*"acde") | {"imagesTs/b_0000.nii.gz", "labelsTs/b.nii.gz"}
    assert tree(raw.parent) == elsewhere(table, tmp_path)[0]


def test_a_new_value_renumbers_the_cases_that_it_concerns(raw: Path, tmp_path: Path) -> None:
    table = Table(tmp_path / "source").add("b", values=(0, 4))
    for name in "acde":
        table.add(name, values=(0, 1))
    import_table(table)
    before = cases_on_disk(raw)
    import_table(table.add("f", values=(0, 2)))
    after = cases_on_disk(raw)
    assert after["labelsTr/a.nii.gz"] == before["labelsTr/a.nii.gz"]
    expected = renumbered(voxels(table.label("b")), {0: 0, 4: 3})
    np.testing.assert_array_equal(voxels(raw / "labelsTr" / "b.nii.gz"), expected)


def test_a_file_that_is_gone_from_the_dataset_comes_back(raw: Path, table: Table) -> None:
    import_table(table)
    before = tree(raw)
    (raw / "imagesTr" / "b_0000.nii.gz").unlink()
    import_table(table)
    assert tree(raw) == before


def test_copies_become_links_and_links_copies(raw: Path, table: Table) -> None:
    import_table(table.remove("b"))
    copied = {name: content for name, content in tree(raw).items() if name.endswith(".nii.gz")}
    import_table(table, transfer=Transfer.SYMLINK)
    assert (raw / "imagesTr" / "a_0000.nii.gz").readlink() == table.image("a")
    import_table(table)
    assert {name: content for name, content in tree(raw).items() if name.endswith(".nii.gz")} == copied
    assert not [path for path in raw.rglob("*") if path.is_symlink()]


def test_a_change_that_cannot_be_imported_leaves_the_finished_dataset_as_it_is(raw: Path, table: Table) -> None:
    import_table(table)
    before = on_disk(raw)
    damage(table.image("b", ".nrrd"))
    with pytest.raises(UserError, match="b could not be imported"):
        import_table(table.add("f"))
    assert on_disk(raw) == before


# ---- what is refused ----


def test_the_same_name_for_another_source_is_refused(raw: Path, table: Table, tmp_path: Path) -> None:
    import_table(table)
    before = on_disk(raw.parent)
    with pytest.raises(UserError, match=rf"{NAME} was imported from {table.path} \(csv\): choose another id"):
        import_table(Table(tmp_path / "other").add("a"))
    assert on_disk(raw.parent) == before


def test_a_dataset_that_another_process_has_finished_meanwhile_is_left_alone(
    raw: Path, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Table(tmp_path / "other").add("x")
    locked = Staging.locked

    def after_the_other(staging: Staging) -> AbstractContextManager[None]:
        monkeypatch.setattr(Staging, "locked", locked)
        import_table(other)
        return locked(staging)

    monkeypatch.setattr(Staging, "locked", after_the_other)
    with pytest.raises(UserError, match=f"was imported from {other.path}"):
        import_table(table)
    assert set(cases_on_disk(raw)) == files_of("x")


def test_an_import_beside_another_of_the_same_dataset_is_refused(raw: Path, table: Table) -> None:
    with Staging(NAME).locked():
        before = on_disk(raw.parent)
        with pytest.raises(UserError, match="another process is importing a dataset with the id 123: wait"):
            import_table(table)
        assert on_disk(raw.parent) == before
    import_table(table)


def test_the_first_case_with_a_problem_is_named_with_its_row_and_the_others_are_counted(
    raw: Path, table: Table
) -> None:
    table.label("b").unlink()
    table.add("c", values=(0, -1))
    with pytest.raises(UserError) as error_info:
        import_table(table)
    message = str(error_info.value)
    assert message.startswith(f"b (table.csv, line 3): there is no file {table.label('b')} (label)")
    assert message.endswith(" (and 1 more case; --dry_run lists all); nothing was imported")
    assert list(raw.parent.iterdir()) == []


def test_a_source_of_test_cases_alone_is_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no training cases"):
        import_table(Table(tmp_path / "source").add("a", part="test"))
    assert list(raw.parent.iterdir()) == []


def test_label_maps_with_background_alone_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no label holds anything but background"):
        import_table(Table(tmp_path / "source").add("a", values=(0,)))
    assert list(raw.parent.iterdir()) == []


@pytest.mark.parametrize("bad", [False, True])
def test_a_dry_run_lists_every_case_and_its_problem_and_writes_nothing(
    bad: bool, raw: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.parent.rmdir()
    if bad:
        table.label("b").unlink()
        with pytest.raises(UserError, match=r"b \(table.csv, line 3\)"):
            import_table(table, dry_run=True)
    else:
        import_table(table, dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    rows = {name: [line for line in lines if line.startswith(f"{name} ")] for name in "abc"}
    assert {name: len(found) for name, found in rows.items()} == {"a": 1, "b": 1 + bad, "c": 1}
    assert "6 x 7 x 8" in rows["a"][0]
    assert "2.5 x 0.75 x 1" in rows["a"][0]
    assert "1 label_1, 2 label_2" in rows["a"][0]
    assert (f"b (table.csv, line 3): there is no file {table.label('b')} (label)" in lines) == bad
    assert ("to be imported: 5 of 5 cases; nothing was written" in lines) == (not bad)
    assert not raw.parent.exists()


def test_a_dry_run_refuses_what_the_import_would(raw: Path, splits: Path, table: Table, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no label holds anything but background"):
        import_table(Table(tmp_path / "empty").add("a", values=(0,)), dry_run=True)
    splits.parent.mkdir()
    splits.write_text("[]")
    with pytest.raises(UserError, match="holds another split"):
        import_table(table.add("v", part="val"), dry_run=True)


def test_a_dry_run_finds_what_is_wrong_with_the_voxels_of_images_that_would_be_converted(
    raw: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(table.image("b", ".nrrd"))
    with pytest.raises(UserError, match=r"^b \(table\.csv, line 3\): .*b\.nrrd.*; nothing was imported"):
        import_table(table, dry_run=True)
    assert "problems in 1" in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_a_folder_that_cannot_be_written_to_is_named_before_a_case_is_read(
    variable: str, raw: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add("v", part="val").label("a").unlink()
    with mounted(raw.parent.parent / "disk", "ro") as disk:
        monkeypatch.setenv(variable, str(disk))
        with pytest.raises(UserError, match=rf"^Read-only file system: {disk} \({variable}\); make it writable"):
            import_table(table)
    assert list(raw.parent.iterdir()) == []


def test_a_split_for_which_there_is_no_room_is_written_by_the_same_command_later(
    raw: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add("v", part="val")
    with mounted(raw.parent.parent / "disk", "size=64k") as disk:
        monkeypatch.setenv("nnUNet_preprocessed", str(disk))
        filling = fill(disk, leave=4096)  # enough for the look at the beginning, not for the folder and the file
        (disk / NAME).mkdir()
        write_split = importing.write_split
        monkeypatch.setattr(importing, "write_split", lambda *of: (fill_up(disk), write_split(*of)))
        with pytest.raises(UserError, match=r"^No space left on device: .*\(nnUNet_preprocessed\); make room; what"):
            import_table(table)
        assert not raw.exists()
        assert list((disk / NAME).iterdir()) == []
        monkeypatch.setattr(importing, "write_split", write_split)
        filling.unlink()
        import_table(table)
        assert json.loads((disk / NAME / "splits_final.json").read_text())[0]["val"] == ["v"]
    assert raw.exists()


def fill_up(disk: Path) -> None:
    """To the last byte, beside what `fill` has made."""
    with suppress(OSError), (disk / "more").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_classes_without_a_training_case_are_remarked_on_before_the_import(
    raw: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    import_table(table, {1: "liver", 2: "cyst", 7: "vessel"})
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("1 of 3 classes are in no training case: vessel; ")
    assert description(raw)["labels"] == {"background": 0, "liver": 1, "cyst": 2, "vessel": 3}


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_a_change_makes_out_of_date_is_remarked_on(
    dry_run: bool, raw: Path, splits: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    import_table(table.add("t", part="test"))
    splits.parent.mkdir(exist_ok=True)
    (splits.parent / "dataset_fingerprint.json").write_text("{}")
    shutil.copy(raw / "dataset.json", splits.parent)
    capsys.readouterr()
    import_table(table, dry_run=dry_run, transfer=Transfer.SYMLINK)  # the same voxels, in another way
    table.add("t", part="test", seed=1)
    import_table(table, dry_run=dry_run)
    assert "plan and preprocess again" not in capsys.readouterr().out
    table.add("b", seed=1).add("new").remove("c")
    import_table(table, dry_run=dry_run)
    lines = capsys.readouterr().out.splitlines()
    (remark,) = [line for line in lines if "plan and preprocess again" in line]
    assert "before a change of 3 training cases (b, c, new): " in remark
    if not dry_run:
        assert lines[-1] == "next: nnUNetv2_plan_and_preprocess -d 123 --verify_dataset_integrity --clean --no_pp"


# ---- the manifest ----


def test_the_manifest_says_where_every_file_comes_from(raw: Path, table: Table) -> None:
    import_table(table.add("t", part="test"))
    made = manifest(raw)
    assert (made["kind"], made["source"], made["finished"]) == ("csv", str(table.path), True)
    noted = [file for entry in made["cases"].values() for file in (*entry["images"], entry["label"])]
    assert {file["file"] for file in noted} == set(cases_on_disk(raw))
    for file in noted:
        source = Path(file["source"])
        assert file["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert file["size"] == (raw / file["file"]).stat().st_size
        assert (file["how"] == "copied") == (source.read_bytes() == (raw / file["file"]).read_bytes())


def test_the_manifest_alone_is_enough_to_make_the_dataset_again(raw: Path, tmp_path: Path) -> None:
    table = Table(tmp_path / "source").add("a", values=(0, 5)).add("b", values=(0, 2), ending=".nrrd")
    import_table(table)
    made = manifest(raw)
    assert made["dataset"] == description(raw)
    for entry in made["cases"].values():
        (image,), label = entry["images"], entry["label"]
        numbers = {int(value): number for value, number in entry["job"]["numbers"].items()}
        np.testing.assert_array_equal(voxels(raw / image["file"]), voxels(Path(image["source"])))
        expected = renumbered(voxels(Path(label["source"])), numbers)
        np.testing.assert_array_equal(voxels(raw / label["file"]), expected)


def test_an_import_elsewhere_makes_the_same_files(raw: Path, table: Table, tmp_path: Path) -> None:
    import_table(table.add("v", part="val"))
    raw_files, preprocessed_files = elsewhere(table, tmp_path)
    assert tree(raw.parent) == raw_files
    assert tree(raw.parent.parent / "nnUNet_preprocessed") == preprocessed_files


# ---- what users of the importers ran into ----


def test_files_that_a_user_has_added_to_the_dataset_stay(raw: Path, table: Table) -> None:
    import_table(table)
    own = [raw / "imagesTr" / "own_0000.nii.gz", raw / "labelsTr" / "own.nii.gz"]
    for path in own:
        path.write_bytes(b"mine")
    table.add("w")
    import_table(table)
    assert "imagesTr/w_0000.nii.gz" in cases_on_disk(raw)
    assert [path.read_bytes() for path in own] == [b"mine", b"mine"]


def test_a_truncated_image_that_is_copied_as_it_is_is_refused(raw: Path, table: Table) -> None:
    image = table.image("a", ".nii.gz")
    image.write_bytes(image.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"a\.nii\.gz is damaged"):
        import_table(table)
    assert not raw.exists()


def test_a_label_that_differs_in_the_last_digits_of_its_spacing_gets_its_images(raw: Path, tmp_path: Path) -> None:
    table = Table(tmp_path / "source").add("a")
    label = sitk.ReadImage(str(table.label("a")))
    label.SetSpacing([s * 1.00003 for s in label.GetSpacing()])
    sitk.WriteImage(label, str(table.label("a")))
    import_table(table)
    image = sitk.ReadImage(str(raw / "imagesTr" / "a_0000.nii.gz"))
    assert sitk.ReadImage(str(raw / "labelsTr" / "a.nii.gz")).GetSpacing() == image.GetSpacing()


def test_a_label_of_which_resampling_leaves_nothing_is_refused(raw: Path, tmp_path: Path) -> None:
    table = Table(tmp_path / "source").add("a")
    label = sitk.ReadImage(str(table.label("a")))
    label.SetOrigin((1000.0, 1000.0, 1000.0))
    sitk.WriteImage(label, str(table.label("a")))
    with pytest.raises(UserError, match="does it lie elsewhere"):
        import_table(table, resample_labels=True)
    assert not raw.exists()


def test_a_name_that_has_preprocessed_cases_of_another_dataset_is_refused(
    raw: Path, splits: Path, table: Table
) -> None:
    splits.parent.mkdir(parents=True)
    (splits.parent / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="of another dataset of this name"):
        import_table(table)
    assert not raw.exists()
