"""Folders of DICOM slices: pydicom's samples, as they are and changed, against pydicom's own reading of them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.datasets.volumes.dicom_folder import DicomFolder
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import OBLIQUE, voxels

pydicom = pytest.importorskip("pydicom")

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
CT = SAMPLES / "dicomdirtests" / "98892001" / "CT5N"
"""Five slices of 16 x 16 pixels, 2.5 mm apart."""

Edit = Callable[[Any, int], None]


def series(folder: Path, edit: Edit = lambda slice_, index: None) -> DicomFolder:
    """A copy of the CT; `edit` changes every slice, counted from the lowest."""
    folder.mkdir(parents=True, exist_ok=True)
    slices = [pydicom.dcmread(path) for path in CT.iterdir()]
    for index, slice_ in enumerate(sorted(slices, key=lambda s: float(s.ImagePositionPatient[2]))):
        edit(slice_, index)
        name = f"{(index * 3 + 2) % 5}.dcm"  # another order than that of the slices
        slice_.save_as(folder / name)
    return DicomFolder(folder)


def read_by_pydicom(folder: Path) -> tuple[np.ndarray, list[Any]]:
    """Voxels (z, y, x) in Hounsfield's units or what else the slopes say, and the slices along their normal."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    row, column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    slices.sort(key=lambda s: float(np.cross(row, column) @ np.array(s.ImagePositionPatient, float)))
    values = [s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices]
    return np.stack(values), slices


def refusal(folder: DicomFolder) -> str:
    with pytest.raises(UserError) as caught:
        folder.geometry()
    with pytest.raises(UserError) as again:
        folder.image()
    assert str(again.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(folder.path) in str(caught.value)
    return str(caught.value)


def test_voxels_are_those_that_pydicom_reads(tmp_path: Path) -> None:
    expected, _ = read_by_pydicom(CT)
    assert expected.min() < -800  # air
    assert len(np.unique(expected, axis=0)) == 5
    np.testing.assert_array_equal(voxels(DicomFolder(CT)), expected)
    np.testing.assert_array_equal(voxels(series(tmp_path)), expected)


def crop_turn_and_stretch(slice_: Any, index: int) -> None:
    """Fewer rows than columns, pixels higher than wide, slices along the third column of `OBLIQUE`."""
    pixels = slice_.pixel_array[:12]
    slice_.set_pixel_data(pixels, "MONOCHROME2", 16)
    slice_.PixelSpacing = [1.5, 0.75]
    cosines = np.array(OBLIQUE).reshape(3, 3)
    slice_.ImageOrientationPatient = [round(float(c), 9) for c in (*cosines[:, 0], *cosines[:, 1])]
    slice_.ImagePositionPatient = [round(float(p), 9) for p in np.array([10, -20, 30]) + 2.5 * index * cosines[:, 2]]


@pytest.mark.parametrize("edit", [lambda slice_, index: None, crop_turn_and_stretch], ids=["straight", "oblique"])
def test_voxels_lie_where_the_slices_say(edit: Edit, tmp_path: Path) -> None:
    folder = series(tmp_path / "a", edit)
    expected, slices = read_by_pydicom(folder.path)
    image, geometry = folder.image(), folder.geometry()
    np.testing.assert_array_equal(voxels(folder), expected)
    assert geometry.size == image.GetSize() == expected.shape[::-1]
    for found, said in (
        (image.GetSpacing(), geometry.spacing),
        (image.GetOrigin(), geometry.origin),
        (image.GetDirection(), geometry.direction),
    ):
        np.testing.assert_allclose(found, np.array(said), atol=1e-6)
    for z, y, x in ((0, 0, 0), (4, 11, 15), (2, 3, 7)):
        # DICOM PS3.3 C.7.6.2.1.1: the first spacing is that of the rows, the first cosines are along a row
        between_rows, between_columns = map(float, slices[z].PixelSpacing)
        along_row, along_column = np.array(slices[z].ImageOrientationPatient, float).reshape(2, 3)
        position = np.array(slices[z].ImagePositionPatient, float)
        place = position + along_row * between_columns * x + along_column * between_rows * y
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((x, y, z)), place, atol=1e-4)


def test_slices_may_be_upside_down(tmp_path: Path) -> None:
    def turn(slice_: Any, index: int) -> None:
        slice_.ImageOrientationPatient = [1, 0, 0, 0, -1, 0]

    folder = series(tmp_path / "a", turn)
    expected, slices = read_by_pydicom(folder.path)
    np.testing.assert_array_equal(voxels(folder), expected)
    assert folder.geometry().origin == pytest.approx([float(p) for p in slices[0].ImagePositionPatient])
    assert folder.geometry().direction == (1, 0, 0, 0, -1, 0, 0, 0, -1)


