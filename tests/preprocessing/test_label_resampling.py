"""Labels are resampled as the installed nnU-Net does; only where two labels tie exactly may rounding decide."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from scipy.ndimage import distance_transform_edt

from nnunetv2_ext.datasets.mni import make_mni_dataset
from nnunetv2_ext.preprocessing.resampling import resample_labels
from tests.preprocessing.generated import AXES, SEEDS, Geometry, examples, geometries, label_maps

DTYPES = st.sampled_from(["float32", "int16", "int32", "int8"])
NUMBERS = st.sampled_from([1, 2, 3, 5, 12, 40])
UNIT = (1.0, 1.0, 1.0)


def stock(labels: np.ndarray, geometry: Geometry, order: int = 1) -> np.ndarray:
    return resample_data_or_seg_to_shape(
        labels, *geometry.arguments, is_seg=True, order=order, order_z=0, force_separate_z=geometry.force_separate_z
    )


def ours(labels: np.ndarray, geometry: Geometry, order: int = 1) -> np.ndarray:
    return resample_labels(labels, *geometry.arguments, order=order, force_separate_z=geometry.force_separate_z)


def to(shape: tuple[int, ...], new_shape: tuple[int, ...]) -> Geometry:
    return Geometry(shape, new_shape, UNIT, UNIT, False)


def weights(before: int, after: int, linear: bool) -> np.ndarray:
    """What each input voxel (column) adds to each output voxel (row), from fractions."""
    position = [Fraction(2 * i + 1, 2) * Fraction(before, after) - Fraction(1, 2) for i in range(after)]
    if not linear:
        return np.eye(before)[[min(max(int((p + Fraction(1, 2)) // 1), 0), before - 1) for p in position]]
    exact = np.array([float(p) for p in position])
    return np.stack([np.interp(exact, np.arange(before), unit) for unit in np.eye(before)], axis=1)


def scores(labels: np.ndarray, wanted: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The interpolated indicator of `wanted[voxel]` at every voxel of the result; `labels` is `(z, y, x)`."""
    _, apart = determine_do_sep_z_and_axis(geometry.force_separate_z, geometry.spacing, geometry.new_spacing)
    matrices = [
        weights(before, after, axis != apart)
        for axis, (before, after) in enumerate(zip(geometry.shape, geometry.new_shape, strict=True))
    ]
    result = np.zeros(geometry.new_shape)
    for label in np.unique(wanted):
        score = np.einsum("ai,bj,ck,ijk->abc", *matrices, (labels == label).astype(float), optimize=True)
        result[wanted == label] = score[wanted == label]
    return result


def largest_score(labels: np.ndarray, geometry: Geometry) -> np.ndarray:
    everywhere = [np.full(geometry.new_shape, label) for label in np.unique(labels)]
    return np.max([scores(labels, wanted, geometry) for wanted in everywhere], axis=0)


def assert_equal_but_for_ties(labels: np.ndarray, geometry: Geometry) -> None:
    expected, found = stock(labels, geometry), ours(labels, geometry)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == labels.dtype
    for before, theirs, own in zip(labels, expected, found, strict=True):
        differ = theirs != own
        if differ.any():
            gap = scores(before, theirs, geometry) - scores(before, own, geometry)
            assert np.abs(gap[differ]).max() < 1e-9


@pytest.mark.parametrize("blocky", [True, False])
@pytest.mark.parametrize("apart", AXES)
def test_labels_are_stock_nnunets_but_for_exact_ties(apart: int | None, blocky: bool) -> None:
    @examples(60)
    @given(geometries(apart, 14), NUMBERS, DTYPES, SEEDS)
    def check(geometry: Geometry, number: int, dtype: str, seed: int) -> None:
        assert_equal_but_for_ties(label_maps(blocky, number, dtype, geometry.shape, seed), geometry)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("blocky", [True, False])
@pytest.mark.parametrize("apart", AXES)
def test_thousands_of_label_maps_are_stock_nnunets_but_for_exact_ties(apart: int | None, blocky: bool) -> None:
    @examples(500)
    @given(geometries(apart, 20), NUMBERS, DTYPES, SEEDS)
    def check(geometry: Geometry, number: int, dtype: str, seed: int) -> None:
        assert_equal_but_for_ties(label_maps(blocky, number, dtype, geometry.shape, seed), geometry)

    check()


@pytest.mark.parametrize("apart", AXES)
def test_no_other_label_has_a_larger_interpolated_indicator(apart: int | None) -> None:
    """By fractions and numpy alone: neither nnU-Net nor its libraries have a say here."""

    @examples(60)
    @given(geometries(apart, 10), NUMBERS, st.booleans(), SEEDS)
    def check(geometry: Geometry, number: int, blocky: bool, seed: int) -> None:
        labels = label_maps(blocky, number, "int16", geometry.shape, seed)
        own = scores(labels[0], ours(labels, geometry)[0], geometry)
        assert np.abs(own - largest_score(labels[0], geometry)).max() < 1e-9

    check()


