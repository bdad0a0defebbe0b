"""Which rule a tensor gets by its shape, and the words for why none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_ext.transfer.matching import NetworkTensor
from nnunetv2_ext.transfer.rules import Fit, Surroundings, fit
from tests.transfer import references
from tests.transfer.networks import PLAIN_KEYS, PRIMUS_KEYS

STEM = "encoder.stages.0.0.convs.0.conv.weight"
CONV = "encoder.stages.1.0.convs.0.conv.weight"
UPSAMPLING = "decoder.transpconvs.0.weight"
POSITION = "eva.pos_embed"
WIDTHS = st.sampled_from([(2, 2), (2, 2), (2, 3), (3, 2)])
KERNELS = st.one_of(*[st.tuples(*[st.sampled_from(sizes)] * 3) for sizes in ([1, 3, 5], [1, 2], [1, 2, 3, 4, 5])])
SIZES = st.tuples(*[st.integers(1, 5)] * 3)


def surroundings(**more: object) -> Surroundings:
    values = {
        "own": PLAIN_KEYS, "token_size": (8, 8, 8), "pretrain_token_size": (8, 8, 8), "pretrain_patch_size": None,
        "patch_size": (32, 32, 32), "channel_map": None,
    }  # fmt: skip
    return Surroundings(**{**values, **more})  # type: ignore[arg-type]


def fitted(
    name: str, shape: tuple[int, ...], value: torch.Tensor, dtype: torch.dtype = torch.float32, **more: object
) -> tuple[torch.Tensor, Fit] | str:
    """The value brought to a shape with how, or why not."""
    target = NetworkTensor((name,), torch.empty(shape, dtype=dtype), "encoder")
    found = fit(target, value, surroundings(**more))
    if isinstance(found, str):
        return found
    for rule in found.rules:
        value = rule(value)
    return value, found


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([STEM, CONV, UPSAMPLING]),
    WIDTHS,
    WIDTHS,
    KERNELS,
    KERNELS,
    st.booleans(),
)
def test_convolutions_of_any_shape_get_what_numpy_gives_them_or_nothing(
    name: str,
    theirs: tuple[int, int],
    ours: tuple[int, int],
    source: tuple[int, ...],
    target: tuple[int, ...],
    use_map: bool,
) -> None:
    value, shape = random(*theirs, *source), (*ours, *target)
    channel_map = [1, None, 0][: ours[1]] if use_map else None
    expected = references.weight(name, value.numpy(), shape, name == STEM, channel_map)
    found = fitted(name, shape, value, channel_map=channel_map)
    if expected is None:
        assert isinstance(found, str)
    else:
        assert found[0].shape == shape
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_the_same_shape_is_taken_without_a_rule() -> None:
    for name in (STEM, CONV, UPSAMPLING):
        value = random(4, 2, 2, 3, 4)
        found, how = fitted(name, (4, 2, 2, 3, 4), value)
        assert how == Fit()
        assert found is value


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((4, 2, 3, 3, 3), (8, 2, 3, 3, 3)), ((4, 2, 3, 3, 3), (4, 4, 3, 3, 3)), ((8,), (4,)), ((4, 6), (4, 8))],
)
def test_another_width_is_never_cut_to_the_leading_channels(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    assert fitted(CONV, ours, random(*theirs)) == f"of another width: is {ours} here and {theirs} in the checkpoint"
    assert fitted(CONV, theirs, random(*ours)) == f"of another width: is {theirs} here and {ours} in the checkpoint"


def test_the_stem_takes_other_input_channels_but_no_other_width() -> None:
    assert isinstance(fitted(STEM, (4, 1, 3, 3, 3), random(4, 3, 3, 3, 3)), tuple)
    assert "of another width" in str(fitted(STEM, (8, 3, 3, 3, 3), random(4, 3, 3, 3, 3)))


def test_even_kernels_have_no_rule_and_say_so() -> None:
    found = fitted(CONV, (4, 2, 3, 3, 3), random(4, 2, 2, 3, 3))
    assert found == "of a kernel size without a rule: is (4, 2, 3, 3, 3) here and (4, 2, 2, 3, 3) in the checkpoint"


def test_other_dimensions_have_no_rule() -> None:
    assert str(fitted(CONV, (4, 2, 3, 3, 3), random(4, 2, 3, 3))).startswith("of other dimensions")


def test_kernel_and_channels_change_together_and_both_are_said() -> None:
    value = random(4, 3, 1, 3, 3)
    found, how = fitted(STEM, (4, 2, 3, 3, 3), value)
    expected = references.shared_channels(references.kernel(value.numpy(), (3, 3, 3)), 2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert how.how == (
        "kernel 1x3x3 to 3x3x3: centred in zeros; 3 input channels to 2: sum over channels kept, shared equally"
    )


@pytest.mark.parametrize(
    ("name", "source", "target", "words"),
    [
        (CONV, (3, 3, 3), (1, 3, 3), "kernel 3x3x3 to 1x3x3: mean along the axis"),
        (CONV, (3, 3, 3), (5, 3, 3), "kernel 3x3x3 to 5x3x3: centred in zeros"),
        (CONV, (5, 5, 5), (3, 5, 5), "kernel 5x5x5 to 3x5x5: cropped, sum kept"),
        (CONV, (5, 1, 3), (3, 3, 1), "kernel 5x1x3 to 3x3x1: centred in zeros, cropped, sum kept, mean along the axis"),
        (UPSAMPLING, (1, 2, 2), (2, 2, 2), "kernel 1x2x2 to 2x2x2: repeated"),
        (UPSAMPLING, (2, 2, 2), (1, 2, 2), "kernel 2x2x2 to 1x2x2: mean along the axis"),
    ],
)
def test_the_rule_for_a_kernel_is_named(
    name: str, source: tuple[int, ...], target: tuple[int, ...], words: str
) -> None:
    assert fitted(name, (4, 2, *target), random(4, 2, *source))[1].how == words


def test_a_map_that_changes_nothing_is_a_copy_and_another_is_named() -> None:
    value = random(4, 2, 3, 3, 3)
    assert fitted(STEM, (4, 2, 3, 3, 3), value, channel_map=(0, 1))[1] == Fit()
    mapped, how = fitted(STEM, (4, 2, 3, 3, 3), value, channel_map=(1, None))
    assert how.how == "channels 1 none of 2"
    assert torch.equal(mapped[:, 0], value[:, 1])


def test_a_map_shorter_than_the_checkpoint_leaves_channels_out() -> None:
    value = random(4, 3, 3, 3, 3)
    assert torch.equal(fitted(STEM, (4, 2, 3, 3, 3), value, channel_map=(0, 1))[0], value[:, :2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_type_is_converted_before_any_rule_and_said(dtype: torch.dtype) -> None:
    value = random(4, 3, 3, 3, 3).to(dtype)
    found, how = fitted(STEM, (4, 1, 3, 3, 3), value)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), value.float().sum(1, keepdim=True).numpy(), atol=1e-6)
    assert how.note == f"{str(dtype).removeprefix('torch.')} as float32"


def test_integers_are_not_taken_for_weights() -> None:
    found = fitted(CONV, (4,), torch.arange(4))
    assert found == "of another type: is torch.int64 in the checkpoint and torch.float32 here"


def position(ours: int, value: torch.Tensor, **more: object) -> tuple[torch.Tensor, Fit] | str:
    return fitted(POSITION, (1, ours, 6), value, own=PRIMUS_KEYS, **more)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.tuples(*[st.sampled_from([2, 4, 8])] * 3), st.integers(0, 5))
def test_any_patch_and_token_size_give_what_scipy_gives(
    source: tuple[int, ...], target: tuple[int, ...], token: tuple[int, ...], prefix: int
) -> None:
    value = random(1, prefix + int(np.prod(source)), 6)
    found, _ = position(
        int(np.prod(target)), value, token_size=token, pretrain_token_size=(8, 8, 8),
        patch_size=[n * t for n, t in zip(target, token, strict=True)], pretrain_patch_size=[8 * n for n in source],
    )  # fmt: skip
    np.testing.assert_allclose(found.numpy(), references.position(value.numpy(), source, target), atol=1e-5)


@pytest.mark.parametrize(("prefix", "words"), [(0, ""), (1, "; 1 class or register tokens dropped")])
def test_an_unknown_patch_is_a_cube_with_or_without_a_class_token(prefix: int, words: str) -> None:
    value = random(1, prefix + 27, 6)
    found, how = position(64, value)
    np.testing.assert_allclose(found.numpy(), references.position(value.numpy(), (3, 3, 3), (4, 4, 4)), atol=1e-5)
    assert how.how == f"token grid 3x3x3 to 4x4x4: trilinear{words}"


def test_an_unknown_patch_is_a_cube_behind_as_many_registers_as_the_network_has() -> None:
    value = random(1, 4 + 27, 6)
    found, _ = position(4 + 64, value)
    assert torch.equal(found[:, :4], value[:, :4])


@pytest.mark.parametrize("num_tokens", [128, 256, 4, 72, 2 * 4 * 4])
def test_tokens_of_an_unknown_patch_that_are_no_cube_are_not_guessed(num_tokens: int) -> None:
    """2x8x8 is 5x5x5 and three more, and 1x2x2 has no cube at all."""
    found = position(64, random(1, num_tokens, 6))
    assert str(found).startswith("of a patch that does not explain the number of tokens: is (1, 64, 6) here")


@pytest.mark.parametrize("patch", [(64, 64, 64), (16, 16, 16)])
def test_a_patch_that_does_not_explain_the_tokens_is_said(patch: tuple[int, ...]) -> None:
    found = position(64, random(1, 64, 6), pretrain_patch_size=patch)
    assert str(found).startswith("of a patch that does not explain the number of tokens")


def test_tokens_dropped_and_tokens_that_start_at_zero_are_said() -> None:
    patch = {"pretrain_patch_size": (32, 32, 32)}
    assert position(64, random(1, 65, 6), **patch)[1].how == "1 class or register tokens dropped"
    assert position(66, random(1, 64, 6), **patch)[1].how == "2 register tokens start at zero"
    both = "1 class or register tokens dropped; 2 register tokens start at zero"
    assert position(66, random(1, 65, 6), **patch)[1].how == both
    assert position(66, random(1, 66, 6), **patch)[1] == Fit()


def test_an_embedding_of_another_width_has_no_rule() -> None:
    assert str(position(64, random(1, 64, 5))).startswith("of another width")
