"""Crops of one array that overlap, one of them for training and the other to validate or test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nnunetv2_ext.datasets.collection import TRAIN, Case
from nnunetv2_ext.datasets.volumes.identity import real_source
from nnunetv2_ext.datasets.volumes.zarr_crop import ZarrCrop
from nnunetv2_ext.datasets.wording import counted

Boxes = npt.NDArray[np.int64]
"""(boxes, 2, 3): first voxel, and the one behind the last, along each axis of space."""


def remark_on_overlaps(cases: Sequence[Case]) -> list[str]:
    """A line with the number of pairs, by the first channel. Crops of different arrays or channels do not overlap."""
    sides: dict[tuple[str, int | None], tuple[list[Case], list[Case]]] = {}
    for case in cases:
        if case.images and isinstance(crop := case.images[0], ZarrCrop):
            training, others = sides.setdefault((real_source(crop.source), crop.channel), ([], []))
            (training if case.part == TRAIN else others).append(case)
    number, example = 0, ""
    for training, others in sides.values():
        pairs, first = _overlapping(_boxes(training), _boxes(others))
        if first is not None and not number:
            example = f"{others[first[1]].name} ({others[first[1]].part}) with {training[first[0]].name}"
        number += pairs
    if not number:
        return []
    overlap = "overlaps" if number == 1 else "overlap"
    return [
        f"{counted(number, 'pair')} of crops of one array {overlap}, one crop for training and the other not (the "
        f"first: {example}): it is validated or tested with voxels that were trained with"
    ]


def _boxes(cases: Sequence[Case]) -> Boxes:
    crops = [crop for case in cases if isinstance(crop := case.images[0], ZarrCrop)]
    boxes = np.array([(crop.corner, crop.size) for crop in crops], np.int64).reshape(-1, 2, 3)
    return np.cumsum(boxes, axis=1)


def _overlapping(some: Boxes, others: Boxes) -> tuple[int, tuple[int, int] | None]:
    """How many pairs of one of either overlap, and the indices of one pair.

    Only boxes that begin near each other along the axis in which they are spread most are compared.
    """
    if not len(some) or not len(others):
        return 0, None
    axis = int(np.argmax(np.ptp(some[:, 0], axis=0)))
    order = np.argsort(some[:, 0, axis], kind="stable")
    ordered = some[order]
    starts = ordered[:, 0, axis]
    longest = int((ordered[:, 1, axis] - starts).max())
    number, first = 0, None
    for index, (corner, end) in enumerate(others):
        near = slice(np.searchsorted(starts, corner[axis] - longest, "right"), np.searchsorted(starts, end[axis]))
        both = ((ordered[near, 0] < end) & (ordered[near, 1] > corner)).all(axis=1)
        hits = int(np.count_nonzero(both))
        if hits and first is None:
            first = int(order[near][np.argmax(both)]), index
        number += hits
    return number, first
