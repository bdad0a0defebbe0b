"""The folder in which a dataset is made: what is begun goes on, and the finished dataset is whole at every moment."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.datasets.staging import MANIFEST, Staging, check_free, files_of
from nnunetv2_ext.errors import UserError
from tests.commands import nnunet_environment

NAME = "Dataset123_Cells"
FROM = ("csv", "/data/table.csv")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`nnUNet_raw` of a user with three empty folders."""
    for variable, value in nnunet_environment(tmp_path).items():
        if variable.startswith("nnUNet_"):
            monkeypatch.setenv(variable, value)
    return tmp_path / "nnUNet_raw"


def put(folder: Path, name: str, content: str) -> dict[str, Any]:
    """A case's image and label in a folder. Returns the case's entry."""
    files = []
    for target in (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"):
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(content)
        files.append({"file": target, "size": len(content)})
    return {"images": files[:1], "label": files[1]}


def publish(staging: Staging, contents: dict[str, str], cases: list[str] | None = None) -> None:
    """Make a dataset of some cases, or go on with one."""
    staging.begin(*FROM)
    for name, content in contents.items():
        staging.note(name, put(staging.folder, name, content))
    entries = {name: staging.record(name) for name in cases or contents}
    manifest = {"kind": FROM[0], "source": FROM[1], "cases": entries, "finished": True}
    staging.publish({"dataset.json": {}, MANIFEST: manifest})


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_id_that_another_dataset_has_in_any_folder_is_refused(variable: str, raw: Path) -> None:
    other = raw.parent / variable / "Dataset123_Livers"
    other.mkdir()
    with pytest.raises(UserError, match=rf"the id 123 is taken by {other}: choose another \(-d\)"):
        check_free(NAME)


@pytest.mark.parametrize("name", [NAME, "Dataset124_Livers", "Dataset012_Livers", ".Dataset124_Livers.importing"])
def test_other_folders_do_not_take_an_id(name: str, raw: Path) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (raw.parent / variable / name).mkdir()
    check_free(NAME)


def test_an_id_that_an_unfinished_import_has_is_refused_under_another_name(raw: Path) -> None:
    Staging("Dataset123_Livers").begin(*FROM)
    unfinished = raw / ".Dataset123_Livers.importing"
    with pytest.raises(UserError) as caught:
        check_free(NAME)
    assert str(caught.value) == (
        "an unfinished import of Dataset123_Livers has the id 123: go on with it (-name Livers), choose another (-d), "
        f"or remove {unfinished}"
    )
    check_free("Dataset123_Livers")
    shutil.rmtree(unfinished)
    check_free(NAME)


def test_a_file_takes_no_id(raw: Path) -> None:
    (raw / "Dataset123_Livers.zip").touch()
    check_free(NAME)


def test_folders_that_are_not_set_or_not_there_take_no_id(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results")
    shutil.rmtree(raw.parent / "nnUNet_preprocessed")
    check_free(NAME)


def test_a_folder_that_was_not_imported_is_left_alone(raw: Path) -> None:
    (raw / NAME / "imagesTr").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{raw / NAME} exists and was not imported: choose another id"):
        Staging(NAME).check_source(*FROM)


@pytest.mark.parametrize("other", [("csv", "/data/other.csv"), ("bids", FROM[1])])
def test_a_dataset_of_another_source_is_left_alone(other: tuple[str, str], raw: Path) -> None:
    publish(Staging(NAME), {"a": "1"})
    Staging(NAME).check_source(*FROM)
    with pytest.raises(UserError, match=rf"imported from {FROM[1]} \(csv\).*remove {raw / NAME}$"):
        Staging(NAME).check_source(*other)


def test_an_unfinished_import_of_another_source_is_left_alone(raw: Path) -> None:
    Staging(NAME).begin(*FROM)
    Staging(NAME).check_source(*FROM)
    with pytest.raises(UserError, match=rf"remove {raw}/\.{NAME}\.importing$"):
        Staging(NAME).check_source("csv", "/data/other.csv")


def test_a_damaged_manifest_is_named(raw: Path) -> None:
    publish(Staging(NAME), {"a": "1"})
    (raw / NAME / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=rf"{raw / NAME / MANIFEST} is not valid JSON"):
        Staging(NAME)


def test_the_dataset_has_its_name_only_when_it_is_published(raw: Path) -> None:
    staging = Staging(NAME)
    staging.begin(*FROM)
    staging.note("a", put(staging.folder, "a", "1"))
    assert not (raw / NAME).exists()
    publish(staging, {"b": "2"}, ["a", "b"])
    assert not staging.folder.exists()
    assert sorted(tree(raw / NAME)) == [
        "dataset.json", "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", MANIFEST, "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
    ]  # fmt: skip


def test_an_import_that_is_begun_again_finds_its_cases(raw: Path) -> None:
    staging = Staging(NAME)
    staging.begin(*FROM)
    entry = put(staging.folder, "a", "1")
    staging.note("a", entry)
    again = Staging(NAME)
    again.begin(*FROM)
    assert again.record("a") == entry
    assert again.record("b") is None


def test_a_case_whose_file_is_gone_or_cut_off_is_not_done(raw: Path) -> None:
    for damage in (Path.unlink, lambda path: path.write_text("1")):
        staging = Staging(NAME)
        staging.begin(*FROM)
        staging.note("a", put(staging.folder, "a", "12"))
        assert staging.record("a")
        damage(staging.folder / "labelsTr" / "a.nii.gz")
        assert staging.record("a") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"images": 3}'])
def test_a_record_that_is_cut_off_counts_for_nothing(text: str, raw: Path) -> None:
    staging = Staging(NAME)
    staging.begin(*FROM)
    staging.note("a", put(staging.folder, "a", "1"))
    (record,) = (staging.folder / ".cases").iterdir()
    record.write_text(text)
    assert staging.record("a") is None


def test_a_finished_dataset_knows_its_cases(raw: Path) -> None:
    publish(Staging(NAME), {"a": "1"})
    assert Staging(NAME).record("a") == json.loads((raw / NAME / MANIFEST).read_text())["cases"]["a"]
    (raw / NAME / "imagesTr" / "a_0000.nii.gz").unlink()
    assert Staging(NAME).record("a") is None


def test_going_on_with_a_finished_dataset_leaves_it_as_it_is_until_published(raw: Path) -> None:
    publish(Staging(NAME), {"a": "1", "b": "1"})
    before = tree(raw / NAME)
    staging = Staging(NAME)
    staging.begin(*FROM)
    staging.note("a", put(staging.folder, "a", "2"))
    assert tree(raw / NAME) == before
    publish(staging, {}, ["a", "b"])
    after = tree(raw / NAME)
    assert after["imagesTr/a_0000.nii.gz"] == after["labelsTr/a.nii.gz"] == "2"
    assert after["imagesTr/b_0000.nii.gz"] == after["labelsTr/b.nii.gz"] == "1"


def test_what_has_not_changed_is_the_same_file_on_the_disk(raw: Path) -> None:
    publish(Staging(NAME), {"a": "1"})
    before = (raw / NAME / "imagesTr" / "a_0000.nii.gz").stat()
    publish(Staging(NAME), {"b": "1"}, ["a", "b"])
    after = (raw / NAME / "imagesTr" / "a_0000.nii.gz").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_nlink) == (before.st_ino, before.st_mtime_ns, 1)


