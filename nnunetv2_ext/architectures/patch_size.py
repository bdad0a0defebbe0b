"""Which patch sizes an architecture can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_ext.architectures.presets import family
from nnunetv2_ext.errors import UserError


def patch_granularity(architecture: Mapping[str, Any]) -> tuple[int, ...]:
    """Voxels per axis that a patch must be a multiple of: the product of the strides, or the patch embedding."""
    arguments = architecture["arch_kwargs"]
    if family(architecture) == "primus":
        return tuple(int(v) for v in arguments["patch_embed_size"])
    strides = [[s] * 3 if isinstance(s, int) else s for s in arguments["strides"]]
    return tuple(int(v) for v in np.prod(np.array(strides), axis=0))


def check_patch_size(architecture: Mapping[str, Any], patch_size: Sequence[int], name: str) -> None:
    """Refuse a patch (voxels, network axis order) that the network cannot take.

    Every axis must be a multiple of the granularity, and a convolutional network needs more than one voxel left at
    its bottleneck: instance normalisation over a single value is undefined and raises in the first training step.

    Raises:
        UserError: names the nearest valid sizes.
    """
    step = patch_granularity(architecture)
    if len(patch_size) != len(step) or any(p < 1 for p in patch_size):
        raise UserError(f"a patch size has {len(step)} positive numbers (voxels), not {_text(patch_size)}")
    below = [p // s * s for p, s in zip(patch_size, step, strict=True)]
    above = [-(-p // s) * s for p, s in zip(patch_size, step, strict=True)]
    # one voxel left at the bottleneck
    too_small = [list(step)] if family(architecture) == "cnn" else []
    nearest = [size for size in (below, above) if min(size) > 0 and size not in too_small]
    named = " or ".join(_text(size) for size in nearest or [[2 * step[0], *step[1:]]])
    valid = f"the nearest valid size{'s are' if len(nearest) > 1 else ' is'} {named} (-ps)"
    if below != above:
        raise UserError(
            f"{name} cannot take patches of {_text(patch_size)} voxels: each axis must be a multiple of "
            f"{_text(step)}; {valid}"
        )
    if below in too_small:
        raise UserError(
            f"{name} leaves a single voxel of a {_text(patch_size)} patch at its bottleneck, which instance "
            f"normalisation cannot train on; {valid}"
        )


def _text(numbers: Sequence[int]) -> str:
    return " x ".join(str(n) for n in numbers)
