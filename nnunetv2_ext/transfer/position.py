"""The rule for another patch size: a learned positional embedding on another token grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch.nn.functional import interpolate


def adapt_positional_embedding(
    embedding: torch.Tensor, source_grid: Sequence[int], target_grid: Sequence[int], num_prefix_tokens: int = 0
) -> torch.Tensor:
    """A learned positional embedding, interpolated trilinearly to another token grid.

    Tokens are in row-major order of the grid (the last axis fastest), as Primus flattens its patch embedding. Token
    centres are aligned (`align_corners=False`): token i of n stands for the interval [i / n, (i + 1) / n] of the patch.

    Args:
        embedding: (1, prefix + prod(source_grid), channels).
        source_grid: tokens per axis in pre-training, patch size divided by the patch embedding's size.
        target_grid: tokens per axis of the new network.
        num_prefix_tokens: register tokens in front, which have no position and are kept.

    Returns:
        (1, prefix + prod(target_grid), channels), of the same type; the very same values where the grids are equal.

    Raises:
        ValueError: the embedding does not have that many tokens.
    """
    prefix, tokens = embedding[:, :num_prefix_tokens], embedding[:, num_prefix_tokens:]
    if tokens.shape[1] != prod(source_grid):
        raise ValueError(f"{tokens.shape[1]} tokens do not form a grid of {tuple(source_grid)}")
    if tuple(source_grid) == tuple(target_grid):
        return embedding.clone()
    volume = tokens.transpose(1, 2).reshape(1, -1, *source_grid).float()
    resized = interpolate(volume, size=tuple(target_grid), mode="trilinear", align_corners=False)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)
