"""What folders of preprocessed cases hold, and whether two hold the same."""

from __future__ import annotations

import pickle
from pathlib import Path

import blosc2
import numpy as np


def assert_same_folder(ours: Path, theirs: Path) -> None:
    """Both hold the same files, sub-folders included, with the same content."""
    names = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) for folder in (ours, theirs)]
    assert names[0] == names[1]
    for name in names[0]:
        if (ours / name).is_file():
            assert_same_file(ours / name, theirs / name)


def assert_same_file(ours: Path, theirs: Path) -> None:
    """Arrays equal in every value, type, chunk and block (their bytes depend on how threads took turns); pickles in
    every value; other files byte by byte."""
    if ours.suffix == ".b2nd":
        a, b = (blosc2.open(urlpath=str(path), mode="r") for path in (ours, theirs))
        assert (a.dtype, a.shape, a.chunks, a.blocks) == (b.dtype, b.shape, b.chunks, b.blocks), ours
        assert np.array_equal(a[:], b[:]), ours
    elif ours.suffix == ".pkl":
        np.testing.assert_equal(*(pickle.loads(path.read_bytes()) for path in (ours, theirs)))
    else:
        assert ours.read_bytes() == theirs.read_bytes(), ours


def in_the_making(folder: Path) -> list[str]:
    """Cases that a run, alive or dead, has begun and not finished."""
    return sorted(p.name.rpartition("-")[0] for p in folder.glob("unfinished/*/*-*") if p.is_dir())


def inodes(folder: Path) -> dict[str, int]:
    """The files directly in a folder, and which file on the disk each is."""
    return {p.name: p.stat().st_ino for p in folder.iterdir() if p.is_file()}
