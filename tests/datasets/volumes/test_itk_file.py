"""Files that SimpleITK reads: what nnU-Net would read in them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import (
    LIST_OF_IO_CLASSES,
    determine_reader_writer_from_file_ending,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_ext.datasets.volumes.itk_file import ENDINGS, READ_BY_NNUNET, ItkFile
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import OBLIQUE, ORIGIN, SPACING, STRAIGHT, counted, save, voxels

CONVERTED = tuple(ending for ending in ENDINGS if ending not in READ_BY_NNUNET)


def test_nnunet_reads_the_endings_that_are_copied_as_they_are() -> None:
    stock = [*SimpleITKIO.supported_file_endings, *NibabelIO.supported_file_endings]
    assert set(READ_BY_NNUNET) == {*stock, *NibabelIOWithReorient.supported_file_endings}


def test_nnunet_has_no_other_readers_of_volumes() -> None:
    assert set(LIST_OF_IO_CLASSES) == {NaturalImage2DIO, SimpleITKIO, NibabelIO, NibabelIOWithReorient, Tiff3DIO}


@pytest.mark.parametrize("ending", READ_BY_NNUNET)
def test_nnunet_reads_the_same_voxels_and_spacing(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a_0000{ending}", counted(2, 3, 4))
    file = ItkFile(path)
    assert file.ending == ending
    reader = determine_reader_writer_from_file_ending(ending, str(path), verbose=False)()
    array, properties = reader.read_images([str(path)])
    np.testing.assert_array_equal(voxels(file), array[0])
    spacing = file.geometry().spacing
    assert spacing is not None
    np.testing.assert_allclose(spacing[::-1], properties["spacing"])


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_voxels_and_the_grid_that_were_written(ending: str, tmp_path: Path) -> None:
    direction = STRAIGHT if "gipl" in ending else OBLIQUE  # GIPL has none
    array = counted(2, 3, 4) - 7
    file = ItkFile(save(tmp_path / f"a{ending}", array, direction=direction))
    np.testing.assert_array_equal(voxels(file), array)
    geometry = file.geometry()
    assert geometry.size == (4, 3, 2)
    np.testing.assert_allclose(np.array(geometry.spacing), SPACING, rtol=1e-6)
    np.testing.assert_allclose(geometry.origin, ORIGIN, rtol=1e-6)
    np.testing.assert_allclose(geometry.direction, direction, atol=1e-6)
    image = file.image()
    assert geometry.spacing == image.GetSpacing()
    assert (geometry.origin, geometry.direction) == (image.GetOrigin(), image.GetDirection())


@pytest.mark.parametrize("ending", [*CONVERTED, ".NII.GZ", ".Nrrd"])
def test_what_nnunet_does_not_read_is_to_be_converted(ending: str) -> None:
    assert ItkFile(Path(f"/nowhere/a{ending}")).ending is None


def test_an_oblique_voxel_lies_in_the_world_where_nibabel_has_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", counted(2, 3, 4), direction=OBLIQUE)
    geometry = ItkFile(path).geometry()
    voxel = np.array([3, 1, 1])
    cosines = np.array(geometry.direction).reshape(3, 3)
    ours = np.array(geometry.origin) + cosines @ (voxel * np.array(geometry.spacing))
    right, anterior, superior = (nib.load(path).affine @ [*voxel, 1])[:3]
    np.testing.assert_allclose(ours, [-right, -anterior, superior], rtol=1e-5)  # ITK's world is left, posterior


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_the_type_of_the_voxels_is_kept(dtype: str, tmp_path: Path) -> None:
    assert voxels(ItkFile(save(tmp_path / "a.nii.gz", counted(2, 3, 4, dtype=dtype)))).dtype == np.dtype(dtype)


def test_slope_and_intercept_of_nifti_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(counted(4, 3, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(tmp_path / "a.nii")
    expected = np.asarray(nib.load(tmp_path / "a.nii").dataobj).T
    assert expected.min() == -3
    np.testing.assert_array_equal(voxels(ItkFile(tmp_path / "a.nii")), expected)


def test_the_header_is_enough_for_the_geometry(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", counted(2, 3, 4))
    path.write_bytes(path.read_bytes()[:352])
    assert ItkFile(path).geometry().size == (4, 3, 2)


def flat(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(counted(3, 4)), str(path))


def moments(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(counted(5, 2, 3, 4), isVector=False), str(path))


def colour(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(counted(2, 3, 4, 3, dtype=np.uint8), isVector=True), str(path))


def complex_numbers(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(counted(2, 3, 4, dtype=np.complex64)), str(path))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (flat, "has 2 dimensions (3 x 4)"),
        (moments, "has 4 dimensions (5 x 2 x 3 x 4)"),
        (colour, "has 3 values per voxel"),
        (complex_numbers, "has 2 values per voxel"),
    ],
)
def test_what_is_no_3d_image_of_one_value_per_voxel_is_refused(
    write: Any, said: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{ending}"
    write(path)
    for read in (ItkFile(path).geometry, ItkFile(path).image):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{path} {said}, where a 3D image with one value per voxel is needed: split it"


def refusal(path: Path) -> str:
    """What is said of a file that cannot be read, whichever way it is tried."""
    said = set()
    for read in (ItkFile(path).geometry, ItkFile(path).image):
        with pytest.raises(UserError) as caught:
            read()
        said.add(str(caught.value))
    (message,) = said
    assert "\n" not in message
    assert message.startswith(f"{path} cannot be read: ")
    return message


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_no_image_is_named(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").write_bytes(b"<!DOCTYPE html><html>log in</html>")
    refusal(tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_file_is_named(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").touch()
    refusal(tmp_path / f"a{ending}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_header_that_is_cut_off_is_named(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a{ending}", counted(2, 3, 4))
    path.write_bytes(path.read_bytes()[:40])
    refusal(path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_voxels_that_are_cut_off_are_an_error(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a{ending}", counted(2, 3, 4))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read"):
        ItkFile(path).image()


@pytest.mark.parametrize(("ending", "other"), [(".mhd", ".raw"), (".nhdr", ".raw"), (".hdr", ".img")])
def test_a_header_without_its_voxels_is_an_error(ending: str, other: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a{ending}", counted(2, 3, 4))
    path.with_suffix(other).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        ItkFile(path).image()
