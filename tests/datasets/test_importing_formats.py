"""Datasets of images that nnU-Net does not read as they lie: two files an image, NIfTI-2, further axes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunetv2_ext.datasets.importing import ImportOptions, import_dataset
from nnunetv2_ext.datasets.sources.csv_table import Columns, read_csv_table
from nnunetv2_ext.errors import UserError
from tests.commands import nnunet_environment
from tests.datasets.conftest import OBLIQUE, ORIGIN, SPACING, counted, save

Import = Callable[..., Path]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Import images, named by their paths, with a label map each on the same grid; returns the dataset's folder."""
    for variable, value in nnunet_environment(tmp_path).items():
        if variable.startswith("nnUNet_"):
            monkeypatch.setenv(variable, value)

    def run(*images: Path, label: Path, spacing: tuple[float, float, float] | None = None) -> Path:
        table = tmp_path / "table.csv"
        table.write_text("image,label\n" + "".join(f"{image},{label}\n" for image in images))
        collection = read_csv_table(table, Columns(), spacing=spacing)
        import_dataset("csv", str(table), collection, ImportOptions(123, "Cells", spacing=spacing))
        return tmp_path / "nnUNet_raw" / "Dataset123_Cells"

    return run


def nifti(path: Path, kind: Any = nib.Nifti1Image, **fields: Any) -> Path:
    """4 x 3 x 2 voxels, turned and shifted."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(OBLIQUE).reshape(3, 3) * SPACING
    affine[:3, 3] = ORIGIN
    image = kind(counted(4, 3, 2), affine)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def label_of(image: Path, path: Path) -> Path:
    """On its grid, as SimpleITK reads it."""
    grid = sitk.ReadImage(str(image))
    label = sitk.GetImageFromArray((sitk.GetArrayFromImage(grid) % 2).astype(np.uint8))
    label.CopyInformation(grid)
    sitk.WriteImage(label, str(path))
    return path


def read_by_nnunet(dataset: Path, case: str) -> tuple[np.ndarray, dict[str, Any]]:
    """With the reader that stock nnU-Net chooses."""
    description = json.loads((dataset / "dataset.json").read_text())
    path = dataset / "imagesTr" / f"{case}_0000{description['file_ending']}"
    reader = determine_reader_writer_from_dataset_json(description, str(path), verbose=False)()
    return reader.read_images([str(path)])


def test_nifti_2_becomes_nifti_1_with_the_voxels_and_the_affine_that_nibabel_reads(
    imported: Import, tmp_path: Path
) -> None:
    first = nifti(tmp_path / "a.nii.gz")
    second = nifti(tmp_path / "b.nii.gz", nib.Nifti2Image)
    dataset = imported(first, second, label=label_of(first, tmp_path / "label.nii.gz"))
    made = nib.load(dataset / "imagesTr" / "b_0000.nii.gz")
    assert isinstance(made, nib.Nifti1Image)
    np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(nib.load(second).dataobj))
    np.testing.assert_allclose(made.affine, nib.load(second).affine, atol=1e-5)
    for case in "ab":
        array, properties = read_by_nnunet(dataset, case)
        np.testing.assert_array_equal(array[0], counted(4, 3, 2).T)
        np.testing.assert_allclose(properties["spacing"], SPACING[::-1], rtol=1e-6)


def test_one_moment_more_than_three_axes_is_an_image_that_nnunet_reads(imported: Import, tmp_path: Path) -> None:
    for ending in (".nii", ".nii.gz"):
        path = tmp_path / f"a{ending}"
        nib.Nifti1Image(counted(4, 3, 2)[..., None], np.diag([*SPACING, 1])).to_filename(path)
        dataset = imported(path, label=label_of(path, tmp_path / "label.nii.gz"))
        array, properties = read_by_nnunet(dataset, "a")
        np.testing.assert_array_equal(array, counted(4, 3, 2).T[None])
        np.testing.assert_allclose(properties["spacing"], SPACING[::-1], rtol=1e-6)


@pytest.mark.parametrize(("ending", "voxels"), [(".mhd", ".raw"), (".nhdr", ".raw"), (".hdr", ".img")])
def test_other_voxels_beside_the_same_header_are_taken_over(
    ending: str, voxels: str, imported: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save(tmp_path / f"a{ending}", counted(2, 3, 4))
    label = label_of(image, tmp_path / "label.nii.gz")
    dataset = imported(image, label=label)
    entry = json.loads((dataset / "import_manifest.json").read_text())["cases"]["a"]["images"][0]
    both = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in (image, image.with_suffix(voxels)))
    assert entry["sha256"] == hashlib.sha256(both.encode()).hexdigest()
    imported(image, label=label)
    assert "nothing to do" in capsys.readouterr().out

    data = image.with_suffix(voxels)
    data.write_bytes((counted(2, 3, 4) + 5).tobytes())
    os.utime(data, ns=(1, 1))
    imported(image, label=label)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "imagesTr" / "a_0000.nii.gz"))), counted(2, 3, 4) + 5
    )


@pytest.mark.parametrize(("ending", "voxels"), [(".mhd", ".raw"), (".nhdr", ".raw"), (".hdr", ".img")])
def test_voxels_that_are_cut_off_stop_an_import_before_it_begins(
    ending: str, voxels: str, imported: Import, tmp_path: Path
) -> None:
    image = save(tmp_path / f"a{ending}", counted(2, 3, 4))
    label = label_of(image, tmp_path / "label.nii.gz")
    data = image.with_suffix(voxels)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=rf"/a\{voxels} is damaged: its end is missing: copy or download it again; nothing"
    ):
        imported(image, label=label)
    data.unlink()
    with pytest.raises(UserError, match=rf"there is no file .*a\{voxels}; nothing was imported"):
        imported(image, label=label)


def test_label_maps_in_two_files_are_checked_too(imported: Import, tmp_path: Path) -> None:
    image = save(tmp_path / "a.nii.gz", counted(2, 3, 4))
    label = save(tmp_path / "label.img", (counted(2, 3, 4) % 3).astype(np.uint8))
    label.write_bytes(label.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"label\.img is damaged: its end is missing"):
        imported(image, label=label)


@pytest.mark.parametrize("strange", [np.nan, -np.inf])
def test_numbers_that_are_none_are_not_converted_to_nifti_in_which_they_become_0(
    strange: float, imported: Import, tmp_path: Path
) -> None:
    array = np.ones((2, 3, 4), np.float32)
    array[0, 1, 2] = array[1, 0, 0] = strange
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "label.npy", (counted(2, 3, 4) % 2).astype(np.uint8))
    with pytest.raises(UserError, match=r"a could not be imported: 2 voxels of .*a\.npy are NaN or infinite"):
        imported(tmp_path / "a.npy", label=tmp_path / "label.npy", spacing=(3.0, 2.0, 1.0))


def test_a_spacing_that_is_not_used_is_said_in_a_line(
    imported: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save(tmp_path / "a.nii.gz", counted(2, 3, 4))
    np.save(tmp_path / "label.npy", (counted(2, 3, 4) % 2).astype(np.uint8))
    imported(image, label=tmp_path / "label.npy", spacing=(3.0, 2.0, 1.0))
    said = f"-spacing 3 2 1 is not used: the only image says its own (the first: 2 1.25 0.5, {image})"
    assert said in capsys.readouterr().out.splitlines()
