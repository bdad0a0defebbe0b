"""Interpolation along one axis of an array, at the sample positions of `skimage.transform.resize`.

Output voxel i of m lies at `(i + 0.5) * n / m - 0.5` among the n input voxels: both grids cover the same extent.
Beyond the first and last voxel the input goes on with their values (scipy's mode "nearest", skimage's "edge").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_PADDING = 12
"""Voxels by which scipy.ndimage extends an axis before the spline's prefilter in mode "nearest"."""
_NEGLIGIBLE = 1e-10
"""Weights below this are left out of a band: a voxel's 24 or so such weights cannot change a float32."""
_BLOCK = 48
"""Output voxels whose band is multiplied at once: small enough to leave out zeros, large enough for matrix products."""


def positions(before: int, after: int) -> npt.NDArray[np.float64]:
    """Where `after` output voxels lie among `before` input voxels, in scipy's order of operations."""
    return (np.arange(after, dtype=np.float64) + 0.5) * np.float64(before / after) - 0.5


def nearest_indices(before: int, after: int) -> npt.NDArray[np.intp]:
    """For each output voxel its nearest input voxel; half-way between two the later one."""
    return np.clip(np.floor(positions(before, after) + 0.5), 0, before - 1).astype(np.intp)


@dataclass(frozen=True)
class LinearAxis:
    """Linear interpolation along an axis; one entry per output voxel.

    Attributes:
        low, high: the two input voxels around it; twice the outermost beyond it.
        weight_low, weight_high: their weights, which sum to 1.
        nearest: its nearest input voxel.
    """

    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    weight_low: npt.NDArray[np.float64]
    weight_high: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.intp]

    @classmethod
    def of(cls, before: int, after: int) -> LinearAxis:
        """Between `before` input and `after` output voxels."""
        position = positions(before, after)
        start = np.floor(position)
        weight = position - start  # beyond the ends it is shared by one voxel and itself: ties round as scipy's do
        low, high = np.clip([start, start + 1], 0, before - 1).astype(np.intp)
        return cls(low, high, 1 - weight, weight, nearest_indices(before, after))


@lru_cache(maxsize=16)
def spline_matrix(before: int, after: int, order: int) -> npt.NDArray[np.float64]:
    """The matrix of shape `(after, before)` that interpolates along an axis with a spline.

    For the cubic spline: extension by 12 voxels, the recursive prefilter (Unser, Aldroubi and Eden, B-spline signal
    processing, IEEE Transactions on Signal Processing 41, 1993), and the four cubic B-splines around a position.

    Args:
        before: input voxels.
        after: output voxels.
        order: 1 or 3.
    """
    from scipy.ndimage import spline_filter1d

    if order == 1:
        axis = LinearAxis.of(before, after)
        matrix = np.zeros((after, before))
        np.add.at(matrix, (np.arange(after), axis.low), axis.weight_low)
        np.add.at(matrix, (np.arange(after), axis.high), axis.weight_high)
        return matrix
    extended = np.pad(np.eye(before), ((_PADDING, _PADDING), (0, 0)), mode="edge")
    coefficients = spline_filter1d(extended, order=3, axis=0, mode="nearest")
    position = positions(before, after) + _PADDING
    low = np.floor(position).astype(np.intp)
    t = (position - low)[:, None]
    weights = ((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, t**3 / 6)
    return np.sum([w * coefficients[low + k] for k, w in enumerate(weights, start=-1)], axis=0, dtype=np.float64)


def resample_axis(image: npt.NDArray[Any], axis: int, size: int, order: int) -> npt.NDArray[Any]:
    """Interpolate a three-dimensional image along one axis.

    Args:
        image: float32 or float64; the result is computed in its type.
        axis: 0, 1 or 2.
        size: output voxels along it.
        order: 0 (nearest voxel), 1 or 3.

    Returns:
        A new array, or the image itself where its size along the axis does not change.
    """
    before = image.shape[axis]
    if before == size:  # a spline passes through its samples
        return image
    if order == 0:
        return image.take(nearest_indices(before, size), axis)
    matrix = spline_matrix(before, size, order).astype(image.dtype)
    result = np.empty((*image.shape[:axis], size, *image.shape[axis + 1 :]), image.dtype)
    for start in range(0, size, _BLOCK):
        rows = matrix[start : start + _BLOCK]
        used = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(0))
        _multiply(rows[:, used[0] : used[-1] + 1], image, axis, slice(used[0], used[-1] + 1), result, start)
    return result


def _multiply(
    rows: npt.NDArray[Any], image: npt.NDArray[Any], axis: int, used: slice, result: npt.NDArray[Any], start: int
) -> None:
    """Fill `result` from `start` along an axis with the product of a matrix and the `used` part of the image."""
    stop = start + len(rows)
    if axis == 0:
        flat = image.reshape(image.shape[0], -1)
        np.matmul(rows, flat[used], out=result.reshape(result.shape[0], -1)[start:stop])
    elif axis == 1:
        np.matmul(rows, image[:, used], out=result[:, start:stop])
    else:
        result[:, :, start:stop] = image[:, :, used] @ rows.T
