"""The nonzero crop and the samples of the foreground are nnU-Net's own, voxel for voxel and draw for draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunetv2_ext.preprocessing.foreground import nonzero_box, sample_locations
from tests.preprocessing.generated import SEEDS, examples

SHAPES = st.tuples(*[st.sampled_from([1, 2, 3, *range(1, 13)])] * 3)


def assert_crop_is_nnunets(images: np.ndarray) -> None:
    before = images.copy()
    box, nonzero = nonzero_box(images)
    _, labels, stock_box = crop_to_nonzero(images, np.zeros((1, *images.shape[1:]), np.int16))
    assert box == stock_box
    assert all(type(edge) is int for extent in box for edge in extent)  # they are pickled
    assert nonzero.dtype == bool
    assert np.array_equal(nonzero, labels[0] != -1)
    assert np.array_equal(images, before)


@examples(500)
@given(SHAPES, st.integers(1, 3), st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 0.99, 1.0]), SEEDS)
def test_the_box_and_what_lies_outside_are_nnunets(
    shape: tuple[int, ...], channels: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size = (channels, *shape)
    assert_crop_is_nnunets((rng.normal(size=size) * (rng.random(size) < density)).astype(np.float32))


@examples(300)
@given(st.tuples(*[st.integers(5, 14)] * 3), st.integers(1, 6), SEEDS)
def test_hollow_shells_and_holes_that_touch_the_border_are_nnunets(
    shape: tuple[int, ...], number: int, seed: int
) -> None:
    """Boxes, each hollowed out, some of them cut by the border, opened, or one inside the other."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    for _ in range(number):
        start = rng.integers(-3, np.array(shape) - 2)
        stop = start + rng.integers(3, 9, 3)
        outer = tuple(slice(max(a, 0), b) for a, b in zip(start, stop, strict=True))
        inner = tuple(slice(max(a + 1, 0), max(b - 1, 0)) for a, b in zip(start, stop, strict=True))
        image[outer] = 1
        image[inner] = 0
        if rng.random() < 0.3:  # a pinhole
            image[tuple(rng.integers(0, shape))] = 0
    assert_crop_is_nnunets(image[None])


def test_what_a_shell_encloses_belongs_to_the_nonzero_region_and_what_a_pinhole_opens_does_not() -> None:
    shell = np.zeros((1, 9, 9, 9), np.float32)
    shell[0, 1:8, 1:8, 1:8] = 1
    shell[0, 2:7, 2:7, 2:7] = 0
    box, nonzero = nonzero_box(shell)
    assert box == [[1, 8], [1, 8], [1, 8]]
    assert nonzero.all()
    shell[0, 1, 4, 4] = 0
    assert np.count_nonzero(~nonzero_box(shell)[1]) == 5**3 + 1
    shell[0, 1, 4, 4], shell[0, 1, 1, 1], shell[0, 2, 1, 1] = 1, 0, 0
    assert np.count_nonzero(~nonzero_box(shell)[1]) == 2  # an edge of a shell opens nothing: faces have to touch


def test_an_image_of_zeros_is_kept_whole_and_all_of_it_lies_outside() -> None:
    box, nonzero = nonzero_box(np.zeros((2, 3, 4, 5), np.float32))
    assert box == [[0, 3], [0, 4], [0, 5]]
    assert nonzero.shape == (3, 4, 5)
    assert not nonzero.any()


def test_an_image_without_zeros_is_kept_whole_and_none_of_it_lies_outside() -> None:
    box, nonzero = nonzero_box(np.full((1, 3, 4, 5), -7, np.float32))
    assert box == [[0, 3], [0, 4], [0, 5]]
    assert nonzero.all()


def test_a_transposed_image_is_cropped_as_nnunet_does() -> None:
    image = np.zeros((1, 7, 8, 9), np.float32)
    image[0, 2:5, 1:7, 3:8] = 1
    image[0, 3, 3, 5] = 0
    assert_crop_is_nnunets(image.transpose(0, 3, 1, 2))