def test_a_file_system_without_hard_links_gets_copies(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    publish(Staging(NAME), {"a": "1"})
    before = tree(raw / NAME)
    monkeypatch.setattr(os, "link", unsupported)
    publish(Staging(NAME), {}, ["a"])
    assert tree(raw / NAME) == before


def test_links_to_the_source_stay_links(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("1")
    staging = Staging(NAME)
    staging.begin(*FROM)
    entry = put(staging.folder, "a", "1")
    link = staging.folder / "imagesTr" / "a_0000.nii.gz"
    link.unlink()
    link.symlink_to(tmp_path / "source")
    staging.note("a", entry)
    publish(staging, {}, ["a"])
    publish(Staging(NAME), {"b": "1"}, ["a", "b"])
    assert (raw / NAME / "imagesTr" / "a_0000.nii.gz").readlink() == tmp_path / "source"


def test_what_a_killed_process_left_half_written_is_not_in_the_dataset(raw: Path) -> None:
    staging = Staging(NAME)
    staging.begin(*FROM)
    for name in (".77.a_0000.nii.gz", "c_0000.nii.gz"):
        put(staging.folder, "a", "1")
        (staging.folder / "imagesTr" / name).write_text("half")
    (staging.folder / ".cases").mkdir()
    (staging.folder / ".cases" / "b.tmp").write_text("{")
    publish(staging, {"a": "1"})
    assert sorted(tree(raw / NAME)) == ["dataset.json", "imagesTr/a_0000.nii.gz", MANIFEST, "labelsTr/a.nii.gz"]


@pytest.mark.parametrize("finished", [False, True])
def test_an_old_dataset_that_a_killed_process_has_put_aside_goes_when_the_new_one_is_there(
    finished: bool, raw: Path
) -> None:
    if finished:
        publish(Staging(NAME), {"a": "1"})
    put_aside = raw / f".{NAME}.importing.previous"
    put(put_aside, "a", "old")
    with Staging(NAME).locked():
        assert put_aside.exists() != finished


def test_a_case_that_is_gone_from_the_source_goes(raw: Path) -> None:
    publish(Staging(NAME), {"a": "1", "b": "1"})
    publish(Staging(NAME), {}, ["b"])
    assert [name for name in tree(raw / NAME) if "/a" in name] == []
    assert [name for name in tree(raw / NAME) if "/b" in name]


def test_what_else_a_user_keeps_in_the_dataset_stays(raw: Path) -> None:
    publish(Staging(NAME), {"a": "1"})
    (raw / NAME / "notes" / "deeper").mkdir(parents=True)
    for name in ("read.me", "notes/n.txt", "notes/deeper/n.txt"):
        (raw / NAME / name).write_text("mine")
    publish(Staging(NAME), {"b": "1"})
    kept = tree(raw / NAME)
    assert [kept[name] for name in ("read.me", "notes/n.txt", "notes/deeper/n.txt")] == ["mine"] * 3


def test_a_second_process_is_refused_while_the_first_is_at_it(raw: Path) -> None:
    with Staging(NAME).locked():
        for same_id in (NAME, "Dataset123_Other"):
            with pytest.raises(UserError, match="another process is importing a dataset with the id 123: wait"):
                Staging(same_id).locked().__enter__()
        with Staging("Dataset124_Other").locked():
            pass
    with Staging(NAME).locked():
        pass


def test_an_id_that_was_taken_while_the_source_was_read_is_refused(raw: Path) -> None:
    late = Staging("Dataset123_Other")
    publish(Staging(NAME), {"a": "1"})
    with pytest.raises(UserError, match=f"the id 123 is taken by {raw / NAME}: choose another"):
        late.locked().__enter__()
    with Staging(NAME).locked():
        pass


def test_the_lock_is_free_again_after_an_error_and_leaves_no_file(raw: Path) -> None:
    with pytest.raises(ZeroDivisionError), Staging(NAME).locked():
        raise ZeroDivisionError
    with Staging(NAME).locked():
        pass
    assert list(raw.iterdir()) == []


def test_the_files_of_an_entry_are_its_images_and_its_label() -> None:
    images = [{"file": "0"}, {"file": "1"}]
    assert files_of({"images": images, "label": {"file": "l"}}) == [*images, {"file": "l"}]
    assert files_of({"images": images}) == images


STOPPED = 77


class _Stopping:
    """Functions that change the disk, the n-th call of which ends the process as a kill would: nothing cleans up."""

    def __init__(self, left: int) -> None:
        self.left = left

    def install(self) -> None:
        for owner, name in (
            (os, "replace"), (os, "link"), (os, "unlink"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"), (os, "symlink"),
        ):  # fmt: skip
            self._wrap(owner, name)

    def _wrap(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                os._exit(STOPPED)
            self.left -= 1
            return function(*args, **kwargs)

        setattr(owner, name, call)


def _go_on_in_a_process_that_stops(after: int) -> int:
    """Go on with a dataset in a process that ends after so many changes of the disk. Returns its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            _Stopping(after).install()
            staging = Staging(NAME)
            with staging.locked():
                publish(staging, {"a": "2", "c": "2"}, ["a", "b", "c"])
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_stop_at_any_step_leaves_the_old_dataset_or_the_new_one_and_the_next_import_ends_the_same(raw: Path) -> None:
    publish(Staging(NAME), {"a": "1", "b": "1"})
    old = tree(raw / NAME)
    shutil.copytree(raw / NAME, raw.parent / "old")
    publish(Staging(NAME), {"a": "2", "c": "2"}, ["a", "b", "c"])
    new = tree(raw / NAME)
    assert new != old
    seen = set()
    for after in range(1000):
        shutil.rmtree(raw)
        raw.mkdir()
        shutil.copytree(raw.parent / "old", raw / NAME)
        if (exit_code := _go_on_in_a_process_that_stops(after)) != STOPPED:
            break
        if (raw / NAME).exists():  # for a moment, the old one has given up the name and the new one not taken it
            seen.add("old" if tree(raw / NAME) == old else "new" if tree(raw / NAME) == new else f"{after}")
        else:
            assert "absent" not in seen
            seen.add("absent")
        staging = Staging(NAME)
        staging.check_source(*FROM)
        with staging.locked():
            publish(staging, {"a": "2", "b": "1", "c": "2"})
        assert tree(raw / NAME) == new
        assert [p.name for p in raw.iterdir()] == [NAME], after
    assert exit_code == 0
    assert after > 20, "hardly a step was reached"
    assert tree(raw / NAME) == new
    assert seen == {"old", "new", "absent"}
