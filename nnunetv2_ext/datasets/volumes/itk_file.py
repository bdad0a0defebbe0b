"""Files that SimpleITK reads: NIfTI, NRRD, MetaImage, GIPL and others."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.volumes import nifti
from nnunetv2_ext.datasets.volumes.volume import File, Geometry, from_array, without_warnings
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.integrity import DamagedFileError, NotFiniteError, check_as_read, check_length
from nnunetv2_ext.preprocessing.voxel_data import METAIMAGE, NIFTI, NRRD, PAIRED, VoxelData, find_voxels, pair

READ_BY_NNUNET = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
"""Endings of stock nnU-Net's SimpleITKIO and NibabelIO."""
ENDINGS = (*READ_BY_NNUNET, ".mhd", ".nhdr", ".hdr", ".img.gz", ".img", ".gipl.gz")
_SKEW_TOLERANCE = 1e-3
"""Of direction cosines; headers of text have at least four digits."""


@dataclass(frozen=True)
class ItkFile(File):
    """One of `ENDINGS`."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Itself; where header and voxels are two files, both, the header first."""
        name = self.path.name.lower()
        if name.endswith(PAIRED) and self.path.exists():
            return pair(self.path)
        if not name.endswith((*METAIMAGE, *NRRD)):
            return (self.path,)
        try:
            data = self._voxel_data()
        except UserError:  # said when it is read
            data = None
        return (self.path,) if data is None or data.file == self.path else (self.path, data.file)

    @cached_property
    def ending(self) -> str | None:
        """None also where nnU-Net would not read the file as its ending promises, or not as SimpleITK does."""
        ending = next((ending for ending in READ_BY_NNUNET if self.path.name.endswith(ending)), None)
        if ending is None or len(self.files) > 1:
            return None
        header = self._nifti_header if ending in NIFTI else None
        if header is None:
            return ending
        converted = nifti.is_nifti_2(header) or (ending == ".nii" and not nifti.read_by_nibabel_io_alike(header))
        return None if converted else ending

    def geometry(self) -> Geometry:
        if self.path.is_file() and self.path.stat().st_size == 0:
            raise UserError(f"{self.path} is empty: copy or download it again")
        for path in self.files:
            if path != self.path and not path.exists():
                raise UserError(f"there is no file {path}, which belongs to {self.path.name}")
        header = self._nifti_header
        if header is not None:
            nifti.check_header(header, self.path)
        name = self.path.name.lower()
        data = self._voxel_data() if name.endswith((*METAIMAGE, *NRRD)) else None
        if data is None and name.endswith(METAIMAGE) and self.path.is_file():
            raise self._other_format()  # of which ITK would print more
        if not nifti.is_nifti_2(header) and not (nifti.is_nifti_1(header) and name.endswith(".nii.gz")):
            return self._geometry_of(self.path)
        with nifti.twin(header, self.path) as path:  # of what is compressed, ITK would decompress much more
            return self._geometry_of(path)

    def image(self) -> sitk.Image:
        geometry = self.geometry()
        self.check_length()  # before SimpleITK says it less clearly
        header = self._nifti_header
        if nifti.is_nifti_2(header):
            image = from_array(self._voxels_of_nifti_2(header), geometry)
        else:
            image = self._image_of_itk()
        with _whole_paths():
            check_as_read(self.files, [sitk.GetArrayViewFromImage(image)])
        return image

    def array(self) -> np.ndarray:
        """Of whole numbers in compressed NIfTI, in a third of the time of `image` where zlib-ng is installed."""
        header = self._nifti_header
        if not self.path.name.endswith(".nii.gz") or not nifti.holds_whole_numbers(header) or not nifti.HAS_ZLIB_NG:
            return super().array()
        with _whole_paths():
            check_length(self.path)
            return nifti.read_compressed(header, self.path)

    def check_length(self) -> None:
        with _whole_paths():
            check_length(self.path)

    def check_whole(self) -> None:
        """By its length, where the header says it; other files are read."""
        with _whole_paths():
            told = check_length(self.path)
        if not told:
            self.image()

    def remark(self) -> str | None:
        header = self._nifti_header
        return nifti.remark_on_header(header, self.path) if header is not None else None

    def _geometry_of(self, path: Path) -> Geometry:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            with without_warnings():
                reader.ReadImageInformation()
        except RuntimeError as error:
            raise self._unreadable(error) from error
        size, spacing, direction = reader.GetSize(), reader.GetSpacing(), reader.GetDirection()
        self._check(reader.GetDimension(), size, reader.GetNumberOfComponents())
        if not all(0 < step < float("inf") for step in spacing):
            shown = " x ".join(f"{step:g}" for step in reversed(spacing))
            raise UserError(f"{self.path} says a spacing of {shown} (z, y, x): correct its header")
        cosines = np.array(direction).reshape(3, 3)
        if not np.allclose(cosines.T @ cosines, np.eye(3), rtol=0, atol=_SKEW_TOLERANCE):
            raise UserError(f"the axes of {self.path} are not at right angles: resample it first")
        return Geometry(size, spacing, reader.GetOrigin(), direction)

    def _check(self, dimension: int, size: tuple[int, ...], components: int) -> None:
        if dimension != 3 or components != 1:
            shape = " x ".join(map(str, reversed(size)))
            what = f"{components} values per voxel" if components != 1 else f"{dimension} dimensions ({shape})"
            raise UserError(f"{self.path} has {what}, where a 3D image with one value per voxel is needed: split it")

    @cached_property
    def _nifti_header(self) -> Any:
        name = self.path.name.lower()
        if name.endswith(PAIRED):
            return nifti.header_of(pair(self.path)[0])
        return nifti.header_of(self.path) if name.endswith(NIFTI) else None

    def _voxel_data(self) -> VoxelData | None:
        try:
            return find_voxels(self.path)
        except (OSError, EOFError, zlib.error):
            return None

    def _image_of_itk(self) -> sitk.Image:
        try:
            with without_warnings():
                return sitk.ReadImage(str(self.path))
        except RuntimeError as error:
            raise UserError(f"{self.path} cannot be read beyond its header: is it cut off or damaged?") from error

    def _voxels_of_nifti_2(self, header: Any) -> np.ndarray:
        try:
            return nifti.read_voxels(header, self.path)
        except Exception as error:  # damaged bytes lead nibabel anywhere
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        if self.path.is_file() and "Unable to determine ImageIO" in str(error):
            return self._other_format()
        return super()._unreadable(error)

    def _other_format(self) -> UserError:
        return UserError(f"{self.path} is no {_format(self.path)} file, or is damaged: copy or download it again")


@contextmanager
def _whole_paths() -> Iterator[None]:
    """The files of a source lie anywhere: name their folders too, where they are damaged or hold NaN."""
    try:
        yield
    except DamagedFileError as error:
        raise UserError(f"{error.path} {error.what}: copy or download it again") from error
    except NotFiniteError as error:
        raise UserError(f"{error.count} voxels of {error.path} are NaN or infinite") from error


def _format(path: Path) -> str:
    name = path.name.lower()
    if name.endswith((*NIFTI, *PAIRED)):
        return "NIfTI"
    return "MetaImage" if name.endswith(METAIMAGE) else "NRRD" if name.endswith(NRRD) else "GIPL"
