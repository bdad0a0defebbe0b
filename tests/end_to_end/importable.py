"""A small source of every kind that `nnUNetv2_import_dataset` reads, built as its users have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

SIZE = 32


@dataclass(frozen=True)
class Source:
    """What a user has, and how the command is told about it.

    Attributes:
        kind: the command's first argument.
        path: its second.
        options: what else the kind needs.
    """

    kind: str
    path: Path
    options: tuple[object, ...] = ()

    def arguments(self, dataset_id: int, name: str) -> list[object]:
        return [self.kind, self.path, "-d", dataset_id, "-name", name, *self.options]


def scan(seed: int, shape: tuple[int, int, int] = (SIZE,) * 3, num_labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """An image (16 bits) with so many brighter boxes in it, and the label map of these (8 bits)."""
    rng = np.random.default_rng([seed, *shape])
    label = np.zeros(shape, np.uint8)
    for value in range(1, num_labels + 1):
        low = [rng.integers(0, n // 2) for n in shape]
        label[tuple(slice(a, a + n // 3) for a, n in zip(low, shape, strict=True))] = value
    label.flat[: num_labels + 1] = range(num_labels + 1)
    return (500 * label.astype(np.int64) + rng.integers(0, 400, shape)).astype(np.uint16), label


def save(array: np.ndarray, path: Path, spacing: tuple[float, float, float] = (1.0, 1.0, 1.25)) -> Path:
    """A file that SimpleITK writes; spacing (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((3, -4.5, 60))
    sitk.WriteImage(image, str(path), True)
    return path


def zarr_csv(root: Path, *, num_train: int = 3, size: int = SIZE, version: int = 3) -> Source:
    """Crops of one array of two channels, one behind the other; the last two are for validation and to test."""
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    parts = {"train": list(range(7, 7 + num_train)), "val": [1], "test": [2]}
    num_crops = num_train + 2
    shape = (2, size * num_crops, size + 3, size + 5)
    array = zarr.create_array(
        str(root / "cells.zarr"), shape=shape, chunks=(1, size // 2, size, size), dtype="uint16", zarr_format=version
    )
    crop = 0
    for part, identifiers in parts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        lines = ["ID,corner,source,ref_channel,channel,crop_size"]
        for identifier in identifiers:
            corner = (size * crop, 2, 3)
            image, label = scan(crop, (size,) * 3)
            place = tuple(slice(a, a + size) for a in corner)
            array[(1, *place)] = image
            array[(0, *place)] = image[::-1]
            np.save(root / part / f"{identifier}_mask.npy", label)
            lines.append(f'{identifier},"{corner}",cells.zarr,0,1,"({size}, {size}, {size})"')
            crop += 1
        (root / f"{part}.csv").write_text("\n".join(lines))
    return Source("zarr-csv", root, ("-spacing", 2, 1, 1))


PATTERNS = """\
main_path: .
train_ratio: .7
datasets:
  clinic:
    path: clinic
    ca_type: "1/2/3"
    patterns:
      left:
        mri: "**/t2w_left.nii.gz"
        label: "t2w_left_seg.nii.gz"
      right:
        mri: "**/t2w_right.nii.gz"
        label: "t2w_right_seg.nii.gz"
    labels: {1: 1, 2: 2, 7: 0}
    labels_names: {1: DG, 2: CA1}
"""


def patterns(root: Path) -> Source:
    """Three subjects with a left and a right image each; the value 7 in the label maps is left out."""
    for subject in range(3):
        for side in ("left", "right"):
            image, label = scan(10 * subject + len(side))
            label[-4:, -4:, -4:] = 7
            folder = root / "clinic" / f"sub{subject:02d}"
            save(image, folder / f"t2w_{side}.nii.gz")
            save(label, folder / f"t2w_{side}_seg.nii.gz")
    (root / "data.yaml").write_text(PATTERNS)
    return Source("patterns", root / "data.yaml")


def dicom_series(folder: Path, num_slices: int = 20) -> Path:
    """Slices of 64 x 64 made of pydicom's MR sample, 3 mm apart, each with its rows moved on by its number."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    folder.mkdir(parents=True)
    sample = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    pixels = sample.pixel_array
    row, column = np.array(sample.ImageOrientationPatient, float).reshape(2, 3)
    start = np.array(sample.ImagePositionPatient, float)
    for number in range(num_slices):
        sample.ImagePositionPatient = [round(float(p), 6) for p in start + 3 * number * np.cross(row, column)]
        sample.InstanceNumber = number + 1
        sample.SOPInstanceUID = sample.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        sample.PixelData = np.roll(pixels, number, axis=0).tobytes()
        sample.save_as(folder / f"{number:03d}.dcm")
    return folder


def csv(root: Path) -> Source:
    """A DICOM series, NRRD and NIfTI; label maps in NPY and NIfTI, numbered with a gap; a case to test without one."""
    shape = (20, 64, 64)
    dicom_series(root / "scans" / "p1")
    np.save(root / "p1.npy", scan(1, shape)[1] * 3)
    for name, ending in (("p2", ".nrrd"), ("p3", ".nii.gz"), ("p4", ".nii.gz"), ("t1", ".mha")):
        image, label = scan(len(name) + len(ending), shape)
        save(image, root / "scans" / f"{name}{ending}", (1, 1, 3))
        save(label * 3, root / f"{name}.nii.gz", (1, 1, 3))
    lines = ["scan;mask;part;patient"]
    lines += ["scans/p1;p1.npy;train;A", "scans/p2.nrrd;p2.nii.gz;train;B", "scans/p3.nii.gz;p3.nii.gz;train;B"]
    lines += ["scans/p4.nii.gz;p4.nii.gz;val;C", "scans/t1.mha;;test;D"]
    (root / "table.csv").write_text("\n".join(lines))
    columns = ("-images", "scan", "-label", "mask", "-split", "part", "-subject", "patient")
    return Source("csv", root / "table.csv", (*columns, "-labels", "3=liver", "6=cyst"))


def bids(root: Path) -> Source:
    """Three subjects, one in two sessions, with T1w and T2w; label maps and their names in derivatives."""
    pytest.importorskip("bids")
    (root / "derivatives" / "manual").mkdir(parents=True)
    for folder in (root, root / "derivatives" / "manual"):
        (folder / "dataset_description.json").write_text(json.dumps({"Name": "small", "BIDSVersion": "1.8.0"}))
    for number, (subject, session) in enumerate((("01", "a"), ("01", "b"), ("02", "a"), ("03", "a"))):
        image, label = scan(number)
        folder = Path(f"sub-{subject}", f"ses-{session}", "anat")
        stem = f"sub-{subject}_ses-{session}"
        save(image, root / folder / f"{stem}_T1w.nii.gz")
        save(image[::-1], root / folder / f"{stem}_T2w.nii.gz")
        save(label, root / "derivatives" / "manual" / folder / f"{stem}_dseg.nii.gz")
    (root / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n0\tnothing\n1\tcaudate\n2\tputamen\n")
    return Source("bids", root, ("-suffix", "T1w", "T2w"))


def tiff(root: Path) -> Source:
    """Stacks of pages without a spacing of their own."""
    tifffile = pytest.importorskip("tifffile")
    root.mkdir(parents=True)
    lines = ["image,label"]
    for number in range(5):
        image, label = scan(number)
        tifffile.imwrite(root / f"s{number}.tif", image, photometric="minisblack")
        tifffile.imwrite(root / f"s{number}_seg.tif", label * 2, photometric="minisblack")
        lines.append(f"s{number}.tif,s{number}_seg.tif")
    (root / "table.csv").write_text("\n".join(lines))
    return Source("csv", root / "table.csv", ("-spacing", 2, 1, 1))


KINDS = {"zarr-csv": zarr_csv, "patterns": patterns, "csv": csv, "bids": bids, "tiff": tiff}
