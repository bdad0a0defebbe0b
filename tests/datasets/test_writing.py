"""One case becomes files: copied or linked where nnU-Net reads them as they lie, else converted without loss."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_ext.datasets.checking import geometry_of
from nnunetv2_ext.datasets.collection import TEST, TRAIN, Case
from nnunetv2_ext.datasets.volumes.array_files import NpyFile, TiffFile
from nnunetv2_ext.datasets.volumes.dicom_folder import DicomFolder
from nnunetv2_ext.datasets.volumes.itk_file import ItkFile
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.datasets.volumes.volume import Geometry, Volume
from nnunetv2_ext.datasets.volumes.zarr_crop import ZarrCrop
from nnunetv2_ext.datasets.writing import Transfer, WriteJob, Written, failed, write_case
from tests.disks import fill, mounted
from tests.end_to_end.importable import dicom_series

SHAPE = (5, 6, 7)
SPACING = (2.5, 0.75, 0.5)
AS_THEY_LIE = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".tif", ".tiff")
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "f2", "f4", "f8")


def checked(
    folder: Path,
    images: Volume | tuple[Volume, ...],
    label: Volume | None = None,
    *,
    ending: str = ".nii.gz",
    numbers: Mapping[int, int] | None = None,
    transfer: Transfer = Transfer.COPY,
    part: str = TRAIN,
) -> WriteJob:
    """The case `a`, which is to be written into a dataset's folder, as the check leaves it."""
    images = images if isinstance(images, tuple) else (images,)
    case = Case("a", "row", "subject", part, images, label)
    return WriteJob(case, folder, ending, numbers or {}, transfer, geometries(case))


def write(folder: Path, *volumes: Any, **how: Any) -> Written:
    return write_case(checked(folder, *volumes, **how))


def geometries(case: Case) -> tuple[Geometry, ...]:
    """As the check before finds them."""
    return tuple(map(geometry_of, (*case.images, *([case.label] if case.label else []))))