def test_the_distance_of_slices_is_that_of_their_places_not_their_thickness(tmp_path: Path) -> None:
    def thicken(slice_: Any, index: int) -> None:
        slice_.SliceThickness = 5
        slice_.SpacingBetweenSlices = 4

    folder = series(tmp_path / "a", thicken)
    assert folder.geometry().spacing == pytest.approx((0.488281, 0.488281, 2.5))
    assert folder.image().GetSpacing() == pytest.approx((0.488281, 0.488281, 2.5))


def test_slopes_that_are_no_whole_numbers_are_applied(tmp_path: Path) -> None:
    def scale(slice_: Any, index: int) -> None:
        slice_.RescaleSlope, slice_.RescaleIntercept = 1 + 0.25 * index, -10

    folder = series(tmp_path / "a", scale)
    expected, _ = read_by_pydicom(folder.path)
    np.testing.assert_allclose(voxels(folder), expected)


def test_one_slice_has_its_thickness(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "CT_small.dcm", tmp_path / "a.dcm")
    sample = pydicom.dcmread(SAMPLES / "CT_small.dcm")
    folder = DicomFolder(tmp_path)
    assert folder.geometry().size == (128, 128, 1)
    assert folder.geometry().spacing == pytest.approx((*map(float, sample.PixelSpacing), float(sample.SliceThickness)))
    np.testing.assert_array_equal(voxels(folder)[0], sample.pixel_array * sample.RescaleSlope + sample.RescaleIntercept)


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    folder = series(tmp_path)
    slices = set(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("left kidney")
    (tmp_path / "empty.dcm").touch()
    shutil.copy(SAMPLES / "rtplan.dcm", tmp_path / "plan.dcm")
    shutil.copy(SAMPLES / "dicomdirtests" / "DICOMDIR", tmp_path / "DICOMDIR")
    assert set(folder.files) == slices
    np.testing.assert_array_equal(voxels(folder), read_by_pydicom(CT)[0])


def test_nnunet_does_not_read_a_folder() -> None:
    assert DicomFolder(CT).ending is None


def test_two_series_are_named(tmp_path: Path) -> None:
    folder = series(tmp_path)
    shutil.copy(SAMPLES / "CT_small.dcm", tmp_path / "other.dcm")
    uids = {str(pydicom.dcmread(path).SeriesInstanceUID) for path in tmp_path.iterdir()}
    message = refusal(folder)
    assert "holds 2 DICOM series, where one is needed" in message
    assert all(uid in message for uid in uids)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_slice_is_noticed(missing: int, tmp_path: Path) -> None:
    folder = series(tmp_path)
    heights = {float(pydicom.dcmread(path).ImagePositionPatient[2]): path for path in tmp_path.iterdir()}
    heights[sorted(heights)[missing]].unlink()
    assert "the distance of its slices varies from 2.5 to 5 mm: is one missing?" in refusal(folder)


@pytest.mark.parametrize("length", [600, -100])
@pytest.mark.parametrize("which", [0, 2, 4])
def test_a_slice_that_is_cut_off_is_noticed_also_at_the_end(which: int, length: int, tmp_path: Path) -> None:
    folder = series(tmp_path)
    heights = {float(pydicom.dcmread(path).ImagePositionPatient[2]): path for path in tmp_path.iterdir()}
    path = heights[sorted(heights)[which]]
    path.write_bytes(path.read_bytes()[:length])
    said = "is one missing?" if which == 2 else f"{path} is a DICOM image that cannot be read: is its end missing?"
    assert said in refusal(folder)


def test_the_distance_of_slices_may_vary_a_little(tmp_path: Path) -> None:
    def shift(slice_: Any, index: int) -> None:
        x, y, z = map(float, slice_.ImagePositionPatient)
        slice_.ImagePositionPatient = [x, y, z + 0.02 * (index % 2)]

    assert series(tmp_path, shift).image().GetSpacing()[2] == pytest.approx(2.5)


def test_slices_may_drift_by_less_than_a_pixel_and_lie_on_the_grid_that_is_said(tmp_path: Path) -> None:
    def drift(slice_: Any, index: int) -> None:
        x, y, z = map(float, slice_.ImagePositionPatient)
        slice_.ImagePositionPatient = [x, y + 0.1 * index, z]

    folder = series(tmp_path, drift)
    assert folder.geometry().spacing == pytest.approx((0.488281, 0.488281, 2.5))
    assert folder.image().GetSpacing() == folder.geometry().spacing
    np.testing.assert_array_equal(voxels(folder), read_by_pydicom(CT)[0])


def test_a_slice_twice_is_an_error(tmp_path: Path) -> None:
    folder = series(tmp_path)
    shutil.copy(tmp_path / "1.dcm", tmp_path / "copy.dcm")
    assert "has several slices at the same place" in refusal(folder)


def test_all_slices_at_one_place_are_an_error(tmp_path: Path) -> None:
    def move(slice_: Any, index: int) -> None:
        slice_.ImagePositionPatient = [1, 2, 3]
        slice_.SOPInstanceUID = f"{slice_.SOPInstanceUID}.{index}"

    assert "has several slices at the same place" in refusal(series(tmp_path, move))


def test_a_tilted_scan_is_an_error(tmp_path: Path) -> None:
    def tilt(slice_: Any, index: int) -> None:
        x, y, z = map(float, slice_.ImagePositionPatient)
        slice_.ImagePositionPatient = [x, y + 0.4 * index, z]

    assert "its slices do not lie above each other" in refusal(series(tmp_path, tilt))


@pytest.mark.parametrize("folder", ["98892001/CT2N", "98892003/MR700"])
def test_slices_of_several_directions_are_no_scan(folder: str) -> None:
    message = refusal(DicomFolder(SAMPLES / "dicomdirtests" / folder))
    assert "differ in direction" in message


@pytest.mark.parametrize(
    ("keyword", "value", "what"), [("PixelSpacing", [0.5, 0.488281], "spacing"), ("Rows", 8, "size")]
)
def test_slices_of_several_sizes_are_no_scan(keyword: str, value: Any, what: str, tmp_path: Path) -> None:
    def change_one(slice_: Any, index: int) -> None:
        if index == 3:
            setattr(slice_, keyword, value)
            slice_.PixelData = slice_.PixelData[: slice_.Rows * slice_.Columns * 2]

    assert f"differ in {what}" in refusal(series(tmp_path, change_one))


def test_a_file_of_several_frames_is_an_error(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "rtdose.dcm", tmp_path)
    assert "rtdose.dcm is a multi-frame DICOM file: convert it to NIfTI first" in refusal(DicomFolder(tmp_path))


def test_an_image_without_a_place_is_an_error(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "JPEG2000.dcm", tmp_path)
    assert "does not say where its slice lies (Image Position Patient)" in refusal(DicomFolder(tmp_path))


def test_colours_are_an_error(tmp_path: Path) -> None:
    def paint(slice_: Any, index: int) -> None:
        slice_.set_pixel_data(np.zeros((16, 16, 3), np.uint8), "RGB", 8)

    assert "holds colour images, where one value per voxel is needed" in refusal(series(tmp_path, paint))


def test_a_folder_without_dicom_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("left kidney")
    assert refusal(DicomFolder(tmp_path)) == f"{tmp_path} holds no DICOM images"


def test_a_folder_of_folders_is_no_scan(capfd: pytest.CaptureFixture[str]) -> None:
    message = refusal(DicomFolder(SAMPLES / "dicomdirtests"))  # with a DICOMDIR
    assert "holds no DICOM images; those of the folders in it (77654033, 98892001, " in message
    assert capfd.readouterr().err == ""


def test_a_file_of_many_frames_that_have_their_places_each_is_said_to_be_one(tmp_path: Path) -> None:
    slice_ = pydicom.dcmread(SAMPLES / "CT_small.dcm")
    slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    slice_.NumberOfFrames = 2
    slice_.PixelData = 2 * slice_.PixelData
    del slice_.ImagePositionPatient
    slice_.save_as(tmp_path / "a.dcm")
    assert "a.dcm is a multi-frame DICOM file: convert it to NIfTI first" in refusal(DicomFolder(tmp_path))


def test_a_folder_is_looked_through_once_and_travels_to_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = series(tmp_path)
    looked_at = []
    look = sitk.ImageSeriesReader.GetGDCMSeriesIDs
    monkeypatch.setattr(sitk.ImageSeriesReader, "GetGDCMSeriesIDs", lambda path: looked_at.append(path) or look(path))
    geometry = folder.geometry()
    folder.image()
    assert (len(folder.files), looked_at) == (5, [str(tmp_path)])
    copy = pickle.loads(pickle.dumps(folder))
    assert (copy, repr(copy), copy.geometry()) == (DicomFolder(tmp_path), repr(DicomFolder(tmp_path)), geometry)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    assert refusal(DicomFolder(tmp_path / "a")) == f"there is no folder {tmp_path / 'a'}"
    with pytest.raises(UserError, match="there is no folder"):
        _ = DicomFolder(tmp_path / "a").files
