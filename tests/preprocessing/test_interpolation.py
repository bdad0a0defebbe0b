"""Interpolation along one axis, against scipy's own zoom, fractions and dense matrices."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates, zoom

from nnunetv2_ext.preprocessing.interpolation import (
    LinearAxis,
    nearest_indices,
    positions,
    resample_axis,
    spline_matrix,
)
from tests.preprocessing.generated import SEEDS, examples

SIZES = st.sampled_from([1, 2, 3, *range(1, 91)])
SPLINES = (1, 3)
LONG = [(700, 431), (431, 700), (700, 96), (96, 700), (700, 1), (1, 700), (512, 511)]


def zoomed(line: np.ndarray, size: int, order: int) -> np.ndarray:
    """As `skimage.transform.resize(mode="edge")` calls scipy."""
    return zoom(line, size / len(line), order=order, mode="nearest", grid_mode=True)


def rational_position(index: int, before: int, after: int) -> Fraction:
    return Fraction(2 * index + 1, 2) * Fraction(before, after) - Fraction(1, 2)


@pytest.mark.parametrize("order", SPLINES)
def test_the_matrix_does_what_scipys_zoom_does(order: int) -> None:
    @examples(400)
    @given(SIZES, SIZES, SEEDS)
    def check(before: int, after: int, seed: int) -> None:
        line = np.random.default_rng(seed).normal(size=before)
        np.testing.assert_allclose(
            spline_matrix(before, after, order) @ line, zoomed(line, after, order), rtol=0, atol=1e-10
        )

    check()


@pytest.mark.parametrize("order", SPLINES)
@pytest.mark.parametrize(("before", "after"), LONG)
def test_the_matrix_of_a_long_axis_does_what_scipys_zoom_does(before: int, after: int, order: int) -> None:
    line = np.random.default_rng(0).normal(size=before)
    np.testing.assert_allclose(
        spline_matrix(before, after, order) @ line, zoomed(line, after, order), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("order", SPLINES)
@examples(200)
@given(SIZES, SIZES)
def test_the_weights_of_each_voxel_sum_to_one(order: int, before: int, after: int) -> None:
    matrix = spline_matrix(before, after, order)
    assert matrix.shape == (after, before)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("order", "degree", "margin"), [(1, 1, 1), (3, 1, 20), (3, 2, 20), (3, 3, 20)])
@pytest.mark.parametrize(("before", "after"), [(80, 123), (123, 80), (100, 41), (64, 256)])
def test_a_spline_gives_polynomials_of_its_degree_back_away_from_the_border(
    before: int, after: int, order: int, degree: int, margin: int
) -> None:
    """A border felt 20 voxels away: 0.268^20, the pole of the cubic prefilter, is 4e-12."""
    middle, scale = before / 2, before / 2
    at = np.array([float(rational_position(i, before, after)) for i in range(after)])
    inside = (at >= margin) & (at <= before - 1 - margin)
    assert inside.any()
    found = spline_matrix(before, after, order) @ ((np.arange(before) - middle) / scale) ** degree
    np.testing.assert_allclose(found[inside], (((at - middle) / scale) ** degree)[inside], rtol=0, atol=1e-9)


def test_linear_interpolation_does_not_give_a_parabola_back() -> None:
    """Nor would a test that cannot tell."""
    found = spline_matrix(80, 123, 1) @ np.linspace(-1, 1, 80) ** 2
    at = np.array([float(rational_position(i, 80, 123)) for i in range(123)])
    assert np.abs(found - ((at - 39.5) / 39.5) ** 2).max() > 1e-4


@pytest.mark.parametrize("order", SPLINES)
def test_each_voxel_depends_on_its_surroundings_alone(order: int) -> None:
    """What lets `resample_axis` leave most of the matrix out."""
    matrix = spline_matrix(300, 500, order)
    at = np.array([float(rational_position(i, 300, 500)) for i in range(500)])
    far = np.abs(np.arange(300)[None] - at[:, None]) > 20
    assert np.abs(matrix[far]).max() < 1e-10


@examples(100)
@given(SIZES, SIZES)
def test_positions_are_those_of_voxel_centres_over_the_same_extent(before: int, after: int) -> None:
    exact = [float(rational_position(i, before, after)) for i in range(after)]
    np.testing.assert_allclose(positions(before, after), exact, rtol=0, atol=1e-12 * before)


def test_the_nearest_voxel_is_scipys_and_by_fractions_but_where_half_way_rounds() -> None:
    """All 10,000 pairs of sizes up to 100; half-way between two voxels fractions say the later one."""
    rounded = 0
    for before in range(1, 101):
        for after in range(1, 101):
            ours = nearest_indices(before, after)
            assert np.array_equal(ours, zoomed(np.arange(before, dtype=float), after, 0)), (before, after)
            exact = [(2 * i + 1) * before // (2 * after) for i in range(after)]
            for i in np.flatnonzero(ours != exact):
                rounded += 1
                assert (2 * i + 1) * before % (2 * after) == 0, "not half-way between two voxels"
                assert ours[i] == exact[i] - 1
    assert rounded < 0.001 * sum(range(1, 101)) * 100


@examples(200)
@given(st.integers(1, 1000), st.integers(1, 1000))
def test_the_nearest_voxel_of_a_long_axis_is_scipys(before: int, after: int) -> None:
    line = np.arange(before, dtype=float)
    assert np.array_equal(nearest_indices(before, after), zoomed(line, after, 0))


@examples(200)
@given(st.integers(1, 200), st.integers(1, 200))
def test_the_nearest_slice_is_the_one_that_nnunets_separate_route_takes(before: int, after: int) -> None:
    """Which computes positions itself and calls `map_coordinates`."""
    coordinates = float(before) / after * (np.mgrid[:after] + 0.5) - 0.5
    taken = map_coordinates(np.arange(before, dtype=float), coordinates[None], order=0, mode="nearest")
    assert np.array_equal(nearest_indices(before, after), taken)


@examples(400)
@given(SIZES, SIZES)
def test_linear_weights_are_scipys(before: int, after: int) -> None:
    axis = LinearAxis.of(before, after)
    for index, unit in enumerate(np.eye(before)):
        ours = axis.weight_low * (axis.low == index) + axis.weight_high * (axis.high == index)
        np.testing.assert_allclose(ours, zoomed(unit, after, 1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", SPLINES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_is_multiplied_with_the_matrix(axis: int, order: int) -> None:
    @examples(60)
    @given(st.tuples(*[st.integers(1, 20)] * 3), SIZES, SEEDS)
    def check(shape: tuple[int, ...], size: int, seed: int) -> None:
        image = np.random.default_rng(seed).normal(size=shape)
        matrix = spline_matrix(shape[axis], size, order)
        expected = np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
        np.testing.assert_allclose(resample_axis(image, axis, size, order), expected, rtol=0, atol=1e-8)

    check()


@pytest.mark.parametrize("order", SPLINES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("before", "after"), LONG)
def test_a_long_axis_is_multiplied_with_the_whole_of_the_matrix(before: int, after: int, axis: int, order: int) -> None:
    shape = [3, 4, 5]
    shape[axis] = before
    image = np.random.default_rng(0).normal(size=shape)
    expected = np.moveaxis(np.tensordot(spline_matrix(before, after, order), image, (1, axis)), 0, axis)
    np.testing.assert_allclose(resample_axis(image, axis, after, order), expected, rtol=0, atol=1e-8)
    single = resample_axis(image.astype(np.float32), axis, after, order)
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_with_order_0_the_nearest_voxels_are_taken(axis: int) -> None:
    image = np.random.default_rng(0).normal(size=(5, 6, 7))
    factors = [1.0, 1.0, 1.0]
    factors[axis] = 13 / image.shape[axis]
    expected = zoom(image, factors, order=0, mode="nearest", grid_mode=True)
    assert np.array_equal(resample_axis(image, axis, 13, 0), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", [0, *SPLINES])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_type_of_the_image_stays(axis: int, order: int, dtype: str) -> None:
    assert resample_axis(np.ones((4, 5, 6), dtype), axis, 9, order).dtype == dtype


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_view_of_an_image_is_resampled_as_its_copy(axis: int, axes: tuple[int, ...]) -> None:
    view = np.random.default_rng(0).normal(size=(60, 61, 62)).transpose(axes)[2:-3, ::2, 1:]
    ours = resample_axis(view, axis, 75, 3)
    np.testing.assert_allclose(ours, resample_axis(np.ascontiguousarray(view), axis, 75, 3), rtol=0, atol=1e-12)


def test_an_axis_that_keeps_its_size_is_left_alone() -> None:
    image = np.ones((4, 5, 6))
    assert resample_axis(image, 1, 5, 3) is image
