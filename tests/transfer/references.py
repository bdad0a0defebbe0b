"""The rules of transfer once more, in numpy and scipy, from their definitions and without this package's code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import map_coordinates

Array = np.ndarray


def shared_channels(weight: Array, num_channels: int) -> Array:
    """(out, M, z, y, x) to (out, N, z, y, x): the sum over M, divided among N."""
    return np.repeat(weight.astype(np.float64).sum(1, keepdims=True), num_channels, axis=1) / num_channels


def mapped_channels(weight: Array, channel_map: Sequence[int | None]) -> Array:
    """(out, M, ...) to (out, N, ...): the channel named, or zero."""
    empty = np.zeros_like(weight[:, 0])
    return np.stack([empty if c is None else weight[:, c] for c in channel_map], axis=1)


def kernel(weight: Array, size: Sequence[int]) -> Array:
    """Odd kernel sizes: the mean to 1, zeros around to more, taps beyond the end added to the last to fewer."""
    for axis, n in enumerate(size, start=2):
        old = weight.shape[axis]
        if n == 1:
            weight = weight.mean(axis, keepdims=True)
        elif n >= old:
            weight = np.pad(weight, [((n - old) // 2,) * 2 if a == axis else (0, 0) for a in range(weight.ndim)])
        else:
            taps = np.clip(np.arange(old) - (old - n) // 2, 0, n - 1)
            moved = np.zeros((n, *np.delete(weight.shape, axis)), weight.dtype)
            np.add.at(moved, taps, np.moveaxis(weight, axis, 0))
            weight = np.moveaxis(moved, 0, axis)
    return weight


def transposed_kernel(weight: Array, size: Sequence[int]) -> Array:
    """Kernel and stride 1 and s: repeated, or averaged."""
    for axis, n in enumerate(size, start=2):
        if n == 1:
            weight = weight.mean(axis, keepdims=True)
        elif weight.shape[axis] == 1:
            weight = np.repeat(weight, n, axis)
    return weight


def position(embedding: Array, source: Sequence[int], target: Sequence[int]) -> Array:
    """(1, prefix + tokens, channels) to (1, tokens, channels): linear between token centres, the prefix dropped."""
    tokens = embedding[0, embedding.shape[1] - int(np.prod(source)) :].astype(np.float64)
    axes = [(np.arange(n) + 0.5) * m / n - 0.5 for m, n in zip(source, target, strict=True)]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    volumes = tokens.T.reshape(-1, *source)
    return np.stack([map_coordinates(v, where, order=1, mode="nearest").ravel() for v in volumes], -1)[None]


def weight(
    name: str, source: Array, shape: Sequence[int], projects_input: bool, channel_map: Sequence[int | None] | None
) -> Array | None:
    """A tensor of a checkpoint as `shape`; None where no rule brings it there."""
    if source.ndim != len(shape) or source.shape[0] != shape[0]:
        return None
    if not projects_input and source.shape[1:2] != tuple(shape[1:2]):
        return None
    old, new = source.shape[2:], tuple(shape[2:])
    if old != new:
        transposed = ".transpconvs." in name
        if source.ndim != 5 or any(
            m != n and (1 not in (m, n) if transposed else m % 2 == 0 or n % 2 == 0)
            for m, n in zip(old, new, strict=True)
        ):
            return None
        source = (transposed_kernel if transposed else kernel)(source, new)
    if projects_input and channel_map is not None:
        return mapped_channels(source, channel_map)
    if projects_input and source.shape[1] != shape[1]:
        return shared_channels(source, shape[1])
    return source


def source_name(name: str, source: Mapping[str, Array], target_names: Sequence[str]) -> str | None:
    """The same name; in a U-Net's decoder, the stage that is as far from the full resolution."""
    stage = re.fullmatch(r"(decoder\.(?:stages|transpconvs|seg_layers)\.)(\d+)(\..*)", name)
    if stage is not None:
        index = int(stage[2]) + _decoder_depth(source) - _decoder_depth(target_names)
        name = f"{stage[1]}{index}{stage[3]}"
    return name if name in source else None


def _decoder_depth(names: Sequence[str] | Mapping[str, Array]) -> int:
    return len({name.split(".")[2] for name in names if name.startswith("decoder.stages.")})
