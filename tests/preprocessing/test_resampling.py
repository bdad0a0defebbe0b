"""Images are resampled as the installed nnU-Net does, within 1e-4 of a standard deviation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from scipy.ndimage import zoom

from nnunetv2_ext.preprocessing.resampling import resample_images
from tests.preprocessing.generated import AXES, IMAGES, SEEDS, Geometry, examples, geometries, images

ORDERS = (0, 1, 3)
KINDS = st.lists(st.sampled_from(IMAGES), min_size=1, max_size=3)
ISOTROPIC = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))


def largest_difference(geometry: Geometry, channels: np.ndarray, order: int, order_z: int) -> float:
    options = {"order": order, "order_z": order_z, "force_separate_z": geometry.force_separate_z}
    stock = resample_data_or_seg_to_shape(channels, *geometry.arguments, is_seg=False, **options)
    ours = resample_images(channels, *geometry.arguments, **options)
    assert ours.shape == stock.shape
    assert ours.dtype == stock.dtype == channels.dtype
    return float(np.abs(ours.astype(np.float64) - stock).max())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("apart", AXES)
def test_images_are_within_a_ten_thousandth_of_stock_nnunets(apart: int | None, order: int) -> None:
    @examples(60)
    @given(geometries(apart, 20), KINDS, SEEDS, st.sampled_from(ORDERS))
    def check(geometry: Geometry, kinds: list[str], seed: int, order_z: int) -> None:
        assert largest_difference(geometry, images(kinds, geometry.shape, seed), order, order_z) <= 1e-4

    check()


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("apart", AXES)
def test_thousands_of_images_are_within_a_ten_thousandth_of_stock_nnunets(apart: int | None, order: int) -> None:
    @examples(500)
    @given(geometries(apart, 30), KINDS, SEEDS, st.sampled_from(ORDERS))
    def check(geometry: Geometry, kinds: list[str], seed: int, order_z: int) -> None:
        assert largest_difference(geometry, images(kinds, geometry.shape, seed), order, order_z) <= 1e-4

    check()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("apart", AXES)
def test_in_double_precision_images_are_within_a_hundred_millionth(apart: int | None, order: int) -> None:
    @examples(30)
    @given(geometries(apart, 20), KINDS, SEEDS, st.sampled_from(ORDERS))
    def check(geometry: Geometry, kinds: list[str], seed: int, order_z: int) -> None:
        assert largest_difference(geometry, images(kinds, geometry.shape, seed, "float64"), order, order_z) <= 1e-8

    check()


@pytest.mark.parametrize("apart", AXES)
def test_what_is_generated_is_resampled_apart_along_the_axis_that_is_meant(apart: int | None) -> None:
    @examples(200)
    @given(geometries(apart, 20))
    def check(geometry: Geometry) -> None:
        route = determine_do_sep_z_and_axis(geometry.force_separate_z, geometry.spacing, geometry.new_spacing)
        assert route == (apart is not None, apart)

    check()


@examples(100)
@given(geometries(None, 12), geometries(0, 12), geometries(2, 12), SEEDS, st.sampled_from([None, True, False]))
def test_nnunet_decides_whether_an_axis_is_resampled_apart(
    plain: Geometry, first: Geometry, last: Geometry, seed: int, force: bool | None
) -> None:
    for geometry in (plain, first, last):
        channels = images(["noise"], geometry.shape, seed)
        options = {"order": 3, "order_z": 0, "force_separate_z": force, "separate_z_anisotropy_threshold": 2}
        stock = resample_data_or_seg_to_shape(channels, *geometry.arguments, **options)
        ours = resample_images(channels, *geometry.arguments, **options)
        np.testing.assert_allclose(ours, stock, rtol=0, atol=1e-4)


@pytest.mark.parametrize("threshold", [2, 3, 4])
def test_the_threshold_of_anisotropy_is_nnunets(threshold: float) -> None:
    channels = images(["noise"], (6, 9, 8), 0)
    geometry = ((12, 14, 13), (3.3, 1.0, 1.0), (1.65, 0.65, 0.6))
    options = {"order": 3, "order_z": 0, "force_separate_z": None, "separate_z_anisotropy_threshold": threshold}
    stock = resample_data_or_seg_to_shape(channels, *geometry, **options)
    np.testing.assert_allclose(resample_images(channels, *geometry, **options), stock, rtol=0, atol=1e-4)


def test_the_default_arguments_are_nnunets() -> None:
    channels = images(["noise"], (6, 9, 8), 0)
    geometry = ((12, 14, 13), (5.0, 1.0, 1.0), (2.5, 0.65, 0.6))
    stock = resample_data_or_seg_to_shape(channels, *geometry)
    np.testing.assert_allclose(resample_images(channels, *geometry), stock, rtol=0, atol=1e-4)


@pytest.mark.parametrize("apart", AXES)
def test_images_stay_within_their_range(apart: int | None) -> None:
    @examples(60)
    @given(geometries(apart, 20), KINDS, SEEDS, st.sampled_from([0, 1]))
    def check(geometry: Geometry, kinds: list[str], seed: int, order_z: int) -> None:
        channels = images(kinds, geometry.shape, seed)
        ours = resample_images(
            channels, *geometry.arguments, order_z=order_z, force_separate_z=geometry.force_separate_z
        )
        for before, after in zip(channels, ours, strict=True):
            assert before.min() - 1e-6 <= after.min()
            assert after.max() <= before.max() + 1e-6

    check()


def test_a_spline_that_overshoots_is_clipped_to_the_range_of_each_channel() -> None:
    binary = np.random.default_rng(0).integers(0, 2, (1, 12, 12, 12)).astype(np.float32)
    overshooting = zoom(binary[0].astype(float), 2, order=3, mode="nearest", grid_mode=True)
    assert overshooting.min() < -0.1
    assert overshooting.max() > 1.1
    ours = resample_images(np.concatenate([binary, 3 * binary - 1]), (24, 24, 24), *ISOTROPIC)
    assert [(channel.min(), channel.max()) for channel in ours] == [(0, 1), (-1, 2)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_that_is_resampled_by_itself_is_clipped_to_its_own_range(axis: int) -> None:
    """Slices of 0 and 1, 10 and 11, ...: the range of the whole volume would let each of them overshoot."""
    slices = np.random.default_rng(0).integers(0, 2, (5, 12, 12)) + 10 * np.arange(5)[:, None, None]
    channels = np.moveaxis(slices, 0, axis).astype(np.float32)[None]
    spacing = [5.0 if a == axis else 1.0 for a in range(3)]
    new_shape = [10 if a == axis else 23 for a in range(3)]
    ours = np.moveaxis(resample_images(channels, new_shape, spacing, spacing, force_separate_z=None)[0], axis, 0)
    assert [(s.min(), s.max()) for s in ours] == [(10 * (i // 2), 10 * (i // 2) + 1) for i in range(10)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_constant_image_stays_what_it_is_to_the_last_bit(order: int) -> None:
    channels = np.full((1, 9, 10, 11), 0.1, np.float32)
    assert np.all(resample_images(channels, (17, 4, 33), *ISOTROPIC, order=order) == np.float32(0.1))


@examples(100)
@given(st.sampled_from(AXES).flatmap(lambda apart: geometries(apart, 12)), KINDS, SEEDS, st.sampled_from(ORDERS))
def test_the_image_that_is_resampled_is_not_changed(
    geometry: Geometry, kinds: list[str], seed: int, order: int
) -> None:
    channels = images(kinds, geometry.shape, seed)
    before = channels.copy()
    resample_images(channels, *geometry.arguments, order=order, force_separate_z=geometry.force_separate_z)
    assert np.array_equal(channels, before)


def test_an_image_whose_shape_does_not_change_is_handed_back() -> None:
    channels = images(["noise"], (4, 5, 6), 0)
    assert resample_images(channels, (4, 5, 6), (1, 1, 1), (1.01, 1, 1)) is channels
    assert resample_images(channels, np.array([4, 5, 6]), (1, 1, 1), (1.01, 1, 1)) is channels


@pytest.mark.parametrize("axes", [(0, 3, 1, 2), (0, 2, 1, 3), (0, 3, 2, 1)])
@pytest.mark.parametrize("apart", AXES)
def test_a_transposed_and_cropped_image_is_resampled_as_its_copy(apart: int | None, axes: tuple[int, ...]) -> None:
    view = images(["noise", "smooth"], (14, 15, 16), 0).transpose(axes)[:, 1:-2, 2:, :-1]
    spacing = tuple(4.0 if axis == apart else 1.0 for axis in range(3))
    geometry = ((18, 7, 20), spacing, spacing)
    ours = resample_images(view, *geometry, force_separate_z=None)
    stock = resample_data_or_seg_to_shape(view, *geometry, force_separate_z=None)
    np.testing.assert_allclose(ours, stock, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("shape", "spacing"), [((150, 9, 7), (0.8, 0.9, 1.1)), ((5, 220, 6), (3.0, 0.43, 0.7))])
def test_long_axes_are_resampled_as_stock_nnunet_does(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    channels = images(["noise", "smooth"], shape, 0)
    new_shape = compute_new_shape(shape, spacing, (1.0, 1.0, 1.0))
    geometry = Geometry(shape, tuple(new_shape), spacing, (1.0, 1.0, 1.0), None)
    assert largest_difference(geometry, channels, 3, 0) <= 1e-4