def voxels(dtype: str = "int16", shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Random values with the smallest and the largest of the type among them."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        array = rng.normal(size=shape).astype(kind)
        limits = np.finfo(kind)
        array.flat[:3] = limits.max, limits.min, limits.tiny
        return array
    if kind.kind == "b":
        return rng.random(shape) > 0.5
    limits = np.iinfo(kind)
    array = rng.integers(limits.min, limits.max, shape, kind, endpoint=True)
    array.flat[:2] = limits.min, limits.max
    return array


def oblique(array: np.ndarray, *, flipped: bool = False) -> sitk.Image:
    """An image that lies askew in the world."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((-12.5, 33.25, 101.0625))
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.3, -0.2, 0.9)
    direction = np.array(turn.GetMatrix()).reshape(3, 3)
    image.SetDirection((direction * [1, 1, -1 if flipped else 1]).ravel().tolist())
    return image


def stored(image: sitk.Image, path: Path) -> ItkFile:
    sitk.WriteImage(image, str(path))
    return ItkFile(path)


def as_npy(array: np.ndarray, path: Path, spacing: tuple[float, float, float] | None = SPACING) -> NpyFile:
    np.save(path, array)
    return NpyFile(path, spacing)


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def assert_same_place(image: sitk.Image, other: sitk.Image) -> None:
    """First and last voxel lie where they lay, to a thousandth of a voxel."""
    assert image.GetSize() == other.GetSize()
    np.testing.assert_allclose(image.GetSpacing(), other.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), other.GetDirection(), atol=1e-6)
    for corner in ((0, 0, 0), [n - 1 for n in image.GetSize()]):
        points = [i.TransformIndexToPhysicalPoint(corner) for i in (image, other)]
        np.testing.assert_allclose(*points, atol=1e-3 * min(SPACING))


def store_any(ending: str, array: np.ndarray, path: Path) -> Volume:
    if ending in (".tif", ".tiff"):
        tifffile.imwrite(path, array)
        return TiffFile(path, SPACING)
    return stored(oblique(array) if ending != ".gipl" else sitk.GetImageFromArray(array), path)


@pytest.mark.parametrize("ending", AS_THEY_LIE)
def test_what_nnunet_reads_is_copied_byte_for_byte_and_its_hash_is_noted(ending: str, tmp_path: Path) -> None:
    image = store_any(ending, voxels(), tmp_path / f"image{ending}")
    label = store_any(ending, voxels("bool").astype(np.uint8), tmp_path / f"label{ending}")
    entry = write(tmp_path / "out", image, label, ending=ending, numbers={0: 0, 1: 1}).entry
    assert entry is not None
    for source, noted, target in (
        (tmp_path / f"image{ending}", entry["images"][0], f"imagesTr/a_0000{ending}"),
        (tmp_path / f"label{ending}", entry["label"], f"labelsTr/a{ending}"),
    ):
        content = source.read_bytes()
        assert (tmp_path / "out" / target).read_bytes() == content
        assert not (tmp_path / "out" / target).is_symlink()
        assert (noted["file"], noted["how"], noted["source"]) == (target, "copied", str(source))
        assert (noted["sha256"], noted["size"]) == (sha256(content), len(content))


def test_a_file_larger_than_what_is_read_at_once_is_copied_whole(tmp_path: Path) -> None:
    image = stored(sitk.GetImageFromArray(voxels("int8", (17, 1024, 1024))), tmp_path / "image.nii")
    entry = write(tmp_path / "out", image, ending=".nii").entry
    assert entry is not None
    copy = (tmp_path / "out" / "imagesTr" / "a_0000.nii").read_bytes()
    assert copy == image.path.read_bytes()
    assert entry["images"][0]["sha256"] == sha256(copy)


def test_a_link_leads_to_the_file_as_it_lies(tmp_path: Path) -> None:
    image = stored(oblique(voxels()), tmp_path / "image.nii.gz")
    label = stored(oblique(voxels("bool").astype(np.uint8)), tmp_path / "label.nii.gz")
    entry = write(tmp_path / "out", image, label, numbers={0: 0, 1: 1}, transfer=Transfer.SYMLINK).entry
    assert entry is not None
    for source, noted in ((image.path, entry["images"][0]), (label.path, entry["label"])):
        link = tmp_path / "out" / noted["file"]
        assert link.readlink() == source
        assert (noted["how"], noted["sha256"]) == ("linked", sha256(source.read_bytes()))


@pytest.mark.parametrize("transfer", Transfer)
def test_what_takes_a_links_place_leaves_the_file_it_led_to_alone(transfer: Transfer, tmp_path: Path) -> None:
    image = stored(oblique(voxels()), tmp_path / "image.nii.gz")
    label = stored(oblique(voxels("bool").astype(np.uint8)), tmp_path / "label.nii.gz")
    before = {path: (path.read_bytes(), path.lstat().st_mtime_ns) for path in (image.path, label.path)}
    write(tmp_path / "out", image, label, numbers={0: 0, 1: 1}, transfer=Transfer.SYMLINK)
    assert write(tmp_path / "out", image, label, numbers={0: 0, 1: 2}, transfer=transfer).entry
    assert {path: (path.read_bytes(), path.lstat().st_mtime_ns) for path in before} == before
    assert (tmp_path / "out" / "imagesTr" / "a_0000.nii.gz").is_symlink() == (transfer is Transfer.SYMLINK)
    np.testing.assert_array_equal(read(tmp_path / "out" / "labelsTr" / "a.nii.gz"), 2 * read(label.path))


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversion_keeps_every_value_and_the_type(dtype: str, tmp_path: Path) -> None:
    array = voxels(dtype)
    entry = write(tmp_path / "out", as_npy(array, tmp_path / "image.npy")).entry
    assert entry is not None
    assert entry["images"][0]["how"] == "converted"
    written = nib.load(tmp_path / "out" / "imagesTr" / "a_0000.nii.gz")
    expected = {"bool": np.uint8, "f2": np.float32}.get(dtype, np.dtype(dtype))
    assert written.get_data_dtype() == expected
    assert np.asarray(written.dataobj).dtype == expected
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, array)
    np.testing.assert_array_equal(read(tmp_path / "out" / "imagesTr" / "a_0000.nii.gz"), array)


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">u8"])
def test_bytes_in_the_other_order_mean_the_same_values(dtype: str, tmp_path: Path) -> None:
    array = voxels(dtype[1:]).astype(dtype)
    assert write(tmp_path / "out", as_npy(array, tmp_path / "image.npy")).entry
    np.testing.assert_array_equal(read(tmp_path / "out" / "imagesTr" / "a_0000.nii.gz"), array)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nhdr", ".nii"])
def test_conversion_keeps_origin_spacing_and_direction(ending: str, flipped: bool, tmp_path: Path) -> None:
    image = oblique(voxels("float32"), flipped=flipped)
    assert write(tmp_path / "out", stored(image, tmp_path / f"image{ending}")).entry
    written = sitk.ReadImage(str(tmp_path / "out" / "imagesTr" / "a_0000.nii.gz"))
    assert_same_place(written, image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(image))


def test_values_that_a_file_scales_become_what_they_mean(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1, 2, 3, 1]))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "image.nii")
    assert write(tmp_path / "out", ItkFile(tmp_path / "image.nii")).entry
    expected = nib.load(tmp_path / "image.nii").get_fdata()
    assert expected.max() < 24  # scaled at all
    np.testing.assert_allclose(read(tmp_path / "out" / "imagesTr" / "a_0000.nii.gz").T, expected)


def test_an_array_without_geometry_takes_that_of_the_other_channel(tmp_path: Path) -> None:
    first = oblique(voxels())
    second = as_npy(voxels(seed=1), tmp_path / "second.npy", spacing=None)
    mask = as_npy(voxels("bool"), tmp_path / "mask.npy", spacing=None)
    assert write(tmp_path / "out", (stored(first, tmp_path / "first.nrrd"), second), mask, numbers={0: 0, 1: 1}).entry
    for name in ("imagesTr/a_0000", "imagesTr/a_0001", "labelsTr/a"):
        assert_same_place(sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz")), first)


def test_channels_keep_their_order(tmp_path: Path) -> None:
    channels = tuple(as_npy(np.full(SHAPE, i, np.uint8), tmp_path / f"{9 - i}.npy") for i in range(3))
    assert write(tmp_path / "out", channels).entry
    assert [read(tmp_path / "out" / "imagesTr" / f"a_000{i}.nii.gz").max() for i in range(3)] == [0, 1, 2]


def test_a_test_case_lies_with_the_test_cases(tmp_path: Path) -> None:
    image, mask = as_npy(voxels(), tmp_path / "image.npy"), as_npy(voxels("bool"), tmp_path / "mask.npy")
    assert write(tmp_path / "out", image, mask, numbers={0: 0, 1: 1}, part=TEST).entry
    assert files(tmp_path / "out") == ["imagesTs/a_0000.nii.gz", "labelsTs/a.nii.gz"]


@pytest.mark.parametrize(
    ("numbers", "dtype", "written"),
    [
        ({0: 0, 3: 1, 7: 2}, "uint8", "uint8"),
        ({0: 0, 2: 1, 1: 2}, "int16", "uint8"),
        ({0: 0, 5: 0, 9: 1}, "float64", "uint8"),
        ({0: 0, 40000: 1}, "int64", "uint8"),
        ({3: 1, 4: 2}, "uint32", "uint8"),
        ({0: 0, 65535: 300}, "float32", "uint16"),
    ],
)
def test_labels_become_the_numbers_of_their_classes(
    numbers: dict[int, int], dtype: str, written: str, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).choice(list(numbers), SHAPE)
    values.flat[: len(numbers)] = list(numbers)
    image = stored(oblique(voxels()), tmp_path / "image.nii.gz")
    label = stored(oblique(values.astype(dtype)), tmp_path / "label.nii.gz")
    entry = write(tmp_path / "out", image, label, numbers=numbers).entry
    assert entry is not None
    assert entry["label"]["how"] == "converted"
    made = sitk.ReadImage(str(tmp_path / "out" / "labelsTr" / "a.nii.gz"))
    assert_same_place(made, oblique(values))
    found = sitk.GetArrayFromImage(made)
    assert found.dtype == written
    np.testing.assert_array_equal(found, np.vectorize(numbers.__getitem__)(values))


@pytest.mark.parametrize("ending", [e for e in AS_THEY_LIE if "tif" not in e])
def test_renumbered_labels_have_the_ending_of_the_images(ending: str, tmp_path: Path) -> None:
    values = 4 * voxels("bool").astype(np.int16)
    image, label = (store_any(ending, array, tmp_path / f"{i}{ending}") for i, array in enumerate((voxels(), values)))
    entry = write(tmp_path / "out", image, label, ending=ending, numbers={0: 0, 4: 1}).entry
    assert entry is not None
    assert entry["label"]["how"] == "converted"
    np.testing.assert_array_equal(read(tmp_path / "out" / "labelsTr" / f"a{ending}"), values // 4)
    assert_same_place(
        *(sitk.ReadImage(str(tmp_path / "out" / f"{n}{ending}")) for n in ("imagesTr/a_0000", "labelsTr/a"))
    )


def test_a_label_map_on_another_grid_is_put_onto_its_images_as_simpleitk_does(tmp_path: Path) -> None:
    image = oblique(voxels())
    values = np.random.default_rng(2).choice([0, 2, 5], (11, 9, 8)).astype(np.int16)
    label = sitk.GetImageFromArray(values)
    label.SetSpacing((0.6, 0.7, 1.1))
    label.SetOrigin(image.TransformContinuousIndexToPhysicalPoint((-1.3, 0.4, -0.2)))
    label.SetDirection(image.GetDirection())
    made = write(
        tmp_path / "out", stored(image, tmp_path / "image.nii.gz"), stored(label, tmp_path / "label.nii.gz"),
        numbers={0: 0, 2: 1, 5: 2},
    )  # fmt: skip
    assert made.entry, made.problem
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(sitk.ReadImage(str(tmp_path / "image.nii.gz")))
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    expected = sitk.GetArrayFromImage(resampler.Execute(sitk.ReadImage(str(tmp_path / "label.nii.gz"))))
    assert len(np.unique(expected)) == 3
    found = sitk.ReadImage(str(tmp_path / "out" / "labelsTr" / "a.nii.gz"))
    assert_same_place(found, image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), np.select([expected == 2, expected == 5], [1, 2]))


def test_a_label_map_of_half_the_resolution_is_repeated_and_background_is_around_it(tmp_path: Path) -> None:
    coarse = np.random.default_rng(3).integers(1, 3, (3, 4, 2)).astype(np.uint8)
    label = sitk.GetImageFromArray(coarse)
    label.SetSpacing((2, 2, 2))
    label.SetOrigin((0.5, 0.5, 0.5))
    image = stored(sitk.GetImageFromArray(voxels(shape=(8, 10, 6))), tmp_path / "image.nii.gz")
    assert write(tmp_path / "out", image, stored(label, tmp_path / "l.nii.gz"), numbers={1: 1, 2: 2}).entry
    expected = np.zeros((8, 10, 6))
    expected[:6, :8, :4] = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(read(tmp_path / "out" / "labelsTr" / "a.nii.gz"), expected)


@pytest.mark.parametrize("ending", [".tif", ".tiff"])
@pytest.mark.parametrize("numbers", [{0: 0, 1: 1}, {0: 0, 1: 3}])
def test_nnunet_reads_the_spacing_of_tiff_from_the_files_beside_it(
    ending: str, numbers: dict[int, int], tmp_path: Path
) -> None:
    images = tuple(store_any(ending, voxels(seed=i), tmp_path / f"image{i}{ending}") for i in range(2))
    values = voxels("bool").astype(np.uint8)
    label = store_any(ending, values, tmp_path / f"label{ending}")
    for part, tail in ((TRAIN, "Tr"), (TEST, "Ts")):
        assert write(tmp_path / "out", images, label, ending=ending, numbers=numbers, part=part).entry
        names = [str(tmp_path / "out" / f"images{tail}" / f"a_000{i}{ending}") for i in range(2)]
        found, properties = Tiff3DIO().read_images(names)
        seg, properties_of_seg = Tiff3DIO().read_seg(str(tmp_path / "out" / f"labels{tail}" / f"a{ending}"))
        assert tuple(properties["spacing"]) == tuple(properties_of_seg["spacing"]) == SPACING
        np.testing.assert_array_equal(found, np.stack([voxels(seed=i) for i in range(2)]))
        np.testing.assert_array_equal(seg[0], values * numbers[1])


def test_the_spacing_that_imagej_wrote_into_a_tiff_is_the_one_nnunet_reads(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "image.tif",
        voxels("uint16"),
        imagej=True,
        resolution=(2, 4),
        metadata={"spacing": 3.0, "axes": "ZYX"},
    )
    assert write(tmp_path / "out", TiffFile(tmp_path / "image.tif"), ending=".tif").entry
    _, properties = Tiff3DIO().read_images([str(tmp_path / "out" / "imagesTr" / "a_0000.tif")])
    assert properties["spacing"] == [3.0, 0.25, 0.5]


def test_the_hash_of_several_files_is_that_of_their_hashes(dicom: Path, tmp_path: Path) -> None:
    entry = write(tmp_path / "out", DicomFolder(dicom)).entry
    assert entry is not None
    slices = sorted(dicom.iterdir(), key=lambda path: int(path.stem))
    hashes = "".join(sha256(path.read_bytes()) for path in slices)
    assert len(slices) == 3
    assert entry["images"][0]["sha256"] == sha256(hashes.encode())


def test_the_hash_of_a_zarr_crop_is_that_of_its_voxels(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    array = voxels("uint16", (2, 8, 9, 10))
    zarr.save_array(str(tmp_path / "cells.zarr"), array)
    crop = ZarrCrop(str(tmp_path / "cells.zarr"), 1, (1, 2, 3), (4, 5, 6), SPACING)
    entry = write(tmp_path / "out", crop).entry
    assert entry is not None
    assert entry["images"][0]["sha256"] == sha256(array[1, 1:5, 2:7, 3:9].tobytes())


def test_the_hash_of_a_converted_file_is_that_of_its_source(tmp_path: Path) -> None:
    image = as_npy(voxels(), tmp_path / "image.npy")
    mask = as_npy(2 * voxels("bool"), tmp_path / "mask.npy")
    entry = write(tmp_path / "out", image, mask, numbers={0: 0, 2: 1}).entry
    assert entry is not None
    assert entry["images"][0]["sha256"] == sha256(image.path.read_bytes())
    assert entry["label"]["sha256"] == sha256(mask.path.read_bytes())
    assert entry["label"]["size"] == (tmp_path / "out" / "labelsTr" / "a.nii.gz").stat().st_size


@pytest.fixture
def dicom(tmp_path: Path) -> Path:
    return dicom_series(tmp_path / "scan", num_slices=3)


def truncate(path: Path, keep: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz", "image.nrrd", "image.mha", "image.npy", "image.tif"])
def test_a_truncated_image_is_not_converted(name: str, tmp_path: Path) -> None:
    path, ending = tmp_path / name, ".gipl" if name == "image.nii.gz" else ".nii.gz"
    array = voxels(shape=(20, 30, 30))
    if name.endswith(".npy"):
        np.save(path, array)
    elif name.endswith(".tif"):
        tifffile.imwrite(path, array, compression="zlib")
    else:
        sitk.WriteImage(oblique(array), str(path), useCompression=True)
    job = checked(tmp_path / "out", volume_at(path, SPACING), ending=ending)
    truncate(path)
    made = write_case(job)
    assert made.entry is None
    assert name in made.problem
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_truncated_slice_is_neither_converted_nor_left_out(number: int, dicom: Path, tmp_path: Path) -> None:
    job = checked(tmp_path / "out", DicomFolder(dicom))
    truncate(dicom / f"{number:03d}.dcm", keep=0.98)  # within its voxels
    made = write_case(job)
    assert made.entry is None
    assert str(dicom) in made.problem
    assert "\n" not in made.problem
    assert files(tmp_path / "out") == []


def test_nan_is_no_value_to_lose_without_a_word(tmp_path: Path) -> None:
    array = voxels("float32")
    array[1, 2, 3] = np.nan
    sitk.WriteImage(oblique(array), str(tmp_path / "image.nii"))
    made = write(tmp_path / "out", ItkFile(tmp_path / "image.nii"))
    assert made.entry is None
    assert made.problem == f"1 voxels of {tmp_path / 'image.nii'} are NaN or infinite"


def test_a_channel_that_fails_leaves_nothing_half_written(tmp_path: Path) -> None:
    first, second = as_npy(voxels(), tmp_path / "1.npy"), as_npy(voxels(), tmp_path / "2.npy")
    job = checked(tmp_path / "out", (first, second))
    truncate(second.path)
    made = write_case(job)
    assert made.entry is None
    assert not made.stops, "the other cases may be whole"
    assert not [name for name in files(tmp_path / "out") if "/." in name or "_0001" in name]


def test_a_case_whose_process_has_died_has_a_problem(tmp_path: Path) -> None:
    case = Case("a", "row", "s", TRAIN)
    made = failed(WriteJob(case, tmp_path, ".nii.gz", {}, Transfer.COPY, ()), "killed")
    assert (made.name, made.entry, made.problem) == ("a", None, "killed")


SIZE = (80, 80, 80)
_BYTES = int(np.prod(SIZE))


def _copied(ending: str) -> Callable[[Path, Path], Written]:
    def go(source: Path, out: Path) -> Written:
        image = stored(sitk.GetImageFromArray(voxels("uint8", SIZE)), source / f"image{ending}")
        return write(out, image, ending=ending)

    return go


def _converted_image(source: Path, out: Path) -> Written:
    return write(out, as_npy(voxels("uint8", SIZE), source / "image.npy"))


def _renumbered(ending: str) -> Callable[[Path, Path], Written]:
    def go(source: Path, out: Path) -> Written:
        image = stored(sitk.GetImageFromArray(np.zeros(SIZE, np.uint8)), source / "image.nrrd")
        label = stored(sitk.GetImageFromArray(voxels("uint8", SIZE)), source / f"label{ending}")
        small = {value: (value * 7) % 251 for value in range(256)}
        case = Case("a", "row", "s", TEST, (image,), label)
        (out / "imagesTs").mkdir()
        return write_case(WriteJob(case, out, ending, small, Transfer.SYMLINK, geometries(case)))

    return go


@pytest.mark.parametrize("leave", [0, 4096, _BYTES // 2])
@pytest.mark.parametrize(
    "work",
    [
        pytest.param(_copied(".nii"), id="copied"),
        pytest.param(_converted_image, id="converted"),
        *(pytest.param(_renumbered(e), id=e) for e in (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")),
    ],
)
def test_a_full_disk_is_a_problem_and_no_file_is_there_in_part(
    work: Callable[[Path, Path], Written], leave: int, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "size=2m") as disk:
        fill(disk, leave=leave)
        made = work(tmp_path, disk)
        assert made.entry is None
        assert made.problem
        assert "\n" not in made.problem
        assert [name for name in files(disk) if not name.startswith(("filling", "imagesTs/a_0000"))] == []
        assert not [name for name in files(disk) if "imagesTr" in name]


def test_a_full_disk_stops_the_cases_that_come_after(tmp_path: Path) -> None:
    for number, work in enumerate((_copied(".nii"), _converted_image)):
        with mounted(tmp_path / f"disk{number}", "size=2m") as disk:
            fill(disk, leave=_BYTES // 4)
            made = work(tmp_path, disk)
        assert made.stops
        assert made.problem == f"No space left on device: {disk.parent} (nnUNet_raw)"
        assert made.fix == "make room"


def test_the_spacing_files_of_tiff_are_json_with_three_numbers(tmp_path: Path) -> None:
    assert write(tmp_path / "out", store_any(".tif", voxels(), tmp_path / "image.tif"), ending=".tif").entry
    assert json.loads((tmp_path / "out" / "imagesTr" / "a.json").read_text()) == {"spacing": list(SPACING)}