@pytest.mark.parametrize("apart", AXES)
def test_with_order_0_labels_are_stock_nnunets_in_every_voxel(apart: int | None) -> None:
    @examples(100)
    @given(geometries(apart, 20), NUMBERS, DTYPES, SEEDS)
    def check(geometry: Geometry, number: int, dtype: str, seed: int) -> None:
        labels = label_maps(False, number, dtype, geometry.shape, seed)
        expected, found = stock(labels, geometry, 0), ours(labels, geometry, 0)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)

    check()


@pytest.mark.parametrize("factor", [2, 4, (1, 2), (1, 4), (4, 2, 1), ((1, 2), 1, 2)], ids=str)
@pytest.mark.parametrize("number", [2, 3, 40])
@pytest.mark.parametrize("blocky", [True, False])
def test_by_powers_of_two_where_ties_are_everywhere_labels_are_stock_nnunets_in_every_voxel(
    blocky: bool, number: int, factor: object
) -> None:
    factors = factor if isinstance(factor, tuple) and len(factor) == 3 else (factor,) * 3
    ratios = [Fraction(*f) if isinstance(f, tuple) else Fraction(f) for f in factors]
    shape = (16, 12, 20)
    geometry = to(shape, tuple(int(n * ratio) for n, ratio in zip(shape, ratios, strict=True)))
    labels = label_maps(blocky, number, "int16", shape, 0)
    assert np.array_equal(ours(labels, geometry), stock(labels, geometry))


@pytest.mark.parametrize("new", [3, 6, 9, 10, 18, 25, 30])
def test_a_plane_half_way_between_two_labels_goes_to_stock_nnunets_side(new: int) -> None:
    for axis in range(3):
        labels = np.zeros((1, 6, 6, 6), np.int16)
        labels[(slice(None),) * (axis + 1) + (slice(3, None),)] = 7
        geometry = to((6, 6, 6), tuple(new if a == axis else 6 for a in range(3)))
        assert np.array_equal(ours(labels, geometry), stock(labels, geometry))
        flipped = 7 - labels
        assert np.array_equal(ours(flipped, geometry), stock(flipped, geometry))


@pytest.mark.parametrize("blocky", [True, False])
@pytest.mark.parametrize("number", [0, 1, 300, 700])
def test_hundreds_of_labels_are_stock_nnunets(number: int, blocky: bool) -> None:
    for new_shape in ((13, 17, 11), (20, 24, 18), (7, 8, 9)):
        geometry = to((10, 12, 9), new_shape)
        assert_equal_but_for_ties(label_maps(blocky, max(number, 1), "int16", geometry.shape, number), geometry)


RATIOS = [1 / 3, 0.5, 2 / 3, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 6.0, 7.0]


def test_fewer_than_one_in_100000_of_millions_of_voxels_differ_from_stock_nnunet() -> None:
    """At whole and simple ratios labels tie nearly everywhere, also where the outermost voxels go on."""
    different = total = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        shape = tuple(int(n) for n in rng.integers(1, 16, 3))
        ratio = [rng.choice([*RATIOS, rng.uniform(0.4, 2.5)]) for _ in range(3)]
        new_shape = tuple(int(n) for n in np.clip(np.round(np.multiply(shape, ratio)), 1, None))
        apart = [None, None, None, 0, 1, 2][seed % 6]
        spacing = tuple(4.0 if axis == apart else 1.0 for axis in range(3))
        geometry = Geometry(shape, new_shape, spacing, spacing, None)
        labels = label_maps(seed % 4 == 0, int(rng.integers(2, 12)), "int16", shape, seed)
        different += np.count_nonzero(ours(labels, geometry) != stock(labels, geometry))
        total += int(np.prod(new_shape))
    assert total > 2_000_000
    assert different < total / 100_000, f"{different} of {total} voxels differ"


@pytest.mark.parametrize("factor", [3, 5, 6, (3, 5, 1), (3, 1, 1.5)], ids=str)
def test_ties_beyond_the_outermost_voxels_round_as_stock_nnunets(factor: object) -> None:
    """Thirds have no exact floating point number: how a weight is summed up decides which label wins."""
    different = total = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shape = tuple(int(n) for n in rng.integers(1, 10, 3))
        geometry = to(shape, tuple(int(n) for n in np.maximum(np.round(np.multiply(shape, factor)), 1)))
        labels = label_maps(False, 3 + 9 * (seed % 2), "int16", shape, seed)
        different += np.count_nonzero(ours(labels, geometry) != stock(labels, geometry))
        total += int(np.prod(geometry.new_shape))
    assert different <= total / 100_000, f"{different} of {total} voxels differ"


