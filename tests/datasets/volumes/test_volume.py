"""Geometries that are the same and those that are not, and arrays that become images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_ext.datasets.volumes.volume import Geometry, check_dtype, from_array
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import OBLIQUE, ORIGIN, SPACING, STRAIGHT, counted, rotation, save

SCAN = Geometry((4, 3, 2), SPACING, ORIGIN, OBLIQUE)


def turned(degrees: float) -> tuple[float, ...]:
    """`OBLIQUE`, a little farther."""
    more = np.array(rotation(0, 0, degrees)).reshape(3, 3) @ np.array(OBLIQUE).reshape(3, 3)
    return tuple(more.ravel().tolist())


def test_a_geometry_does_not_differ_from_itself() -> None:
    assert SCAN.difference(replace(SCAN)) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": (4, 3, 5)}, "size 2 x 3 x 4 (z, y, x) and 5 x 3 x 4 (z, y, x)"),
        ({"size": (3, 4, 2)}, "size 2 x 3 x 4 (z, y, x) and 2 x 4 x 3 (z, y, x)"),
        ({"spacing": (0.5, 1.25, 3.0)}, "spacing 2 x 1.25 x 0.5 (z, y, x) and 3 x 1.25 x 0.5 (z, y, x)"),
        ({"origin": (-12.5, 7.0, 104.25)}, "origin -12.5 7 103.25 and -12.5 7 104.25 (x, y, z)"),
        ({"direction": STRAIGHT}, "and 1 0 0 0 1 0 0 0 1 (x, y, z)"),
    ],
)
def test_what_differs_is_said_with_both_values(changed: dict[str, Any], said: str) -> None:
    difference = SCAN.difference(replace(SCAN, **changed))
    assert difference is not None
    (what,) = changed
    assert difference.startswith(what)
    assert said in difference


@pytest.mark.parametrize(
    "changed",
    [
        {"spacing": (0.5, 1.25, 2.0 * 1.0005)},
        {"direction": turned(0.05)},
        {"origin": (-12.5, 7.0 + 0.1 * SPACING[0], 103.25)},
        {"origin": (-12.5 + 0.5 * SPACING[0], 7.0, 103.25)},
    ],
)
def test_a_small_part_of_a_voxel_is_a_difference(changed: dict[str, Any]) -> None:
    assert SCAN.difference(replace(SCAN, **changed)) is not None
    assert replace(SCAN, **changed).difference(SCAN) is not None


def test_a_voxel_less_far_from_the_worlds_origin_is_a_difference() -> None:
    far = replace(SCAN, origin=(4000.0, 4000.0, 4000.0))
    assert far.difference(replace(far, origin=(4000.0, 4000.0 + SPACING[1], 4000.0))) is not None


@pytest.mark.parametrize("other", [Geometry((4, 3, 2), None), Geometry((4, 3, 2), None, (9.0, 9.0, 9.0), OBLIQUE)])
def test_what_storage_does_not_know_is_no_difference(other: Geometry) -> None:
    assert SCAN.difference(other) is None
    assert other.difference(SCAN) is None


def test_sizes_differ_also_where_the_spacing_is_unknown() -> None:
    assert "size" in str(SCAN.difference(Geometry((4, 3, 1), None)))
    assert "size" in str(Geometry((4, 3, 1), None).difference(Geometry((4, 1, 3), None)))


@settings(max_examples=60, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.01, 20)] * 3),
    origin=st.tuples(*[st.floats(-3000, 3000)] * 3),
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
)
def test_what_is_read_from_a_nifti_header_of_32_bits_is_no_difference(
    tmp_path_factory: pytest.TempPathFactory,
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    degrees: tuple[float, float, float],
) -> None:
    exact = Geometry((4, 3, 2), spacing, origin, rotation(*degrees))
    path = tmp_path_factory.getbasetemp() / "rounded.nii"
    save(path, counted(2, 3, 4), spacing, origin, exact.direction)
    read = sitk.ReadImage(str(path))
    rounded = Geometry(read.GetSize(), read.GetSpacing(), read.GetOrigin(), read.GetDirection())
    assert exact.difference(rounded) is None
    assert rounded.difference(exact) is None


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        *((kind, kind) for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")),
        ("f2", "f4"),
        ("?", "u1"),
        (">i2", "i2"),
        (">f8", "f8"),
    ],
)
def test_an_array_keeps_its_values_and_a_type_that_files_have(dtype: str, becomes: str) -> None:
    array = counted(2, 3, 4, dtype=dtype)
    read = sitk.GetArrayFromImage(from_array(array, SCAN))
    assert read.dtype == np.dtype(becomes)
    np.testing.assert_array_equal(read, array)


def test_the_greatest_and_the_least_numbers_are_kept() -> None:
    for dtype in (np.int64, np.uint64, np.int8):
        array = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype).reshape(1, 1, 2)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(from_array(array, Geometry((2, 1, 1), None))), array)
    half = np.array([np.finfo(np.float16).max, np.finfo(np.float16).tiny], np.float16).reshape(1, 1, 2)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(from_array(half, Geometry((2, 1, 1), None))), half)


@pytest.mark.parametrize(
    "array", [np.asfortranarray(counted(2, 3, 4)), counted(4, 3, 2).T, counted(2, 6, 8)[:, ::2, ::-2]]
)
def test_arrays_in_another_order_of_memory_keep_their_axes(array: np.ndarray) -> None:
    image = from_array(array, SCAN)
    assert image.GetSize() == (4, 3, 2)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)


def test_an_image_has_the_geometry_it_is_given() -> None:
    image = from_array(counted(2, 3, 4), SCAN)
    assert (image.GetSpacing(), image.GetOrigin()) == (SPACING, ORIGIN)
    np.testing.assert_allclose(image.GetDirection(), OBLIQUE)


@pytest.mark.parametrize("dtype", ["c8", "c16", "g", "U3", "S3", "M8[s]", "m8[s]", "O", [("a", "i4")]])
def test_what_is_no_scalar_is_refused(dtype: Any) -> None:
    with pytest.raises(UserError, match=r"place holds values of type .*, where an image has whole or real numbers"):
        check_dtype(np.dtype(dtype), "place")
