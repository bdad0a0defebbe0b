"""Which rules bring a checkpoint's tensor to the shape of the network's, or why none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch

from nnunetv2_ext.transfer.channels import adapt_input_channels, map_input_channels
from nnunetv2_ext.transfer.kernels import adapt_kernel, adapt_transposed_kernel, has_kernel_rule, has_transposed_rule
from nnunetv2_ext.transfer.matching import NetworkTensor, PartKeys, is_input_projection, is_positional_embedding
from nnunetv2_ext.transfer.position import adapt_positional_embedding

Rule = Callable[[torch.Tensor], torch.Tensor]

MAX_PREFIX_TOKENS = 17
"""A class token and 16 registers, the most that Darcet et al. (2023, arXiv 2309.16588) try. More tokens than the grid
and these are of another grid."""


@dataclass(frozen=True)
class Surroundings:
    """What the rules have to know beyond the two tensors.

    Attributes:
        own: the network's keys.
        token_size: voxels per token of the network (of a transformer: its input projection's kernel).
        pretrain_token_size: the checkpoint's.
        pretrain_patch_size: voxels; None where it is not known.
        patch_size: voxels.
        channel_map: see `TransferRequest`.
    """

    own: PartKeys
    token_size: Sequence[int]
    pretrain_token_size: Sequence[int]
    pretrain_patch_size: Sequence[int] | None
    patch_size: Sequence[int]
    channel_map: Sequence[int | None] | None


@dataclass(frozen=True)
class Fit:
    """The rules to apply in turn; `how` in words where they change the tensor, `note` for a change of its type."""

    rules: tuple[Rule, ...] = ()
    how: str | None = None
    note: str | None = None


def fit(target: NetworkTensor, value: torch.Tensor, surroundings: Surroundings) -> Fit | str:
    """How a checkpoint's tensor becomes the network's, or why it cannot, as `kind: the two shapes`."""
    if value.is_floating_point() != target.tensor.is_floating_point():
        return f"of another type: is {value.dtype} in the checkpoint and {target.tensor.dtype} here"
    if is_positional_embedding(target, surroundings.own):
        found = _fit_position(target.shape, value, surroundings)
    else:
        found = _fit_weight(target, value, surroundings)
    if isinstance(found, str) or value.dtype == target.tensor.dtype:
        return found
    here, there = (str(dtype).removeprefix("torch.") for dtype in (target.tensor.dtype, value.dtype))
    return Fit((partial(torch.Tensor.to, dtype=target.tensor.dtype), *found.rules), found.how, f"{there} as {here}")


def _fit_weight(target: NetworkTensor, value: torch.Tensor, surroundings: Surroundings) -> Fit | str:
    """The same shape, or a convolution with other input channels or another kernel."""
    shape, theirs = target.shape, tuple(value.shape)
    shapes = f"is {shape} here and {theirs} in the checkpoint"
    if len(shape) != len(theirs):
        return f"of other dimensions: {shapes}"
    rules: list[Rule] = []
    how: list[str] = []
    projects_input = is_input_projection(target, surroundings.own)
    width = slice(1) if projects_input else slice(2)
    if shape[width] != theirs[width]:
        return f"of another width: {shapes}"
    if shape[2:] != theirs[2:]:
        transposed = any(".transpconvs." in name for name in target.names)
        known = has_transposed_rule if transposed else has_kernel_rule
        if len(shape) != 5 or not known(theirs[2:], shape[2:]):
            return f"of a kernel size without a rule: {shapes}"
        rule: Rule = partial(adapt_kernel, kernel_size=shape[2:])
        if transposed:
            rule = partial(adapt_transposed_kernel, stride=shape[2:])
        rules.append(rule)
        how.append(_kernel_text(theirs[2:], shape[2:], transposed))
    if projects_input and surroundings.channel_map is not None:
        if list(surroundings.channel_map) != list(range(theirs[1])):
            rules.append(partial(map_input_channels, channel_map=surroundings.channel_map))
            how.append(f"channels {' '.join(_channel_text(c) for c in surroundings.channel_map)} of {theirs[1]}")
    elif projects_input and shape[1] != theirs[1]:
        rules.append(partial(adapt_input_channels, num_input_channels=shape[1]))
        channels = f"{theirs[1]} input channel{'s' * (theirs[1] > 1)} to {shape[1]}"
        how.append(f"{channels}: sum over channels kept, shared equally")
    return Fit(tuple(rules), "; ".join(how) or None)


def _fit_position(shape: tuple[int, ...], value: torch.Tensor, surroundings: Surroundings) -> Fit | str:
    """Token grids follow from the patch sizes and the patch embeddings.

    The grids are compared, not the number of tokens: 4x8x8 and 8x8x4 have as many.
    """
    shapes = f"is {shape} here and {tuple(value.shape)} in the checkpoint"
    if value.ndim != 3 or value.shape[0] != 1 or value.shape[2] != shape[2]:
        return f"of another width: {shapes}"
    target = _grid(surroundings.patch_size, surroundings.token_size)
    num_prefix = shape[1] - prod(target)
    source = _source_grid(value.shape[1], num_prefix, surroundings)
    num_pretrained = value.shape[1] - prod(source)
    if not source or num_prefix < 0 or not 0 <= num_pretrained <= MAX_PREFIX_TOKENS:
        return f"of a patch that does not explain the number of tokens: {shapes}"
    texts = []
    if source != target:
        texts.append(f"token grid {' to '.join('x'.join(map(str, grid)) for grid in (source, target))}: trilinear")
    if num_pretrained != num_prefix:
        texts += [f"{num_pretrained} class or register tokens dropped"] if num_pretrained else []
        texts += [f"{num_prefix} register tokens start at zero"] if num_prefix else []
    if not texts:
        return Fit()
    rule = partial(adapt_positional_embedding, source_grid=source, target_grid=target, num_prefix_tokens=num_prefix)
    return Fit((rule,), "; ".join(texts))


def _source_grid(num_tokens: int, num_prefix: int, surroundings: Surroundings) -> list[int]:
    """Tokens per axis in pre-training, empty where nothing explains their number.

    Where the patch is not known they are a cube, with the network's register tokens or a class token in front or not.
    """
    if surroundings.pretrain_patch_size is not None:
        return _grid(surroundings.pretrain_patch_size, surroundings.pretrain_token_size)
    for prefix in (0, num_prefix, 1):
        side = round(max(0, num_tokens - prefix) ** (1 / 3))
        if side > 0 and side**3 + prefix == num_tokens:
            return [side] * 3
    return []


def _grid(patch_size: Sequence[int], token_size: Sequence[int]) -> list[int]:
    return [p // t for p, t in zip(patch_size, token_size, strict=True)]


def _kernel_text(source: Sequence[int], target: Sequence[int], transposed: bool) -> str:
    sizes = " to ".join("x".join(map(str, kernel)) for kernel in (source, target))
    words = set()
    for s, t in zip(source, target, strict=True):
        if s != t and t == 1:
            words.add("mean along the axis")
        elif s < t:
            words.add("repeated" if transposed else "centred in zeros")
        elif s > t:
            words.add("cropped, sum kept")
    return f"kernel {sizes}: {', '.join(sorted(words))}"


def _channel_text(channel: int | None) -> str:
    return "none" if channel is None else str(channel)