@pytest.fixture(scope="module")
def parcellated(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Grey and white matter of an MNI subject, each cut into the regions nearest to 15 of its voxels; -1 outside."""
    folder = tmp_path_factory.mktemp("mni") / "raw"
    make_mni_dataset(folder, num_subjects=1, num_test_subjects=0, crop=(60, 70, 50), spacings=(UNIT,))
    return parcels(folder / "labelsTr" / "MNI_000.nii.gz")


def parcels(path: Path) -> np.ndarray:
    tissues = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    result = np.where(np.indices(tissues.shape)[0] < 5, -1, 0).astype(np.int16)
    rng = np.random.default_rng(0)
    for tissue in (1, 2):
        where = np.argwhere(tissues == tissue)
        seeds = np.zeros(tissues.shape, np.int16)
        seeds[tuple(where[rng.choice(len(where), 15, replace=False)].T)] = 100 * tissue + np.arange(15)
        nearest = distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
        result[tissues == tissue] = seeds[tuple(nearest)][tissues == tissue]
    return result[None]


@pytest.mark.parametrize("new_spacing", [(0.8, 0.8, 0.8), (1.3, 0.9, 1.0), (2.0, 0.5, 0.5)])
def test_thirty_regions_of_a_brain_are_stock_nnunets(parcellated: np.ndarray, new_spacing: tuple[float, ...]) -> None:
    assert len(np.unique(parcellated)) == 32
    shape = parcellated.shape[1:]
    geometry = Geometry(shape, tuple(compute_new_shape(shape, UNIT, new_spacing)), UNIT, new_spacing, None)
    different = np.count_nonzero(ours(parcellated, geometry) != stock(parcellated, geometry))
    assert different < np.prod(geometry.new_shape) / 100_000


@examples(100)
@given(st.sampled_from(AXES).flatmap(lambda apart: geometries(apart, 10)), NUMBERS, SEEDS, st.sampled_from([0, 1]))
def test_the_label_map_that_is_resampled_is_not_changed(geometry: Geometry, number: int, seed: int, order: int) -> None:
    labels = label_maps(False, number, "int16", geometry.shape, seed)
    before = labels.copy()
    ours(labels, geometry, order)
    assert np.array_equal(labels, before)


@examples(100)
@given(st.sampled_from(AXES).flatmap(lambda apart: geometries(apart, 10)), NUMBERS, SEEDS, st.booleans())
def test_no_label_appears_that_was_not_there(geometry: Geometry, number: int, seed: int, blocky: bool) -> None:
    labels = label_maps(blocky, number, "int16", geometry.shape, seed)
    assert set(np.unique(ours(labels, geometry))) <= set(np.unique(labels))


def test_several_channels_are_resampled_each_by_itself() -> None:
    labels = label_maps(True, 5, "int16", (9, 10, 11), 0, channels=3)
    geometry = to((9, 10, 11), (15, 7, 20))
    assert np.array_equal(ours(labels, geometry), stock(labels, geometry))


def test_labels_whose_shape_does_not_change_are_handed_back() -> None:
    labels = label_maps(False, 5, "int16", (4, 5, 6), 0)
    assert ours(labels, to((4, 5, 6), (4, 5, 6))) is labels


@pytest.mark.parametrize("apart", AXES)
def test_a_transposed_and_cropped_label_map_is_resampled_as_its_copy(apart: int | None) -> None:
    view = label_maps(True, 6, "int16", (14, 15, 16), 0).transpose(0, 3, 1, 2)[:, 1:-2, 2:, :-1]
    spacing = tuple(4.0 if axis == apart else 1.0 for axis in range(3))
    geometry = Geometry(view.shape[1:], (18, 7, 20), spacing, spacing, None)
    assert np.array_equal(ours(view, geometry), stock(view, geometry))


def test_where_three_labels_tie_the_nearest_or_else_the_smallest_wins() -> None:
    """Output voxel (0, 0, 0) of a cell of eight voxels lies in its middle; its nearest neighbour is the last corner."""
    cell = np.array([5, 9, 5, 9, 3, 3, 8, 7], np.int16).reshape(1, 2, 2, 2)
    assert ours(cell, to((2, 2, 2), (1, 1, 1))).item() == 3  # 3, 5 and 9 tie, the nearest (7) is not among them
    cell[0, 1, 1] = [9, 9]
    cell[0, 0] = [[5, 5], [5, 5]]
    assert ours(cell, to((2, 2, 2), (1, 1, 1))).item() == 5  # four of eight
    cell[0, 0, 0, 0] = cell[0, 1, 0, 1] = 3
    cell[0, 1, 0, 0] = 9
    assert sorted(cell.ravel()) == [3, 3, 5, 5, 5, 9, 9, 9]
    assert ours(cell, to((2, 2, 2), (1, 1, 1))).item() == 9  # 5 and 9 tie, 9 is the nearest
