"""Which class reads a path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunetv2_ext.datasets.volumes import array_files, itk_file
from nnunetv2_ext.datasets.volumes.array_files import NpyFile, TiffFile
from nnunetv2_ext.datasets.volumes.dicom_folder import DicomFolder
from nnunetv2_ext.datasets.volumes.itk_file import ItkFile
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import SPACING, counted, save, voxels


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"a.b{ending}", ItkFile) for ending in itk_file.ENDINGS),
        *((f"a.b{ending}", TiffFile) for ending in array_files.TIFF_ENDINGS),
        ("a.ome.tif", TiffFile),
        ("a.npy", NpyFile),
        ("A.NII.GZ", ItkFile),
        ("a.TIF", TiffFile),
        ("a.NPY", NpyFile),
    ],
)
def test_the_ending_decides(name: str, kind: type, tmp_path: Path) -> None:
    volume = volume_at(tmp_path / name, (3.0, 2.0, 1.0))  # which need not exist
    assert type(volume) is kind
    assert (volume.path, volume.where, volume.files) == (
        tmp_path / name,
        str(tmp_path / name),
        (tmp_path / name,),
    )
    assert volume.spacing == (3.0, 2.0, 1.0)


@pytest.mark.parametrize("name", ["scan", "scan.nii.gz", "scan.zarr"])
def test_a_folder_is_one_of_dicom_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert volume_at(tmp_path / name) == DicomFolder(tmp_path / name)


@pytest.mark.parametrize("name", ["a", "a.gz", "a.png", "nii.gz", "a.nii.bz2", "a.zarr", "a.dcm"])
def test_what_ends_like_no_image_is_refused_with_the_endings(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        volume_at(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} ends like no image that can be read (.nii.gz, .nii, ")
    assert ".npy; or a folder of DICOM files)" in str(caught.value)


def test_a_relative_path_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert volume_at(Path("images/a.nii.gz")).where == str(tmp_path / "images" / "a.nii.gz")


def test_a_format_with_a_spacing_keeps_its_own(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nrrd", counted(2, 3, 4))
    assert volume_at(path, (9.0, 9.0, 9.0)).geometry().spacing == SPACING


@pytest.mark.parametrize("ending", [".NII.GZ", ".NII", ".NRRD", ".TIF", ".NPY"])
def test_endings_in_capitals_are_read(ending: str, tmp_path: Path) -> None:
    array = counted(2, 3, 4)
    written = tmp_path / f"a{ending.lower()}"
    if ending == ".NPY":
        np.save(written, array)
    else:
        save(written, array)
    written.rename(tmp_path / f"a{ending}")
    volume = volume_at(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(voxels(volume), array)
    assert volume.ending is None  # nnU-Net's endings are in small letters
