"""Where the foreground is: the box of nonzero voxels, what lies outside the body, and samples of every class.

The results are nnU-Net's own (`crop_to_nonzero`, `DefaultPreprocessor._sample_foreground_locations`), voxel for voxel
and draw for draw; only the way there is shorter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

OUTSIDE = -1
"""nnU-Net's label for background voxels outside the nonzero region."""

MIN_SAMPLES = 10000
"""Locations kept per class, where it has as many; nnU-Net's number."""
MIN_COVERAGE = 0.01
"""Share of a class's voxels that is kept at least; nnU-Net's number."""
_SEED = 1234

Box = list[list[int]]


def nonzero_box(images: npt.NDArray[Any]) -> tuple[Box, npt.NDArray[np.bool_]]:
    """The smallest box around all nonzero voxels, and which of its voxels belong to the nonzero region.

    A voxel belongs to it where any channel is not zero, and where such voxels enclose it.

    Args:
        images: `(channels, z, y, x)`.

    Returns:
        `[[start, stop], ...]` per axis, stops excluded, and a mask `(z, y, x)` of the box. Without any nonzero voxel
        the box is the whole image and the mask False.
    """
    mask = np.any(images, axis=0)
    box = [_extent(mask, axis) for axis in range(3)]
    inside = mask[tuple(slice(*extent) for extent in box)]
    return box, inside if inside.all() else _without_holes(inside)


def _extent(mask: npt.NDArray[np.bool_], axis: int) -> list[int]:
    others = tuple(a for a in range(3) if a != axis)
    occupied = np.flatnonzero(mask.any(others))
    return [int(occupied[0]), int(occupied[-1]) + 1] if len(occupied) else [0, mask.shape[axis]]


def _without_holes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Add what cannot be reached from the border through faces: scipy's `binary_fill_holes` in one pass."""
    from scipy import ndimage

    regions, number = ndimage.label(~mask)
    outside = np.zeros(number + 1, dtype=bool)
    for axis in range(3):
        for face in (0, -1):
            outside[regions.take(face, axis)] = True
    outside[0] = False  # the mask itself
    return ~outside[regions]


def sample_locations(
    labels: npt.NDArray[Any], classes: Iterable[int | Sequence[int]]
) -> dict[int | tuple[int, ...], npt.NDArray[np.int64] | list[Any]]:
    """Random voxels of each class, for nnU-Net's oversampling of the foreground.

    Args:
        labels: `(1, z, y, x)`, integers.
        classes: labels, or regions as sequences of labels.

    Returns:
        For each class an array `(samples, 4)` of indices into `labels`, drawn without replacement: 10,000, or all if
        there are fewer, and no less than 1 % of the class's voxels. An empty list for a class that is not there.
    """
    random = np.random.RandomState(_SEED)
    wanted = [tuple(int(label) for label in c) if isinstance(c, Sequence) else int(c) for c in classes]
    members_of = {key: key if isinstance(key, tuple) else (key,) for key in wanted}
    voxels = _voxels_by_label(labels, {label for members in members_of.values() for label in members})
    result: dict[int | tuple[int, ...], npt.NDArray[np.int64] | list[Any]] = {}
    for key in wanted:  # one that is there twice is drawn twice, as by nnU-Net: the next ones depend on it
        parts = [voxels[label] for label in members_of[key] if label in voxels]
        total = sum(map(len, parts))
        if total == 0:
            result[key] = []
            continue
        number = max(min(MIN_SAMPLES, total), int(np.ceil(total * MIN_COVERAGE)))
        drawn = random.choice(total, number, replace=False)
        chosen = (parts[0] if len(parts) == 1 else np.concatenate(parts))[drawn]
        result[key] = np.stack(np.unravel_index(chosen, labels.shape), axis=-1)
    return result


def _voxels_by_label(labels: npt.NDArray[Any], wanted: set[int]) -> dict[int, npt.NDArray[Any]]:
    """The flat indices of each wanted label's voxels, ascending."""
    flat = labels.reshape(-1)
    known = np.array(sorted(wanted), dtype=np.int64)
    known = known[known.astype(flat.dtype) == known]  # what the map's type cannot hold is not in it
    present = np.isin(flat, known.astype(flat.dtype))
    indices = np.flatnonzero(present).astype(np.uint32 if flat.size < 2**32 else np.int64)
    values = flat[indices]
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    present_labels, starts = np.unique(sorted_values, return_index=True)
    ends = np.append(starts[1:], len(values))
    return {int(label): indices[order[s:e]] for label, s, e in zip(present_labels, starts, ends, strict=False)}
