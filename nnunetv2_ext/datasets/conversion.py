"""What of a case is converted and how its voxels are read for that: by the import, and by the dry run before it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.volumes.volume import Geometry, Volume
from nnunetv2_ext.errors import UserError


def stays_as_it_is(volume: Volume, own: Geometry, geometry: Geometry, ending: str) -> bool:
    """Whether an image is copied or linked: nnU-Net reads it, and takes its grid for the case's to the last digit.

    Args:
        volume: the image.
        own: its geometry.
        geometry: of all images of the case.
        ending: of the dataset's files.
    """
    return volume.ending == ending and own.spacing in (None, geometry.spacing)


def finite_image(volume: Volume) -> sitk.Image:
    """An image with all its voxels. Raises UserError where some are NaN, which readers of NIfTI take for 0."""
    image = volume.image()
    array = sitk.GetArrayViewFromImage(image)
    if array.dtype.kind == "f" and (strange := array.size - np.count_nonzero(np.isfinite(array))):
        raise UserError(f"{strange} voxels of {volume.where} are NaN or infinite")
    return image


def label_on_grid(label: Volume, own: Geometry, geometry: Geometry, values: Iterable[int], image: Volume) -> sitk.Image:
    """A label map on the grid of its image; one that lies on another is resampled (nearest neighbour).

    Args:
        label: the label map.
        own: its geometry.
        geometry: of its images.
        values: that it holds.
        image: the first of its images, for the message.

    Raises:
        UserError: nothing of a value is left, or the label map cannot be read.
    """
    found = label.image()
    if geometry.difference(own) is None:
        geometry.put_on(found)
        return found
    resampled = sitk.Resample(found, _grid(geometry), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    if lost := set(values) - {0, *distinct(sitk.GetArrayViewFromImage(resampled)).tolist()}:
        raise UserError(
            f"nothing of {', '.join(map(str, sorted(lost)))} in {label.where} is left on the grid of {image.where}: "
            "does it lie elsewhere?"
        )
    return resampled


def _grid(geometry: Geometry) -> sitk.Image:
    grid = sitk.Image(list(geometry.size), sitk.sitkUInt8)
    geometry.put_on(grid)
    return grid


def distinct(array: np.ndarray) -> np.ndarray:
    """The values in an array, ascending: of a label map, where neighbours are mostly equal, without sorting it all.

    Eight bytes are compared at once, with the eight before them.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    whole = flat.nbytes // 8 * 8 // flat.itemsize
    words = flat[:whole].view(np.uint64)
    changes = np.concatenate([words[:1], words[1:][words[1:] != words[:-1]]])
    candidates = np.concatenate([changes.view(flat.dtype), flat[whole:]])
    if flat.itemsize > 2:
        return np.unique(candidates)
    unsigned = np.dtype(f"u{flat.itemsize}")
    found = np.flatnonzero(np.bincount(candidates.view(unsigned)))
    return np.sort(found.astype(unsigned).view(flat.dtype))