def assert_samples_are_nnunets(labels: np.ndarray, classes: Sequence[Any]) -> None:
    ours = sample_locations(labels, classes)
    stock = DefaultPreprocessor._sample_foreground_locations(labels, classes)
    assert list(ours) == list(stock)
    assert [type(key) for key in ours] == [type(key) for key in stock]
    for key, expected in stock.items():
        assert type(ours[key]) is type(expected)
        if isinstance(expected, list):
            assert ours[key] == expected == []
        else:
            assert ours[key].dtype == expected.dtype
            assert np.array_equal(ours[key], expected)


LABEL = st.integers(-1, 7)
REGION = st.lists(LABEL, min_size=1, max_size=4)
CLASSES = st.lists(LABEL, max_size=6) | st.lists(REGION.map(tuple), max_size=4) | st.lists(LABEL | REGION, max_size=6)


@examples(400)
@given(SHAPES, CLASSES, st.sampled_from(["int8", "int16", "int32", "float32"]), SEEDS)
def test_samples_of_labels_and_regions_are_nnunets(
    shape: tuple[int, ...], classes: list[Any], dtype: str, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(-1, 6, (1, *shape)).astype(dtype)
    assert_samples_are_nnunets(labels, classes)


@pytest.mark.parametrize(
    "classes",
    [
        [1, 2, 3],
        [np.int64(1), np.int64(3)],  # as nnU-Net's LabelManager gives them
        [(1, 2, 3), (2, 3), (3,)],
        [(1, 2, 3), (2, 3), 3],
        [[1, 2, 3], [2, 9]],
        [1, 2, 3, [-1, 0, 1, 2, 3]],  # with an ignore label
        [(1, 2), (2,), [-1, np.int64(0), np.int64(1), np.int64(2)]],
        [3, 2, 1],
        [9, 1],  # one is not there
        [9, (8, 10)],  # none is
        [(1, 2), (1, 2), 3],  # the same region under two names
        [],
        [0],
        [-1],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_samples_of_large_label_maps_are_nnunets(dtype: str, classes: list[Any]) -> None:
    """Classes of 1.9 million, 40,000, 3,000 and 20 voxels: thinned out to 1 %, to 10,000, and not at all."""
    rng = np.random.default_rng(0)
    labels = np.ones(130 * 125 * 120, dtype)
    labels[:40_000], labels[40_000:43_000], labels[43_000:43_020], labels[43_020:50_000] = 2, 3, 0, -1
    assert_samples_are_nnunets(rng.permutation(labels).reshape(1, 130, 125, 120), classes)


@pytest.mark.parametrize("classes", [[1, 300], [(1, 300), 2], [-1, 0, 1, 300]], ids=str)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float32"])
def test_a_class_that_the_label_maps_type_cannot_hold_has_no_samples(dtype: str, classes: list[Any]) -> None:
    """nnU-Net's own resampling with torch gives int8 where a case has no label above 126, whatever others have."""
    labels = np.random.default_rng(0).integers(0, 3, (1, 5, 6, 7)).astype(dtype)
    assert_samples_are_nnunets(labels, classes)


def test_each_sample_lies_in_its_class_and_none_is_drawn_twice() -> None:
    labels = np.random.default_rng(0).integers(-1, 4, (1, 40, 41, 42)).astype(np.int16)
    for key, samples in sample_locations(labels, [1, 2, (1, 3), (-1, 0, 1)]).items():
        assert set(np.unique(labels[tuple(samples.T)])) == set(np.atleast_1d(key))
        assert len(np.unique(samples, axis=0)) == len(samples)


@pytest.mark.parametrize(("voxels", "least"), [(1, 1), (9_999, 9_999), (10_001, 10_000), (1_000_101, 10_002)])
def test_ten_thousand_samples_are_drawn_or_all_voxels_or_one_per_cent(voxels: int, least: int) -> None:
    labels = np.zeros((1, 1, 1, 1_000_200), np.int16)
    labels[..., :voxels] = 1
    assert len(sample_locations(labels, [1])[1]) == least


def test_samples_are_spread_over_the_whole_class() -> None:
    labels = np.ones((1, 64, 64, 64), np.int16)
    samples = sample_locations(labels, [1])[1]
    assert np.abs(samples.mean(0) - [0, 31.5, 31.5, 31.5]).max() < 1
    assert np.abs(samples.std(0) - [0, 18.5, 18.5, 18.5]).max() < 1
