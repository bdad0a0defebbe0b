"""A folder with the slices of one DICOM series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.volumes.volume import File, Geometry, without_warnings
from nnunetv2_ext.datasets.wording import listed
from nnunetv2_ext.errors import UserError

_POSITION = "0020|0032"
_UNEVEN = 0.05
"""Of the mean distance of slices: beyond it one is missing."""
_SAME_PLACE = 1e-3
"""mm between slices that are none."""


@dataclass(frozen=True)
class _Scan:
    """What the headers of all slices say."""

    geometry: Geometry
    has_one_type: bool


@dataclass(frozen=True)
class DicomFolder(File):
    """`path` is the folder; other files in it do not matter, but there is one series of images only.

    The folder is looked through once for each instance: a scan has hundreds of files.
    """

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(map(Path, self._slices))

    def geometry(self) -> Geometry:
        return self._scan.geometry

    def image(self) -> sitk.Image:
        geometry = self._scan.geometry
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(self._slices)
        if not self._scan.has_one_type:
            reader.SetOutputPixelType(sitk.sitkFloat64)  # else all are rounded to the type of the first
        try:
            with without_warnings():
                image = reader.Execute()
        except RuntimeError as error:
            raise self._unreadable(error) from error
        return sitk.Image(image) if geometry.difference(_geometry_of(image)) is None else _put(geometry, image)

    @cached_property
    def _scan(self) -> _Scan:
        names = self._slices
        headers = [self._header(name) for name in names]
        first = headers[0]
        direction = first.GetDirection()
        size = first.GetSize()
        if any(header.GetNumberOfComponents() != 1 for header in headers):
            raise UserError(f"{self.path} holds colour images, where one value per voxel is needed")
        for name, header in zip(names, headers, strict=True):
            if difference := _slice_of(first).difference(_slice_of(header)):
                raise UserError(f"the slices {names[0]} and {name} differ in {difference}")
        positions = np.array([header.GetOrigin() for header in headers])
        normal = np.array(direction).reshape(3, 3)[:, 2]
        distances = (positions - positions[0]) @ normal
        aside = np.linalg.norm(positions - positions[0] - np.outer(distances, normal), axis=1)
        if aside.max() > min(first.GetSpacing()[:2]):
            raise UserError(f"{self.path}: its slices do not lie above each other: a tilted gantry? Resample it first")
        if np.isclose(np.diff(np.sort(distances)), 0, atol=_SAME_PLACE).any():
            raise UserError(f"{self.path} has several slices at the same place: only one moment, once, is needed")
        steps = np.diff(distances)
        depth = abs(float(np.mean(steps))) if len(steps) else first.GetSpacing()[2]
        if len(steps) and np.ptp(steps) > _UNEVEN * depth:
            low, high = sorted((abs(float(steps.min())), abs(float(steps.max()))))
            raise UserError(
                f"{self.path}: the distance of its slices varies from {low:.4g} to {high:.4g} mm: is one missing?"
            )
        self._check_none_is_left_out(names)
        spacing = (*first.GetSpacing()[:2], depth)
        geometry = Geometry((size[0], size[1], len(names)), spacing, first.GetOrigin(), direction)
        return _Scan(geometry, len({header.GetPixelID() for header in headers}) == 1)

    @cached_property
    def _slices(self) -> tuple[str, ...]:
        """Their files along the normal of the slices."""
        if not self.path.is_dir():
            raise UserError(f"there is no folder {self.path}")
        with without_warnings():
            series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(self.path))
        if not series:
            folders = sorted(path.name for path in self.path.iterdir() if path.is_dir())
            below = f"; those of the folders in it ({listed(folders)}) are not looked at: name one" if folders else ""
            raise UserError(f"{self.path} holds no DICOM images{below}")
        if len(series) > 1:
            raise UserError(
                f"{self.path} holds {len(series)} DICOM series, where one is needed: {listed(series)}; put each into "
                "a folder of its own"
            )
        with without_warnings():
            return tuple(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(self.path), series[0]))

    def _check_none_is_left_out(self, names: Sequence[str]) -> None:
        """Raises UserError for a file that begins like a slice but cannot be read, which GDCM passes over."""
        known, kind = {Path(name).name for name in names}, _sop_class(Path(names[0]))
        for path in sorted(self.path.iterdir()):
            if kind is not None and path.name not in known and path.is_file() and _sop_class(path) == kind:
                raise UserError(f"{path} is a DICOM image that cannot be read: is its end missing?")

    def _header(self, name: str) -> sitk.ImageFileReader:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        try:
            with without_warnings():
                reader.ReadImageInformation()
        except RuntimeError as error:
            raise self._unreadable(error) from error
        size = reader.GetSize()
        if len(size) == 3 and size[2] > 1:  # before its place, which it may say for each frame
            raise UserError(f"{name} is a multi-frame DICOM file: convert it to NIfTI first")
        if not reader.HasMetaDataKey(_POSITION):
            raise UserError(f"{name} does not say where its slice lies (Image Position Patient): it is no 3D scan")
        return reader


def _sop_class(path: Path) -> bytes | None:
    """What a DICOM file is, CT or MR for example, from the first bytes; None where they do not say."""
    with path.open("rb") as file:
        start = file.read(1024)
    _, tag, value = start.partition(b"\x02\x00\x02\x00UI") if start[128:132] == b"DICM" else (b"", b"", b"")
    return value[2 : 2 + int.from_bytes(value[:2], "little")] if tag else None


def _geometry_of(image: sitk.Image) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _slice_of(header: sitk.ImageFileReader) -> Geometry:
    """What all slices of a scan share; the third spacing is their thickness, which may vary."""
    return Geometry(header.GetSize(), (*header.GetSpacing()[:2], 1.0), direction=header.GetDirection())


def _put(geometry: Geometry, image: sitk.Image) -> sitk.Image:
    geometry.put_on(image)
    return image
