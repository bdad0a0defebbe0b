"""The rules for kernels against numpy, and against what the convolutions compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool3d, conv3d, conv_transpose3d, interpolate

from nnunetv2_ext.transfer.kernels import (
    adapt_kernel,
    adapt_transposed_kernel,
    has_kernel_rule,
    has_transposed_rule,
)
from tests.transfer import references

Size = tuple[int, int, int]
ODD = st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3)
STRIDES = st.tuples(*[st.sampled_from([1, 2])] * 3)
FACTORS = st.tuples(*[st.sampled_from([1, 2, 3])] * 3)
LARGER: list[tuple[Size, Size]] = [
    ((1, 1, 1), (3, 3, 3)),
    ((3, 3, 3), (5, 5, 5)),
    ((1, 3, 3), (3, 3, 3)),
    ((1, 3, 3), (5, 3, 7)),
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_size(image: torch.Tensor, weight: torch.Tensor, stride: Size = (1, 1, 1)) -> torch.Tensor:
    """A convolution with nnU-Net's padding, half the kernel."""
    return conv3d(image, weight, stride=stride, padding=tuple((k - 1) // 2 for k in weight.shape[2:]))


@settings(max_examples=60, deadline=None)
@given(ODD, ODD, st.integers(0, 2**31))
def test_any_odd_size_to_any_other_equals_numpy(source: Size, target: Size, seed: int) -> None:
    weight = random(3, 2, *source, seed=seed)
    adapted = adapt_kernel(weight, target)
    assert adapted.shape == (3, 2, *target)
    np.testing.assert_allclose(adapted.numpy(), references.kernel(weight.numpy(), target), atol=1e-12)


def test_three_to_one_is_the_mean_along_the_axis() -> None:
    weight = random(4, 3, 3, 3, 3)
    torch.testing.assert_close(adapt_kernel(weight, (1, 3, 3)), weight.mean(2, keepdim=True))


@pytest.mark.parametrize(("source", "target"), LARGER)
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
def test_a_larger_kernel_computes_the_same_up_to_the_border(source: Size, target: Size, stride: Size) -> None:
    weight, image = random(4, 3, *source), random(1, 3, 9, 10, 11, seed=1)
    torch.testing.assert_close(same_size(image, adapt_kernel(weight, target), stride), same_size(image, weight, stride))


@settings(max_examples=30, deadline=None)
@given(ODD, st.integers(0, 2**31))
def test_fewer_taps_keep_the_sum_along_every_axis(source: Size, seed: int) -> None:
    weight = random(2, 2, *source, seed=seed)
    target = tuple(max(k - 2, 3) if k > 1 else 1 for k in source)
    torch.testing.assert_close(adapt_kernel(weight, target).sum((2, 3, 4)), weight.sum((2, 3, 4)))


def test_five_to_three_gives_a_constant_image_the_output_it_had() -> None:
    weight, image = random(4, 3, 5, 5, 5), torch.full((1, 3, 11, 11, 11), 0.7, dtype=torch.float64)
    smaller, larger = conv3d(image, adapt_kernel(weight, (3, 3, 3))), conv3d(image, weight)
    torch.testing.assert_close(smaller[..., 0, 0, 0], larger[..., 0, 0, 0])


def test_five_to_three_keeps_the_centre_tap() -> None:
    weight = random(4, 3, 5, 5, 5)
    assert torch.equal(adapt_kernel(weight, (3, 3, 3))[..., 1, 1, 1], weight[..., 2, 2, 2])


def test_a_larger_kernel_and_back_is_the_same() -> None:
    weight = random(4, 3, 3, 3, 3)
    assert torch.equal(adapt_kernel(adapt_kernel(weight, (5, 7, 3)), (3, 3, 3)), weight)


@settings(max_examples=40, deadline=None)
@given(FACTORS, STRIDES, st.integers(0, 2**31))
def test_transposed_kernels_equal_numpy(source: Size, target: Size, seed: int) -> None:
    target = tuple(s if 1 not in (s, t) else t for s, t in zip(source, target, strict=True))
    weight = random(3, 2, *source, seed=seed)
    adapted = adapt_transposed_kernel(weight, target)
    assert adapted.shape == (3, 2, *target)
    np.testing.assert_allclose(adapted.numpy(), references.transposed_kernel(weight.numpy(), target), atol=1e-12)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_a_new_stride_upsamples_the_old_output_to_the_nearest(stride: Size) -> None:
    weight, image = random(3, 2, 1, 1, 1), random(1, 3, 3, 4, 5, seed=1)
    strided = conv_transpose3d(image, adapt_transposed_kernel(weight, stride), stride=stride)
    torch.testing.assert_close(strided, interpolate(conv_transpose3d(image, weight), scale_factor=stride))


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_without_the_stride_the_output_is_the_old_ones_block_mean(stride: Size) -> None:
    weight, image = random(3, 2, *stride), random(1, 3, 3, 4, 5, seed=1)
    unstrided = conv_transpose3d(image, adapt_transposed_kernel(weight, (1, 1, 1)))
    torch.testing.assert_close(unstrided, avg_pool3d(conv_transpose3d(image, weight, stride=stride), stride, stride))


def test_one_axis_of_a_transposed_kernel_changes_without_the_others() -> None:
    weight, image = random(3, 2, 1, 2, 2), random(1, 3, 3, 4, 5, seed=1)
    old = conv_transpose3d(image, weight, stride=(1, 2, 2))
    new = conv_transpose3d(image, adapt_transposed_kernel(weight, (2, 2, 2)), stride=(2, 2, 2))
    torch.testing.assert_close(new, interpolate(old, scale_factor=(2, 1, 1)))


@pytest.mark.parametrize(
    ("source", "target", "known"),
    [
        ((3, 3, 3), (3, 3, 3), True),
        ((1, 3, 3), (3, 5, 1), True),
        ((2, 3, 3), (2, 1, 5), True),
        ((2, 3, 3), (3, 3, 3), False),
        ((3, 3, 3), (3, 3, 4), False),
        ((8, 8, 8), (2, 8, 8), False),
        ((2, 2, 2), (1, 2, 2), False),
        ((3, 3), (3, 3, 3), False),
    ],
)
def test_kernels_without_a_centre_have_no_rule(source: tuple[int, ...], target: Size, known: bool) -> None:
    assert has_kernel_rule(source, target) is known


@pytest.mark.parametrize(
    ("source", "target", "known"),
    [
        ((2, 2, 2), (1, 2, 2), True),
        ((1, 2, 2), (2, 2, 2), True),
        ((4, 1, 2), (1, 4, 2), True),
        ((2, 2, 2), (4, 2, 2), False),
        ((2, 2), (2, 2, 2), False),
    ],
)
def test_strides_have_a_rule_only_from_and_to_one(source: tuple[int, ...], target: Size, known: bool) -> None:
    assert has_transposed_rule(source, target) is known


@pytest.mark.parametrize("target", [(3, 3, 3), (1, 3, 3), (5, 5, 5), (1, 1, 1), (5, 1, 3)])
def test_the_pretrained_weight_is_not_touched(target: Size) -> None:
    weight = random(2, 2, 5, 3, 3)
    before = weight.clone()
    adapt_kernel(weight, target)
    adapt_transposed_kernel(weight[:, :, :1, :1, :1], (2, 2, 2)).mul_(7)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("target", [(1, 3, 3), (3, 3, 3), (7, 7, 7)])
def test_the_type_stays(target: Size) -> None:
    assert adapt_kernel(random(2, 2, 5, 5, 5).to(torch.bfloat16), target).dtype == torch.bfloat16
