"""What is found in cases: geometries that do not fit, label maps that hold what labels are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from nnunetv2_ext.datasets.checking import (
    CheckJob,
    Finding,
    check_case,
    common_geometry,
    failed,
    geometry_of,
    rehearse_case,
)
from nnunetv2_ext.datasets.collection import TEST, Case
from nnunetv2_ext.datasets.conversion import distinct
from nnunetv2_ext.datasets.volumes.itk_file import ItkFile
from nnunetv2_ext.datasets.volumes.volume import Geometry
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import OBLIQUE, ORIGIN, SPACING, STRAIGHT, case_of, counted, save

IMAGE = counted(2, 3, 4)
LABEL = (IMAGE % 3).astype(np.uint8)
DETACHED = {
    "size": {"array": LABEL[:1]},
    "spacing": {"spacing": (0.5, 1.25, 2.5)},
    "origin": {"origin": (0.0, 0.0, 0.0)},
    "direction": {"direction": OBLIQUE},
}
"""Label maps that lie on another grid than the image, by what differs first."""


def check(*images: Path, label: Path | None = None, resample: bool = False, **more: Any) -> Finding:
    return check_case(CheckJob(case_of(*images, label=label, **more), resample))


def together(case: Case) -> Geometry:
    return common_geometry(case.images, [geometry_of(image) for image in case.images])


def problem(finding: Finding) -> str:
    (said,) = finding.problems
    assert "\n" not in said
    return said


def label_of(tmp_path: Path, array: np.ndarray, name: str = "label.nii.gz") -> Path:
    if name.endswith(".npy"):
        np.save(tmp_path / name, array)
        return tmp_path / name
    if name.endswith(".tif"):
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack")
        return tmp_path / name
    return save(tmp_path / name, array)


def test_a_good_case_has_its_geometry_and_its_values(tmp_path: Path) -> None:
    images = [save(tmp_path / f"{channel}.nii.gz", IMAGE + channel) for channel in range(2)]
    finding = check(*images, label=label_of(tmp_path, LABEL * 5))
    assert (finding.name, finding.values, finding.problems) == ("a", (0, 5, 10), ())
    assert finding.geometry is not None
    assert finding.geometry.difference(Geometry((4, 3, 2), SPACING, ORIGIN)) is None
    assert [own.size for own in finding.own] == [(4, 3, 2)] * 3, "two images and a label map"


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint64", "f2", "f4", "f8"])
def test_the_distinct_values_of_an_array_are_those_that_numpy_finds(dtype: str) -> None:
    rng = np.random.default_rng(0)
    low = -3 if np.dtype(dtype).kind in "if" else 0
    array = rng.integers(low, 7, (5, 6, 7)).astype(dtype).repeat(3, axis=2)
    for view in (array, array.T, array[:, ::2, 1:], array[:1, :1, :1]):
        np.testing.assert_array_equal(distinct(view), np.unique(view))


def test_nan_is_one_of_the_distinct_values() -> None:
    np.testing.assert_array_equal(distinct(np.array([[np.nan, 1.0], [1.0, np.nan]])), [1.0, np.nan])


def test_a_test_case_needs_no_label(tmp_path: Path) -> None:
    finding = check(save(tmp_path / "a.nii.gz", IMAGE), part=TEST)
    assert (finding.values, finding.problems) == ((), ())


def test_what_is_known_to_be_wrong_is_repeated_and_nothing_opened() -> None:
    finding = check(Path("/nowhere/a.nii.gz"), problems=("image is empty", "the part is 'x'"))
    assert finding == Finding("a", problems=("image is empty", "the part is 'x'"))


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    image, label = save(tmp_path / "a.nii.gz", IMAGE), label_of(tmp_path, LABEL)
    label.unlink()
    assert problem(check(image, label=label)) == f"there is no file {label}"
    assert problem(check(tmp_path / "b.npy", label=label)) == f"there is no file {tmp_path / 'b.npy'}"


# geometry


@pytest.mark.parametrize("what", DETACHED)
def test_channels_that_differ_are_both_named(what: str, tmp_path: Path) -> None:
    same = [save(tmp_path / f"{channel}.nii.gz", IMAGE) for channel in range(2)]
    other = save(tmp_path / "other.nii.gz", **{"array": IMAGE, **DETACHED[what]})
    said = problem(check(*same, other, label=label_of(tmp_path, LABEL)))
    assert said.startswith(f"{same[0]} and {other} differ in {what} ")


def test_a_channel_without_geometry_has_that_of_another(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", IMAGE)
    np.save(tmp_path / "1.npy", IMAGE)
    image = save(tmp_path / "2.nrrd", IMAGE, direction=OBLIQUE)
    case = case_of(tmp_path / "0.npy", image, tmp_path / "1.npy")
    assert together(case).difference(Geometry((4, 3, 2), SPACING, ORIGIN, OBLIQUE)) is None


def test_a_channel_is_compared_also_with_the_one_that_lent_its_geometry(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", IMAGE)
    second = save(tmp_path / "1.nrrd", IMAGE)
    third = save(tmp_path / "2.nrrd", IMAGE, spacing=(1, 1, 1))
    with pytest.raises(UserError, match=r"2\.nrrd differ in spacing"):
        together(case_of(tmp_path / "0.npy", second, third))


def test_an_unknown_spacing_is_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGE)
    said = problem(check(tmp_path / "a.npy", label=label_of(tmp_path, LABEL)))
    assert said == f"{tmp_path / 'a.npy'} does not say its spacing: give it (-spacing Z Y X)"


@pytest.mark.parametrize("what", DETACHED)
def test_a_label_on_another_grid_is_named_with_its_image_and_the_flag_that_helps(what: str, tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    label = save(tmp_path / "label.nii.gz", **{"array": LABEL, **DETACHED[what]})
    said = problem(check(image, label=label))
    assert said.startswith(f"{image} and its label {label} differ in {what} ")
    assert said.endswith(": --resample_labels puts it onto the image's grid")


@pytest.mark.parametrize("what", DETACHED)
def test_a_label_on_another_grid_is_no_problem_where_it_is_resampled(what: str, tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    label = save(tmp_path / "label.nii.gz", **{"array": LABEL, **DETACHED[what]})
    finding = check(image, label=label, resample=True)
    assert finding.problems == ()
    assert finding.geometry is not None
    assert finding.geometry.direction == STRAIGHT  # the image's


@pytest.mark.parametrize("resample", [False, True])
def test_a_label_without_geometry_fits_by_its_size_alone(resample: bool, tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE, direction=OBLIQUE)
    good = label_of(tmp_path, LABEL, "label.npy")
    bad = label_of(tmp_path, LABEL.T, "turned.npy")
    assert check(image, label=good, resample=resample).problems == ()
    said = problem(check(image, label=bad, resample=resample))
    assert said == f"{image} and its label {bad} differ in size 2 x 3 x 4 (z, y, x) and 4 x 3 x 2 (z, y, x)"


# what a dry run reads beyond that


def rehearse(*images: Path, label: Path | None = None, resample: bool = False) -> Finding:
    return rehearse_case(CheckJob(case_of(*images, label=label), resample))


def test_nan_in_an_image_that_is_converted_is_found_before_the_import(tmp_path: Path) -> None:
    array = IMAGE.astype(np.float32)
    array[0, 1, 2] = np.nan
    label = label_of(tmp_path, LABEL)
    for name in ("image.nrrd", "image.nii", "image.mha"):
        image = save(tmp_path / name, array)
        assert check(image, label=label).problems == ()
        assert problem(rehearse(image, label=label)) == f"1 voxels of {image} are NaN or infinite"


def test_images_that_are_copied_are_not_read_by_a_dry_run_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, label = save(tmp_path / "image.nii.gz", IMAGE), label_of(tmp_path, LABEL)
    read = []
    for name in ("image", "array"):
        method = getattr(ItkFile, name)
        monkeypatch.setattr(ItkFile, name, lambda volume, of=method: read.append(volume.path) or of(volume))
    assert rehearse(image, label=label).problems == ()
    assert set(read) == {label}


def test_a_label_of_which_resampling_leaves_nothing_is_found_before_the_import(tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    near = save(tmp_path / "near.nii.gz", LABEL, origin=(-12.0, 7.0, 103.25))
    far = save(tmp_path / "far.nii.gz", LABEL, origin=(1000.0, 0.0, 0.0))
    assert rehearse(image, label=near, resample=True).values == (0, 1, 2)
    said = problem(rehearse(image, label=far, resample=True))
    assert said == f"nothing of 1, 2 in {far} is left on the grid of {image}: does it lie elsewhere?"


# labels


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("name", ["label.nii.gz", "label.nrrd", "label.npy", "label.tif"])
def test_whole_numbers_of_every_type_are_labels(dtype: str, name: str, tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    finding = check(image, label=label_of(tmp_path, (LABEL * 100).astype(dtype), name))
    assert (finding.values, finding.problems) == ((0, 100, 200), ())


@pytest.mark.parametrize("dtype", ["?", "i8", "u8", "f2"])
def test_types_that_only_arrays_have_are_labels_too(dtype: str, tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    finding = check(image, label=label_of(tmp_path, (LABEL % 2).astype(dtype), "label.npy"))
    assert (finding.values, finding.problems) == ((0, 1), ())


def with_value(value: float, dtype: str) -> np.ndarray:
    array = LABEL.astype(dtype)
    array[1, 1, 1] = value
    return array


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (0.5, "f4", "holds 0.5, where labels are whole numbers"),
        (2.0001, "f8", "holds 2.0001, where labels are whole numbers"),
        (np.nan, "f4", "holds nan, where labels are whole numbers"),
        (np.inf, "f8", "holds inf, where labels are 0 to 65535"),
        (-1, "i2", "holds -1, where labels are 0 to 65535"),
        (-1024, "f4", "holds -1024, where labels are 0 to 65535"),
        (65536, "i4", "holds 65536, where labels are 0 to 65535"),
        (2**64 - 1, "u8", "holds 1.84467e+19, where labels are 0 to 65535"),
    ],
)
def test_what_is_no_label_is_named(value: float, dtype: str, said: str, tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    label = label_of(tmp_path, with_value(value, dtype), "label.npy")
    assert problem(check(image, label=label)) == f"{label} {said}"


def test_the_greatest_label_is_one(tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    label = label_of(tmp_path, with_value(65535, "u2"))
    assert check(image, label=label).values == (0, 1, 2, 65535)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_nifti_which_simpleitk_reads_as_0_is_noticed(value: float, tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    label = label_of(tmp_path, with_value(value, "f4"))
    assert problem(check(image, label=label)) == f"1 voxels of {label} are NaN or infinite"


def test_many_values_that_are_no_labels_are_counted(tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE)
    label = label_of(tmp_path, IMAGE / 2, "label.npy")
    assert problem(check(image, label=label)) == (
        f"{label} holds 0.5, 1.5, 2.5, 3.5, 4.5 and 7 more values, where labels are whole numbers"
    )


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def other_checksum(content: bytes) -> bytes:
    """Of the last eight bytes of a gzip file the first four are the checksum."""
    return content[:-8] + bytes(4) + content[-4:]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("label.nii.gz", cut_off),
        ("label.nii", cut_off),
        ("label.nrrd", cut_off),
        ("label.tif", cut_off),
        ("label.npy", cut_off),
        ("label.nii.gz", other_checksum),
    ],
)
def test_a_damaged_label_map_is_noticed(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 9, (20, 21, 22)).astype(np.uint8)
    image, label = save(tmp_path / "image.nii.gz", noise), label_of(tmp_path, noise, name)
    assert check(image, label=label).problems == ()
    label.write_bytes(damage(label.read_bytes()))
    assert name in problem(check(image, label=label))


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({1: "liver"}, "holds 2, which the labels do not name (they name 1)"),
        ({3: "liver", 7: "kidney"}, "holds 1, 2, which the labels do not name (they name 3, 7)"),
        ({}, "holds 1, 2, which the labels do not name (they name )"),
    ],
)
def test_values_that_the_classes_do_not_name_are_listed(classes: Mapping[int, str], said: str, tmp_path: Path) -> None:
    image, label = save(tmp_path / "image.nii.gz", IMAGE), label_of(tmp_path, LABEL)
    assert problem(check(image, label=label, classes=classes)) == f"{label} {said}"


def test_classes_need_not_name_0_nor_be_found(tmp_path: Path) -> None:
    image, label = save(tmp_path / "image.nii.gz", IMAGE), label_of(tmp_path, LABEL)
    finding = check(image, label=label, classes={1: "liver", 2: "background", 9: "spleen"})
    assert (finding.values, finding.problems) == ((0, 1, 2), ())


def test_a_process_that_died_leaves_its_reason() -> None:
    job = CheckJob(case_of(Path("/nowhere/a.nii.gz"), name="b"), resample_labels=False)
    assert failed(job, "killed") == Finding("b", problems=("killed",))
