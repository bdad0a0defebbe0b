"""Small images, and cases made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.datasets.collection import TRAIN, Case
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.datasets.volumes.volume import Volume
from nnunetv2_ext.errors import UserError

SPACING = (0.5, 1.25, 2.0)
"""(x, y, z), all different."""
ORIGIN = (-12.5, 7.0, 103.25)
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def rotation(*degrees: float) -> tuple[float, ...]:
    """Row-major 3 x 3 cosines of turns about x, y and z, one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return tuple(matrix.ravel().tolist())


OBLIQUE = rotation(20, -10, 35)


def counted(*shape: int, dtype: Any = np.int16) -> np.ndarray:
    """Every voxel has another value, so that no two axes can be exchanged unnoticed."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(
    path: Path,
    array: np.ndarray,
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = ORIGIN,
    direction: Sequence[float] = STRAIGHT,
) -> Path:
    """Write `array` (z, y, x) in the format that the path's ending means; spacing, origin and direction (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


def voxels(volume: Volume) -> np.ndarray:
    """(z, y, x)"""
    return sitk.GetArrayFromImage(volume.image())


def case_of(
    *images: Path,
    label: Path | None = None,
    name: str = "a",
    part: str = TRAIN,
    subject: str = "",
    classes: Mapping[int, str] | None = None,
    problems: tuple[str, ...] = (),
) -> Case:
    """A case of files; its own subject where none is given."""
    return Case(
        name=name,
        row=f"table.csv, line {name}",
        subject=subject or name,
        part=part,
        images=tuple(volume_at(path) for path in images),
        label=volume_at(label) if label is not None else None,
        classes=classes,
        problems=problems,
    )


def refused_both_ways(volume: Volume) -> str:
    """What is said of a volume whose geometry and voxels cannot be had: one line, the same for both."""
    said = set()
    for read in (volume.geometry, volume.image):
        with pytest.raises(UserError) as caught:
            read()
        said.add(str(caught.value))
    (message,) = said
    assert "\n" not in message
    return message
