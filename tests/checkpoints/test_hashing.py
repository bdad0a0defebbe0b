"""The hash of a file is right, computed once, and never worth a failure."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from nnunetv2_ext.checkpoints import hashing
from nnunetv2_ext.checkpoints.hashing import sha256_of_file
from nnunetv2_ext.files import CHUNK_BYTES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def aged_file(path: Path, content: bytes, seconds: float = 100) -> Path:
    path.write_bytes(content)
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def cache_of(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "nnunetv2_ext" / "sha256.json"


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_agrees_with_hashlib(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    assert sha256_of_file(aged_file(tmp_path / "file", content)) == hashlib.sha256(content).hexdigest()


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aged_file(tmp_path / "file", b"weights")
    first = sha256_of_file(path)
    monkeypatch.setattr(hashing, "_hash", lambda *_: pytest.fail("read again"))
    assert sha256_of_file(path) == first


def test_another_name_of_the_same_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aged_file(tmp_path / "file", b"weights")
    (tmp_path / "link").symlink_to(path)
    first = sha256_of_file(path)
    monkeypatch.setattr(hashing, "_hash", lambda *_: pytest.fail("read again"))
    assert sha256_of_file(tmp_path / "link") == first


def test_a_file_of_the_same_size_but_another_time_is_read_again(tmp_path: Path) -> None:
    path = aged_file(tmp_path / "file", b"weights")
    sha256_of_file(path)
    aged_file(path, b"WEIGHTS", seconds=50)
    assert sha256_of_file(path) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_a_file_still_being_written_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    stamp = path.stat()
    sha256_of_file(path)
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same tick of the clock
    assert sha256_of_file(path) == hashlib.sha256(b"WEIGHTS").hexdigest()


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"/x": 3}', "\0"])
def test_a_corrupt_cache_is_ignored_and_replaced(tmp_path: Path, garbage: str) -> None:
    cache = cache_of(tmp_path)
    cache.parent.mkdir(parents=True)
    cache.write_text(garbage)
    path = aged_file(tmp_path / "file", b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert sha256_of_file(path) == expected
    assert json.loads(cache.read_text())[str(path.resolve())]["sha256"] == expected


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in_the_way").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "in_the_way"))
    path = aged_file(tmp_path / "file", b"weights")
    assert sha256_of_file(path) == hashlib.sha256(b"weights").hexdigest()


def test_the_cache_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "REMEMBERED_FILES", 3)
    for number in range(6):
        sha256_of_file(aged_file(tmp_path / f"file{number}", b"weights"))
    assert [Path(name).name for name in json.loads(cache_of(tmp_path).read_text())] == ["file3", "file4", "file5"]
    assert [entry.name for entry in cache_of(tmp_path).parent.iterdir()] == ["sha256.json"]
