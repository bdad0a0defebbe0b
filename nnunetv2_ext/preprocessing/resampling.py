"""Resample images and labels to a shape as nnU-Net does, many times faster; not to a spacing, and nothing else.

nnU-Net's `resample_data_or_seg_to_shape` evaluates a spline with 64 taps at every voxel, and resizes one indicator
image per label. The same values come with far less work:

* Spline interpolation on a grid is separable. Along one axis prefilter, border and interpolation are one matrix of
  shape (voxels after, voxels before), of which only a band matters; an image takes one matrix product per axis.
* The winner among linearly interpolated label indicators can only be one of the labels at the eight corners of the
  cell that a voxel falls into. Where all corners agree, that is nearly everywhere, there is nothing to compute.

Arrays are `(channels, z, y, x)`; spacings are in mm, in the same axis order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunetv2_ext.preprocessing.interpolation import nearest_indices, resample_axis
from nnunetv2_ext.preprocessing.label_resizing import resize_labels

Resampler = Callable[..., np.ndarray]

_KNOWN_ARGUMENTS = {"is_seg", "order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"}
_IMAGE_ORDERS, _LABEL_ORDERS = {0, 1, 3}, {0, 1}

_SINGLE_PRECISION_UP_TO = 64.0
"""Normalised intensities stay far below; larger ones are computed in double precision, twice as long, as nnU-Net does:
the sums of a matrix product in single precision would cost more than the 1e-4 that is promised."""


def exact_version(function: Resampler) -> Resampler:
    """A faster function that computes the same where there is one, else the function itself.

    Args:
        function: of nnU-Net's signature `(data, new_shape, current_spacing, new_spacing)`, as
            `ConfigurationManager.resampling_fn_data` and `resampling_fn_seg` give it: a `functools.partial` with the
            plan's arguments.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    if not isinstance(function, partial) or function.func is not resample_data_or_seg_to_shape or function.args:
        return function
    arguments = dict(function.keywords)
    if not set(arguments) <= _KNOWN_ARGUMENTS or arguments.get("force_separate_z", False) not in (None, False, True):
        return function
    order, order_z = arguments.get("order", 3), arguments.get("order_z", 0)
    if arguments.pop("is_seg", False):
        fast: Resampler = resample_labels
        known = order in _LABEL_ORDERS and order_z == 0
        arguments.pop("order_z", None)
    else:
        fast = resample_images
        known = order in _IMAGE_ORDERS and order_z in _IMAGE_ORDERS
    return partial(fast, **arguments) if known else function


def resample_images(
    images: npt.NDArray[Any],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    *,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = 3,
) -> npt.NDArray[Any]:
    """Resample images with splines, clipped to their range before, as `skimage.transform.resize(mode="edge")` does.

    Args:
        images: `(channels, z, y, x)`, float32 or float64; not changed. Without NaN or infinity.
        new_shape: voxels per axis.
        current_spacing: mm, before.
        new_spacing: mm, after. The spacings only decide whether the coarsest axis is resampled apart.
        order: 0, 1 or 3, of the spline.
        order_z: 0, 1 or 3, along the coarsest axis where that is resampled apart.
        force_separate_z: resample the coarsest axis apart: always, never, or (None) where it is coarser by more than
            the threshold.
        separate_z_anisotropy_threshold: ratio of the largest to the smallest spacing.

    Returns:
        `(channels, *new_shape)` of the same type; the array itself where the shape does not change.
    """
    target = tuple(int(n) for n in new_shape)
    if images.shape[1:] == target:
        return images
    apart = _axis_apart(force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold)
    result = np.empty((len(images), *target), images.dtype)
    for image, out in zip(images, result, strict=True):
        out[...] = _resize_image(image, target, order, apart, order_z)
    return result


def resample_labels(
    labels: npt.NDArray[Any],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    *,
    order: int = 1,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = 3,
) -> npt.NDArray[Any]:
    """Resample label maps: the label whose linearly interpolated indicator is largest, as batchgenerators does.

    Ties go to the nearest neighbour's label where that is among the tied ones, else to the smallest of them (its
    `resize_segmentation`, `seg_tiebreak="nearest"`). Where the coarsest axis is resampled apart, every slice is resized
    by itself and then the nearest slice taken.

    Args:
        labels: `(channels, z, y, x)` of any type; not changed.
        new_shape, current_spacing, new_spacing, force_separate_z, separate_z_anisotropy_threshold:
            as for `resample_images`.
        order: 1, or 0 for the nearest neighbour.

    Returns:
        `(channels, *new_shape)` of the same type; the array itself where the shape does not change.
    """
    target = tuple(int(n) for n in new_shape)
    if labels.shape[1:] == target:
        return labels
    apart = _axis_apart(force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold)
    result = np.empty((len(labels), *target), labels.dtype)
    for before, after in zip(labels, result, strict=True):
        if order == 0:
            after[...] = _nearest(before, target)
        else:
            resize_labels(before, after, apart)
    return result


def _axis_apart(
    force: bool | None, current_spacing: Sequence[float], new_spacing: Sequence[float], threshold: float
) -> int | None:
    """The axis that nnU-Net resamples apart from the other two, if any; nnU-Net decides."""
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    separate, axis = determine_do_sep_z_and_axis(force, current_spacing, new_spacing, threshold)
    return int(axis) if separate and axis is not None else None


def _resize_image(
    image: npt.NDArray[Any], target: tuple[int, ...], order: int, apart: int | None, order_z: int
) -> npt.NDArray[Any]:
    in_plane = [axis for axis in range(3) if axis != apart]
    # a slice by itself keeps its own range, a volume the volume's
    within = tuple(in_plane) if apart is not None else (0, 1, 2)
    low, high = image.min(axis=within, keepdims=True), image.max(axis=within, keepdims=True)
    if max(-low.min(), high.max()) > _SINGLE_PRECISION_UP_TO:
        image = image.astype(np.float64)
    out = image
    for axis in sorted(in_plane, key=lambda a: target[a] / image.shape[a]):  # what shrinks first leaves less to do
        out = resample_axis(out, axis, target[axis], order)
    if out is not image:
        np.clip(out, low, high, out=out)
    return out if apart is None else resample_axis(out, apart, target[apart], order_z)


def _nearest(labels: npt.NDArray[Any], target: Sequence[int]) -> npt.NDArray[Any]:
    for axis, size in enumerate(target):
        if labels.shape[axis] != size:
            labels = labels.take(nearest_indices(labels.shape[axis], size), axis)
    return labels
