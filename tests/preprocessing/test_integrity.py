"""Files that hold what they should pass, in every type; damaged ones, and numbers that are none, do not."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing import integrity
from nnunetv2_ext.preprocessing.integrity import check_as_read, check_files

TYPES = ("uint8", "int16", "int32", "float32", "float64")
FORMS = {".nii": nib.Nifti1Image, ".nii.gz": nib.Nifti1Image, "2.nii.gz": nib.Nifti2Image}


def image(folder: Path, dtype: str = "float32", form: str = ".nii.gz", slope: float = 1.0) -> Path:
    voxels = np.random.default_rng(4).integers(0, 200, (7, 6, 5)).astype(dtype)
    path = folder / f"scan{form}"
    made = FORMS[form](voxels, np.eye(4), dtype=voxels.dtype)
    made.header.set_slope_inter(slope, 0)
    made.to_filename(path)
    return path


def as_read(path: Path) -> np.ndarray:
    """As nnU-Net's usual reader gives it, or nibabel what that one does not read (NIfTI-2)."""
    if path.name.endswith("2.nii.gz"):
        with suppress(Exception):  # damaged
            return nib.load(path).get_fdata(dtype=np.float32).transpose(2, 1, 0)
        return np.zeros((5, 6, 7), np.float32)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)


def check(path: Path) -> None:
    check_as_read([path], [as_read(path)])


@pytest.mark.parametrize("slope", [1.0, 0.37])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_whole_file_passes(dtype: str, form: str, slope: float, tmp_path: Path) -> None:
    path = image(tmp_path, dtype, form, slope)
    check_files([path])
    check(path)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_was_read_proves_a_compressed_file_without_decompressing_it_again(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image(tmp_path, dtype)
    looked_at: list[Path] = []
    monkeypatch.setattr(integrity, "check_files", looked_at.extend)
    check(path)
    assert looked_at == []
    voxels = as_read(path)
    voxels[1, 2, 3] += 1
    check_as_read([path], [voxels])
    assert looked_at == [path]


def test_a_file_that_is_read_in_another_order_is_looked_at_and_passes(tmp_path: Path) -> None:
    path = image(tmp_path)
    check_as_read([path], [as_read(path).T])


def test_a_file_with_several_channels_is_looked_at(tmp_path: Path) -> None:
    path = image(tmp_path)
    check_as_read([path], [as_read(path), as_read(path)])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        check_as_read([path], [as_read(path), as_read(path)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_file_without_its_end_is_damaged(dtype: str, form: str, tmp_path: Path) -> None:
    path = image(tmp_path, dtype, form)
    path.write_bytes(path.read_bytes()[:-25])
    with pytest.raises(UserError, match=r"^scan.* is damaged: "):
        check(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_that_are_none_are_counted(form: str, value: float, tmp_path: Path) -> None:
    voxels = np.ones((7, 6, 5), np.float32)
    voxels[1, 2, 3] = voxels[4, 5, 0] = value
    path = tmp_path / f"scan{form}"
    FORMS[form](voxels, np.eye(4)).to_filename(path)
    with pytest.raises(UserError, match=r"^2 voxels of scan.* are NaN or infinite$"):
        check(path)


def test_a_header_that_says_that_voxels_begin_at_0_is_not_taken_at_its_word(tmp_path: Path) -> None:
    path = image(tmp_path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[108:112] = bytes(4)  # vox_offset
    content[40:42] = np.int16(3).tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    check_files([path])


def test_other_formats_are_left_to_their_readers(tmp_path: Path) -> None:
    path = tmp_path / "scan.nrrd"
    path.write_bytes(b"no scan at all")
    check_files([path])


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "scan.nrrd").touch()
    with pytest.raises(UserError, match=r"^scan\.nrrd is empty$"):
        check_files([tmp_path / "scan.nrrd"])


@pytest.mark.parametrize("ending", [".gipl", ".mha"])
def test_damage_that_simpleitk_reads_without_a_word_is_an_error(ending: str, tmp_path: Path) -> None:
    """GIPL that is cut off, and compressed MetaImage with a bit turned."""
    path = tmp_path / f"scan{ending}"
    voxels = np.random.default_rng(4).integers(1, 200, (7, 6, 5)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), True)
    check(path)
    content = bytearray(path.read_bytes())
    if ending == ".gipl":
        del content[-20:]
    else:
        content[-100] ^= 1
    path.write_bytes(content)
    assert not np.array_equal(as_read(path), voxels)
    for look in (check, lambda path: check_files([path])):
        with pytest.raises(UserError, match=rf"^scan\{ending} is damaged: "):
            look(path)
