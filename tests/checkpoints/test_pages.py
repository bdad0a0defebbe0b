"""Reading a mapped checkpoint through need not cost its size, and no other memory is touched."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_ext.checkpoints.loading import load_as_data
from nnunetv2_ext.checkpoints.pages import page_releaser

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no such list of mappings here")

MEGABYTES = 48


def resident_megabytes_of_files() -> float:
    (line,) = (r for r in Path("/proc/self/status").read_text().splitlines() if r.startswith("RssFile:"))
    return int(line.split()[1]) / 1024


def mappings_of(path: Path) -> list[tuple[int, int]]:
    lines = [r for r in Path("/proc/self/maps").read_text().splitlines() if r.endswith(f" {path}")]
    return [(int(start, 16), int(end, 16)) for start, end in (line.split()[0].split("-") for line in lines)]


def some_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {str(i): torch.randn(1024, 1024, generator=generator) for i in range(MEGABYTES // 4)}


def save_torch(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(weights, path)


WRITERS = {"torch": save_torch, "safetensors": save_file}


@pytest.mark.parametrize("name", ["weights.pth", "a folder/my weights (1).pth", "Gewichte für Österreich.pth"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_pages_that_were_read_are_given_back_and_read_the_same_again(
    tmp_path: Path, write: Callable[..., None], name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    written = some_weights()
    write(written, path)
    before = resident_megabytes_of_files()
    weights = load_as_data(path)
    assert resident_megabytes_of_files() - before < 8
    release = page_releaser(path)

    for _ in range(2):
        assert all(torch.equal(weights[key], written[key]) for key in written)
        assert resident_megabytes_of_files() - before > 0.9 * MEGABYTES
        release()
        assert resident_megabytes_of_files() - before < 8


def test_reading_tensor_by_tensor_never_holds_more_than_one(tmp_path: Path) -> None:
    save_torch(some_weights(), tmp_path / "x.pth")
    before = resident_megabytes_of_files()
    weights = load_as_data(tmp_path / "x.pth")
    release, most = page_releaser(tmp_path / "x.pth"), 0.0
    for tensor in weights.values():
        tensor.sum()
        most = max(most, resident_megabytes_of_files() - before)
        release()
    assert most < 16  # one tensor is 4 MB, and the system reads ahead


def test_a_link_to_the_file_is_the_file(tmp_path: Path) -> None:
    save_torch(some_weights(), tmp_path / "x.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "x.pth")
    weights = load_as_data(tmp_path / "link.pth")
    before = resident_megabytes_of_files()
    total = sum(tensor.sum() for tensor in weights.values())
    assert resident_megabytes_of_files() - before > 0.9 * MEGABYTES
    page_releaser(tmp_path / "link.pth")()
    assert resident_megabytes_of_files() - before < 8
    assert sum(tensor.sum() for tensor in weights.values()) == total


def test_values_computed_from_the_tensors_stay(tmp_path: Path) -> None:
    written = some_weights()
    save_torch(written, tmp_path / "x.pth")
    weights = load_as_data(tmp_path / "x.pth")
    doubled = weights["3"] * 2
    page_releaser(tmp_path / "x.pth")()
    assert torch.equal(doubled, written["3"] * 2)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_deleted_file_s_tensors_stay_readable(tmp_path: Path, when: str) -> None:
    path = tmp_path / "x.pth"
    written = some_weights()
    save_torch(written, path)
    weights = load_as_data(path)
    if when == "before":
        path.unlink()
    release = page_releaser(path)
    if when == "after":
        path.unlink()
    release()
    assert all(torch.equal(weights[key], written[key]) for key in written)


@pytest.mark.parametrize("name", ["never.pth", "..", "x\ny.pth"])
def test_a_file_that_is_not_mapped_is_no_error(tmp_path: Path, name: str) -> None:
    page_releaser(tmp_path / name)()


def test_memory_that_took_the_file_s_place_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_torch(some_weights(), path)
    weights = load_as_data(path)
    release = page_releaser(path)
    (mapping,) = mappings_of(path)
    del weights
    gc.collect()
    assert mappings_of(path) == []

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    start, length = mapping[0], mapping[1] - mapping[0]
    exactly_there = 0x100000  # MAP_FIXED_NOREPLACE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | exactly_there
    assert libc.mmap(start, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == start
    ctypes.memset(start, 0x5A, length)
    release()
    assert ctypes.string_at(start, length) == b"\x5a" * length
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.munmap(start, length)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_no_file_handle_is_kept(tmp_path: Path, write: Callable[..., None]) -> None:
    path = tmp_path / "x.pth"
    write(some_weights(), path)
    weights = load_as_data(path)
    links = [Path("/proc/self/fd") / fd for fd in os.listdir("/proc/self/fd")]
    opened = {os.readlink(link) for link in links if link.is_symlink()}
    assert str(path) not in opened
    assert len(weights) == MEGABYTES // 4
    del weights
    gc.collect()
    assert mappings_of(path) == []


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_changing_a_tensor_does_not_change_the_file(tmp_path: Path, write: Callable[..., None]) -> None:
    path = tmp_path / "x.pth"
    write({"a": torch.ones(1000)}, path)
    content = path.read_bytes()
    load_as_data(path)["a"].zero_()
    assert path.read_bytes() == content
