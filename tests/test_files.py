"""A file is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_ext.files import CHUNK_BYTES, copy_and_hash, sha256, whole_or_absent, write_json


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write(path: Path, text: str) -> None:
    with whole_or_absent(path) as temporary:
        temporary.write_text(text)


def test_the_file_has_what_was_written(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old and longer")
    write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_exception_the_old_file_is_as_it_was_and_nothing_else_is_left(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), whole_or_absent(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_after_an_exception_a_new_file_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), whole_or_absent(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ValueError("stop")
    assert os.listdir(tmp_path) == []


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_or_absent(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"


def test_content_that_a_library_writes_by_rename_is_taken(tmp_path: Path) -> None:
    with whole_or_absent(tmp_path / "a.txt") as temporary:
        (tmp_path / "elsewhere").write_text("renamed")
        os.replace(tmp_path / "elsewhere", temporary)
    assert (tmp_path / "a.txt").read_text() == "renamed"


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path: Path, umask: int) -> None:
    write(tmp_path / "ours", "x")
    (tmp_path / "ordinary").write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "ordinary")]
    assert modes[0] == modes[1] == 0o666 & ~umask


def test_the_umask_is_left_as_it_was(tmp_path: Path, umask: int) -> None:
    write(tmp_path / "a", "x")
    current = os.umask(umask)
    assert current == umask


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write(tmp_path / "b" / "c" / "a.txt", "new")
    assert (tmp_path / "b" / "c" / "a.txt").read_text() == "new"


def test_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (order.append(name), real(*a))[1])
    write(tmp_path / "a.txt", "new")
    assert order == ["fsync", "replace"]


def test_json_keeps_the_order_of_its_keys_and_is_indented_as_nnunets_plans(tmp_path: Path) -> None:
    content = {"z": [1, 2], "a": {"y": None, "b": "é"}}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text.index('"z"') < text.index('"a"')
    assert '\n    "a"' in text


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
def test_a_copy_has_the_same_bytes_and_the_hash_is_theirs(size: int, tmp_path: Path) -> None:
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "source").write_bytes(content)
    digest = copy_and_hash(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert digest == sha256(tmp_path / "source") == hashlib.sha256(content).hexdigest()
