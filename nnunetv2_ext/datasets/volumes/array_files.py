"""Files that hold an array of three axes and little else: NumPy's .npy, and TIFF."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.volumes.volume import File, Geometry, check_dtype, from_array
from nnunetv2_ext.errors import UserError

NPY_ENDINGS = (".npy",)
TIFF_ENDINGS = (".tif", ".tiff")


@dataclass(frozen=True)
class NpyFile(File):
    """`(z, y, x)` in NumPy's format; `spacing` is given by whoever knows it."""

    def geometry(self) -> Geometry:
        return _geometry(self._mapped().shape, self.spacing)

    def image(self) -> sitk.Image:
        return from_array(np.asarray(self._mapped()), self.geometry())

    def _mapped(self) -> np.ndarray:
        if self.path.is_file() and self.path.stat().st_size == 0:
            raise UserError(f"{self.path} is empty: copy or download it again")
        try:
            array = np.lib.format.open_memmap(self.path, mode="r")  # np.load takes archives and pickles too
        except (ValueError, EOFError) as error:
            if "Python objects" in str(error):
                raise UserError(f"{self.path} holds Python objects, where an image has numbers") from error
            raise UserError(f"{self.path} is no .npy file, or is damaged: copy or download it again") from error
        except OSError as error:
            raise self._unreadable(error) from error
        _check(array.shape, array.dtype, self.where)
        return array


@dataclass(frozen=True)
class TiffFile(File):
    """A stack of pages `(z, y, x)`. The spacing that is given is for those without ImageJ's or OME's metadata of it."""

    @property
    def ending(self) -> str | None:
        return next((ending for ending in TIFF_ENDINGS if self.path.name.endswith(ending)), None)

    def geometry(self) -> Geometry:
        import tifffile

        try:
            with tifffile.TiffFile(self.path) as file:
                series = file.series[0]
                shape, dtype, axes = series.shape, series.dtype, series.axes
                spacing = _spacing(file) or self.spacing
                _check_end(file)
        except Exception as error:  # damaged bytes lead its parsers anywhere
            raise self._unreadable(error) from error
        if axes.endswith("S"):  # samples of a pixel
            raise UserError(f"{self.path} holds colour images, where one value per voxel is needed")
        _check(shape, dtype, self.where)
        return _geometry(shape, spacing)

    def image(self) -> sitk.Image:
        import tifffile

        geometry = self.geometry()
        try:
            return from_array(tifffile.imread(self.path), geometry)
        except Exception as error:  # as above
            raise self._unreadable(error) from error


def _check_end(file: Any) -> None:
    """Raises ValueError where the chain of pages breaks off: tifffile takes such a file for one of fewer pages."""
    file.filehandle.seek(file.pages.next_page_offset)
    if file.filehandle.read(file.tiff.offsetsize) != bytes(file.tiff.offsetsize):
        raise ValueError("its pages break off")


def _spacing(file: Any) -> tuple[float, float, float] | None:
    """(z, y, x) of OME's or ImageJ's metadata, in their own unit; None where they do not say all three."""
    found = _ome_spacing(file) if file.is_ome else _imagej_spacing(file)
    return found if found is not None and all(0 < step < math.inf for step in found) else None


def _ome_spacing(file: Any) -> tuple[float, float, float] | None:
    import tifffile

    images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    pixels = (images[0] if isinstance(images, list) else images)["Pixels"]
    sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]
    if not all(sizes):
        return None
    z, y, x = map(float, sizes)
    return z, y, x


def _imagej_spacing(file: Any) -> tuple[float, float, float] | None:
    """The depth lies in ImageJ's metadata, height and width in the tags of the resolution (pixels per unit)."""
    depth = (file.imagej_metadata or {}).get("spacing")
    tags = file.pages[0].tags
    if not depth or "XResolution" not in tags or "YResolution" not in tags:
        return None
    per_unit = [tags[name].value for name in ("YResolution", "XResolution")]
    if any(numerator <= 0 or denominator <= 0 for numerator, denominator in per_unit):
        return None
    y, x = (denominator / numerator for numerator, denominator in per_unit)
    return float(depth), y, x


def _geometry(shape: tuple[int, ...], spacing: tuple[float, float, float] | None) -> Geometry:
    z, y, x = shape
    return Geometry((x, y, z), spacing and (spacing[2], spacing[1], spacing[0]))


def _check(shape: tuple[int, ...], dtype: Any, where: str) -> None:
    if len(shape) != 3:
        raise UserError(f"{where} has {len(shape)} axes ({' x '.join(map(str, shape))}), not z, y and x: split it")
    if not all(shape):
        raise UserError(f"{where} holds no voxel ({' x '.join(map(str, shape))})")
    check_dtype(np.dtype(dtype), where)
