"""What is common to images and label maps of all kinds: where they lie, their geometry, their voxels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.errors import UserError

_TOLERANCE = 1e-4
"""Relative to a voxel: NIfTI keeps positions in 32 bits."""


@dataclass(frozen=True)
class Geometry:
    """Of a 3D volume, in SimpleITK's order and its world (x, y, z; millimetres).

    Attributes:
        size: voxels.
        spacing: None where the storage does not say (an array without metadata).
        origin: of the first voxel's centre.
        direction: row-major 3 x 3 cosines.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def difference(self, other: Geometry) -> str | None:
        """The first thing in which two differ, or None; what one of them does not know is no difference."""
        if self.size != other.size:
            return f"size {_reversed(self.size)} and {_reversed(other.size)}"
        if self.spacing is None or other.spacing is None:
            return None
        if not np.allclose(self.spacing, other.spacing, rtol=_TOLERANCE, atol=0):
            return f"spacing {_reversed(self.spacing)} and {_reversed(other.spacing)}"
        if not np.allclose(self.direction, other.direction, rtol=0, atol=_TOLERANCE):
            return f"direction {_rounded(self.direction)} and {_rounded(other.direction)} (x, y, z)"
        # a direction that is off by 1e-4 moves the far corner by a small part of a voxel, an origin the whole image
        if not np.allclose(self.origin, other.origin, rtol=1e-5, atol=1e-2 * min(self.spacing)):
            return f"origin {_rounded(self.origin)} and {_rounded(other.origin)} (x, y, z)"
        return None

    def put_on(self, image: sitk.Image) -> None:
        """Give an image this geometry, as far as it is known."""
        image.SetSpacing(self.spacing or (1.0, 1.0, 1.0))
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)


def _reversed(values: tuple[int, ...] | tuple[float, ...]) -> str:
    return f"{' x '.join(f'{value:g}' for value in reversed(values))} (z, y, x)"


def _rounded(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


class Volume(ABC):
    """An image or label map somewhere."""

    @property
    @abstractmethod
    def where(self) -> str:
        """For messages and the manifest: a path or address, and what of it."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The local files that it is read from, for their sizes, times and hashes; none where there are none."""
        return ()

    @property
    def ending(self) -> str | None:
        """The file ending with which stock nnU-Net reads it as it lies; None if it has to be converted."""
        return None

    @abstractmethod
    def geometry(self) -> Geometry:
        """Read no more than the header. Raises UserError where that cannot be read."""

    def check_length(self) -> None:  # noqa: B027
        """Raises UserError where a file that can be opened is cut off, as far as that is told without its voxels."""

    def check_whole(self) -> None:  # noqa: B027
        """The same for a file that is not read afterwards: where only its voxels tell, they are read."""

    def remark(self) -> str | None:
        """What the user should know of the header, though it can be read; None if all is well."""
        return None

    def not_stored(self) -> str | None:
        """Said of voxels of which the storage holds nothing, and reads a value that stands for them; None elsewhere."""
        return None

    @abstractmethod
    def image(self) -> sitk.Image:
        """All voxels, with the geometry. Raises UserError where they cannot be read, or are damaged."""

    def array(self) -> np.ndarray:
        """All voxels `(z, y, x)` alone. Raises UserError as `image` does."""
        return sitk.GetArrayFromImage(self.image())


@dataclass(frozen=True)
class File(Volume):
    """A local file or folder.

    Attributes:
        path: absolute.
        spacing: (z, y, x), for storage that has none of its own; None if it is not known.
    """

    path: Path
    spacing: tuple[float, float, float] | None = None

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def _unreadable(self, error: Exception) -> UserError:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return UserError(f"{self.path} cannot be read: {reason[-1].strip()}")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep ITK's warnings off the terminal; what matters in them is checked and said by us."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def from_array(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """`array` (z, y, x) as an image, converted only to a type that files have, without loss (float16 to float32)."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype == bool:
        array = array.astype(np.uint8)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))
    geometry.put_on(image)
    return image


def check_dtype(dtype: np.dtype, where: str) -> None:
    """Raises UserError for what is no scalar: complex numbers, structures, text."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UserError(f"{where} holds values of type {dtype}, where an image has whole or real numbers")
