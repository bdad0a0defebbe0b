"""Files that SimpleITK reads: NIfTI, NRRD, MetaImage, GIPL and others."""

from __future__ import annotations

from dataclasses import dataclass

import SimpleITK as sitk

from nnunetv2_ext.datasets.volumes.volume import File, Geometry
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.integrity import check_length

READ_BY_NNUNET = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
"""Endings of stock nnU-Net's SimpleITKIO and NibabelIO."""
ENDINGS = (*READ_BY_NNUNET, ".mhd", ".nhdr", ".hdr", ".img.gz", ".img", ".gipl.gz")


@dataclass(frozen=True)
class ItkFile(File):
    """One of `ENDINGS`."""

    @property
    def ending(self) -> str | None:
        return next((ending for ending in READ_BY_NNUNET if self.path.name.endswith(ending)), None)

    def geometry(self) -> Geometry:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(self.path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise self._unreadable(error) from error
        size, spacing = reader.GetSize(), reader.GetSpacing()
        self._check(reader.GetDimension(), size, reader.GetNumberOfComponents())
        return Geometry(size, spacing, reader.GetOrigin(), reader.GetDirection())

    def image(self) -> sitk.Image:
        self.geometry()
        try:
            return sitk.ReadImage(str(self.path))
        except RuntimeError as error:
            raise self._unreadable(error) from error

    def check_whole(self) -> None:
        """NIfTI by its length; files of other formats are read."""
        if self.path.name.endswith((".nii", ".nii.gz")):
            check_length(self.path)
        else:
            self.image()

    def _check(self, dimension: int, size: tuple[int, ...], components: int) -> None:
        if dimension != 3 or components != 1:
            shape = " x ".join(map(str, reversed(size)))
            what = f"{components} values per voxel" if components != 1 else f"{dimension} dimensions ({shape})"
            raise UserError(f"{self.path} has {what}, where a 3D image with one value per voxel is needed: split it")
