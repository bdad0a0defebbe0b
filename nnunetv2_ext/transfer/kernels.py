"""The rules for another kernel size, axis by axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def has_kernel_rule(source: Sequence[int], target: Sequence[int]) -> bool:
    """Whether `adapt_kernel` knows every axis: odd sizes, which have a centre."""
    return len(source) == len(target) and all(
        s == t or (s % 2 == 1 and t % 2 == 1) for s, t in zip(source, target, strict=True)
    )


def adapt_kernel(weight: torch.Tensor, kernel_size: Sequence[int]) -> torch.Tensor:
    """A convolution's weight for another kernel size.

    Each axis by itself:

    * to 1: the mean along the axis, as nnU-Net's development branch does;
    * to more: the old kernel in the centre of zeros. With nnU-Net's padding (half the kernel) the convolution computes
      the same;
    * to fewer, but more than 1: the centre, what is cut off added to the nearest tap that remains. The sum along the
      axis is preserved, so that a constant image gives the same output.

    Args:
        weight: (out, in, z, y, x).
        kernel_size: odd sizes (z, y, x).

    Returns:
        (out, in, *kernel_size), of the same type.
    """
    for axis, size in enumerate(kernel_size, start=2):
        if weight.shape[axis] == size:
            continue
        if size == 1:
            weight = weight.mean(dim=axis, keepdim=True)
        elif size > weight.shape[axis]:
            weight = _centred_in_zeros(weight, axis, size)
        else:
            weight = _cropped(weight, axis, size)
    return weight


def has_transposed_rule(source: Sequence[int], target: Sequence[int]) -> bool:
    """Whether `adapt_transposed_kernel` knows every axis: equal sizes, or one of them 1."""
    return len(source) == len(target) and all(1 in (s, t) or s == t for s, t in zip(source, target, strict=True))


def adapt_transposed_kernel(weight: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """A transposed convolution's weight for another stride, where kernel and stride are the same (nnU-Net's decoders).

    Each axis by itself: from 1 to s the tap is repeated (the output is the old one, upsampled to the nearest); from s
    to 1 the taps are averaged (the output is the old one's mean over each s voxels).

    Args:
        weight: (in, out, z, y, x).
        stride: (z, y, x), the new kernel size and stride.

    Returns:
        (in, out, *stride), of the same type.
    """
    for axis, size in enumerate(stride, start=2):
        if weight.shape[axis] == size:
            continue
        weight = weight.mean(dim=axis, keepdim=True) if size == 1 else weight.repeat_interleave(size, dim=axis)
    return weight


def _centred_in_zeros(weight: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    shape = list(weight.shape)
    shape[axis] = size
    larger = weight.new_zeros(shape)
    larger.narrow(axis, (size - weight.shape[axis]) // 2, weight.shape[axis]).copy_(weight)
    return larger


def _cropped(weight: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    margin = (weight.shape[axis] - size) // 2
    smaller = weight.narrow(axis, margin, size).clone()
    smaller.select(axis, 0).add_(weight.narrow(axis, 0, margin).sum(dim=axis))
    smaller.select(axis, size - 1).add_(weight.narrow(axis, margin + size, margin).sum(dim=axis))
    return smaller
