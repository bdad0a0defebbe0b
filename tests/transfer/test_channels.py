"""The channel rules against numpy and against the convolution itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv3d

import nnunetv2_ext
from nnunetv2_ext.transfer.channels import adapt_input_channels, map_input_channels
from tests.transfer import references

MAPS = st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=6)
CHECKPOINT = Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc" / "checkpoint_final.pth"


@pytest.fixture(scope="module")
def stem() -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.load(CHECKPOINT, weights_only=True)["network_weights"]
    return weights["encoder.stem.convs.0.conv.weight"], weights["encoder.stem.convs.0.conv.bias"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_the_sum_over_input_channels_stays(before: int, after: int, seed: int) -> None:
    weight = torch.randn(4, before, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    adapted = adapt_input_channels(weight, after)
    assert adapted.shape == (4, after, 3, 3, 3)
    torch.testing.assert_close(adapted.sum(1), weight.sum(1))


@pytest.mark.parametrize("num_channels", [2, 3, 4])
def test_an_image_repeated_in_all_channels_gives_the_stem_output_of_one(
    stem: tuple[torch.Tensor, torch.Tensor], num_channels: int
) -> None:
    weight, bias = stem
    image = torch.randn(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    many = conv3d(image.repeat(1, num_channels, 1, 1, 1), adapt_input_channels(weight, num_channels), bias, padding=1)
    torch.testing.assert_close(many, conv3d(image, weight, bias, padding=1))


@pytest.mark.parametrize(("before", "after"), [(3, 1), (2, 3), (4, 2)])
def test_a_network_of_several_channels_is_adapted_in_both_directions(before: int, after: int) -> None:
    weight = torch.randn(8, before, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    image = torch.randn(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(2))
    adapted = conv3d(image.repeat(1, after, 1, 1, 1), adapt_input_channels(weight, after), padding=1)
    pretrained = conv3d(image.repeat(1, before, 1, 1, 1), weight, padding=1)
    torch.testing.assert_close(adapted, pretrained, atol=1e-5, rtol=1e-5)


def test_one_channel_is_repeated_and_divided_as_nnssl_does(stem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, _ = stem
    torch.testing.assert_close(adapt_input_channels(weight, 4), weight.repeat(1, 4, 1, 1, 1) / 4)


def test_a_patch_embedding_is_adapted_by_the_same_rule() -> None:
    weight = torch.randn(16, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3))
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(4))
    many = conv3d(image.repeat(1, 2, 1, 1, 1), adapt_input_channels(weight, 2), stride=8)
    torch.testing.assert_close(many, conv3d(image, weight, stride=8), atol=1e-4, rtol=1e-5)


def test_the_type_stays_and_half_precision_is_summed_in_full() -> None:
    weight = torch.full((1, 4096, 1, 1, 1), 0.1, dtype=torch.float16)
    adapted = adapt_input_channels(weight, 1)
    assert adapted.dtype == torch.float16
    assert adapted.item() == pytest.approx(4096 * weight[0, 0].item(), rel=1e-3)


def test_the_pretrained_weight_is_not_touched() -> None:
    weight = torch.randn(4, 1, 3, 3, 3)
    before = weight.clone()
    adapt_input_channels(weight, 2).mul_(7)
    assert torch.equal(weight, before)


@settings(max_examples=60, deadline=None)
@given(MAPS, st.integers(0, 2**31))
def test_a_map_copies_what_it_names_and_leaves_the_rest_zero(channel_map: list[int | None], seed: int) -> None:
    weight = torch.randn(5, 4, 3, 1, 3, generator=torch.Generator().manual_seed(seed))
    mapped = map_input_channels(weight, channel_map)
    assert mapped.dtype == weight.dtype
    np.testing.assert_array_equal(mapped.numpy(), references.mapped_channels(weight.numpy(), channel_map))


@settings(max_examples=40, deadline=None)
@given(st.permutations([0, 1, 2, None, None]), st.integers(0, 2**31))
def test_on_the_mapped_channels_the_stem_gives_what_it_gave_whatever_is_in_the_others(
    channel_map: list[int | None], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = torch.nn.Conv3d(3, 4, 3, padding=1), torch.nn.Conv3d(5, 4, 3, padding=1)
    after.weight.data, after.bias.data = map_input_channels(before.weight.data, channel_map), before.bias.data
    known = torch.randn(1, 3, 6, 7, 8, generator=generator)
    others = 1000 * torch.randn(1, 1, 6, 7, 8, generator=generator)
    image = torch.cat([others if c is None else known[:, c : c + 1] for c in channel_map], dim=1)
    torch.testing.assert_close(after(image), before(known), atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_sharing_equals_numpy(before: int, after: int, seed: int) -> None:
    weight = torch.randn(4, before, 3, 3, 1, generator=torch.Generator().manual_seed(seed))
    expected = references.shared_channels(weight.numpy(), after)
    np.testing.assert_allclose(adapt_input_channels(weight, after).numpy(), expected, atol=1e-6)


def test_mapping_does_not_touch_the_pretrained_weight() -> None:
    weight = torch.randn(4, 2, 3, 3, 3)
    before = weight.clone()
    map_input_channels(weight, [1, None, 0]).mul_(7)
    assert torch.equal(weight, before)
