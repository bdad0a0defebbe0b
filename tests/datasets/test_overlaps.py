"""Crops that overlap across parts are counted as comparing every pair would count them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case
from nnunetv2_ext.datasets.overlaps import remark_on_overlaps
from nnunetv2_ext.datasets.volumes.zarr_crop import ZarrCrop

Triple = tuple[int, int, int]


def crop(
    name: str, part: str, corner: Triple, size: Triple = (2, 2, 2), source: str = "/c.zarr", channel: int = 0
) -> Case:
    return Case(name, name, name, part, (ZarrCrop(source, channel, corner, size),))


def test_pairs_across_parts_are_counted_and_the_first_is_named() -> None:
    cases = [
        crop("a", TRAIN, (0, 0, 0)),
        crop("b", TRAIN, (1, 1, 1)),
        crop("v", VAL, (1, 0, 1)),
        crop("t", TEST, (2, 2, 2)),
    ]
    (line,) = remark_on_overlaps(cases)
    assert line.startswith(
        "3 pairs of crops of one array overlap, one crop for training and the other not (the first: v (val) with a)"
    )


def test_crops_that_only_touch_or_are_of_another_array_or_channel_or_of_one_part_do_not_overlap() -> None:
    cases = [
        crop("a", TRAIN, (0, 0, 0)),
        crop("b", TRAIN, (0, 0, 1)),
        crop("c", VAL, (2, 0, 0)),
        crop("d", VAL, (0, 0, 0), source="/other.zarr"),
        crop("e", VAL, (0, 0, 0), channel=1),
        Case("bad", "bad", "bad", VAL),
    ]
    assert remark_on_overlaps(cases) == []


def test_an_array_behind_a_link_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("c.zarr")
    one = crop("a", TRAIN, (0, 0, 0), source=f"{tmp_path}/c.zarr")
    (line,) = remark_on_overlaps([one, crop("v", VAL, (1, 1, 1), source=f"{tmp_path}/link")])
    assert line.startswith("1 pair of crops of one array overlaps,")


def test_the_number_is_that_of_comparing_all_pairs() -> None:
    chance = np.random.default_rng(3)
    corners, sizes = chance.integers(0, 40, (150, 3)).tolist(), chance.integers(1, 12, (150, 3)).tolist()
    cases = [crop(str(i), (TRAIN, VAL, TEST)[i % 3], tuple(corners[i]), tuple(sizes[i])) for i in range(150)]
    voxels = np.zeros((150, 52, 52, 52), bool)
    for of_case, corner, size in zip(voxels, corners, sizes, strict=True):
        of_case[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = True
    expected = sum((voxels[i] & voxels[j]).any() for i in range(0, 150, 3) for j in range(150) if j % 3)
    (line,) = remark_on_overlaps(cases)
    assert line.startswith(f"{expected} pairs of")
