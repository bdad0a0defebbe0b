"""The label of each voxel of a resized label map: that with the largest linearly interpolated indicator.

It can only be one of the labels at the corners of the cell that the voxel falls into: eight voxels, or four within a
slice. Where they all agree, that is nearly everywhere, there is nothing to compute. Ties are settled as in the
`resize_segmentation` of batchgenerators (`seg_tiebreak="nearest"`): by the nearest neighbour's label where that is one
of the tied ones, else by the smallest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunetv2_ext.preprocessing.interpolation import LinearAxis, nearest_indices

_AT_ONCE = 1 << 14
"""Voxels decided at once: eight labels and weights of each stay in a processor's cache."""


def resize_labels(labels: npt.NDArray[Any], result: npt.NDArray[Any], apart: int | None) -> None:
    """Fill `result` with `labels` resized to its shape.

    Args:
        labels: `(z, y, x)` of any type; not changed.
        result: `(z, y, x)` of the same type; every voxel is written.
        apart: an axis whose slices are resized each by itself, and then the nearest slice taken; or None.
    """
    if apart is not None and apart != 0:  # slices along the first axis: views, no copies
        labels, result = np.moveaxis(labels, apart, 0), np.moveaxis(result, apart, 0)
    rows, columns = (
        LinearAxis.of(before, after) for before, after in zip(labels.shape[1:], result.shape[1:], strict=True)
    )
    if apart is not None:
        slices = nearest_indices(len(labels), len(result))
        done: dict[int, int] = {}  # where the same slice has been resized already
        for index, source in enumerate(slices.tolist()):
            if source in done:
                result[index] = result[done[source]]
            else:
                _resize_slice([labels[source]], [1.0], 0, rows, columns, result[index])
                done[source] = index
        return
    depth = LinearAxis.of(len(labels), len(result))
    for index, (low, high, nearer) in enumerate(zip(depth.low, depth.high, depth.nearest, strict=True)):
        weight_low, weight_high = depth.weight_low[index], depth.weight_high[index]
        if weight_high == 0:
            _resize_slice([labels[low]], [weight_low], 0, rows, columns, result[index])
        else:
            planes, weights = [labels[low], labels[high]], [weight_low, weight_high]
            _resize_slice(planes, weights, int(nearer != low), rows, columns, result[index])


def _resize_slice(
    planes: Sequence[npt.NDArray[Any]],
    weights: Sequence[float],
    nearest_plane: int,
    rows: LinearAxis,
    columns: LinearAxis,
    out: npt.NDArray[Any],
) -> None:
    """One slice of the result, from the one or two slices of labels around it.

    Args:
        planes: `(y, x)` each.
        weights: of the planes, that sum to 1.
        nearest_plane: which of the planes the nearest neighbour is in.
        rows, columns: the other two axes.
        out: `(y, x)` of the result, to fill.
    """
    out[...] = planes[nearest_plane].take(rows.nearest, 0).take(columns.nearest, 1)
    mixed = _cells_with_several_labels(planes).take(rows.low, 0).take(columns.low, 1)
    y, x = np.nonzero(mixed)
    for start in range(0, len(y), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        corners = _Corners.around(planes, weights, rows, columns, y[some], x[some])
        out[y[some], x[some]] = corners.winner(out[y[some], x[some]])


def _cells_with_several_labels(planes: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """For each voxel, whether the labels from it to its next neighbours along all axes differ."""
    first = planes[0]
    differ = np.zeros(first.shape, dtype=bool)
    for plane in planes:
        if plane is not first:
            differ |= plane != first
        differ[:-1] |= plane[1:] != first[:-1]
        differ[:, :-1] |= plane[:, 1:] != first[:, :-1]
        differ[:-1, :-1] |= plane[1:, 1:] != first[:-1, :-1]
    return differ


@dataclass(frozen=True)
class _Corners:
    """The labels at the corners of some voxels' cells, each with its weight: `(corners, voxels)` both."""

    labels: npt.NDArray[Any]
    weights: npt.NDArray[np.float64]

    @classmethod
    def around(
        cls,
        planes: Sequence[npt.NDArray[Any]],
        weights: Sequence[float],
        rows: LinearAxis,
        columns: LinearAxis,
        y: npt.NDArray[np.intp],
        x: npt.NDArray[np.intp],
    ) -> _Corners:
        """Of the voxels at `y`, `x` of the result; corners and products in scipy's order, so that ties stay ties."""
        ys = ((rows.low[y], rows.weight_low[y]), (rows.high[y], rows.weight_high[y]))
        xs = ((columns.low[x], columns.weight_low[x]), (columns.high[x], columns.weight_high[x]))
        number = 4 * len(planes)
        labels = np.empty((number, len(y)), planes[0].dtype)
        products = np.empty((number, len(y)))
        corners: Iterator[Any] = product(zip(planes, weights, strict=True), ys, xs)
        for corner, ((plane, w0), (row, w1), (column, w2)) in enumerate(corners):
            labels[corner] = plane[row, column]
            np.multiply(w0 * w1, w2, out=products[corner])
        return cls(labels, products)

    def winner(self, nearest: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The label with the largest sum of weights, for each voxel; `nearest` is the nearest neighbour's label."""
        lowest, highest = self.labels.min(0), self.labels.max(0)
        of_lowest, of_highest = self._score(lowest), self._score(highest)
        result = np.where(of_highest > of_lowest, highest, lowest)
        tied = (of_highest == of_lowest) & (nearest == highest)
        result[tied] = highest[tied]
        more = np.flatnonzero(((self.labels != lowest) & (self.labels != highest)).any(0))
        if len(more):
            several = _Corners(self.labels[:, more], self.weights[:, more])
            result[more] = several._winner_of_many(nearest[more])
        return result

    def _winner_of_many(self, nearest: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores = np.stack([self._score(label) for label in self.labels])
        best = scores == scores.max(0)
        beyond = self.labels.max()
        smallest = np.where(best, self.labels, beyond).min(0)
        return np.where((best & (self.labels == nearest)).any(0), nearest, smallest)

    def _score(self, label: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The sum of the weights of those corners that have a label, added one after the other as scipy does."""
        score = np.zeros(len(label))
        for labels, weights in zip(self.labels, self.weights, strict=True):
            score += weights * (labels == label)
        return score
