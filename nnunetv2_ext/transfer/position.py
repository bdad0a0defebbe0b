"""The rule for another patch size: a learned positional embedding on another token grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch.nn.functional import interpolate


def adapt_positional_embedding(
    embedding: torch.Tensor,
    source_grid: Sequence[int],
    target_grid: Sequence[int],
    num_prefix_tokens: int = 0,
) -> torch.Tensor:
    """A learned positional embedding, interpolated trilinearly to another token grid.

    Tokens are in row-major order of the grid (the last axis fastest), as Primus flattens its patch embedding. Token
    centres are aligned (`align_corners=False`): token i of n stands for the interval [i / n, (i + 1) / n] of the patch.

    Class and register tokens stand in front and have no position. They are kept where the network has as many, and
    dropped otherwise; those that the network has and the checkpoint has not start at zero.

    Args:
        embedding: (1, any prefix + prod(source_grid), channels).
        source_grid: tokens per axis in pre-training, patch size divided by the patch embedding's size.
        target_grid: tokens per axis of the new network.
        num_prefix_tokens: register tokens of the new network.

    Returns:
        (1, prefix + prod(target_grid), channels), of the same type; the very same values where nothing differs.

    Raises:
        ValueError: the embedding has fewer tokens than the grid.
    """
    found = embedding.shape[1] - prod(source_grid)
    if found < 0:
        raise ValueError(f"{embedding.shape[1]} tokens do not form a grid of {tuple(source_grid)}")
    prefix, tokens = embedding[:, :found], embedding[:, found:]
    if found != num_prefix_tokens:
        prefix = embedding.new_zeros(1, num_prefix_tokens, embedding.shape[2])
    if tuple(source_grid) != tuple(target_grid):
        volume = tokens.transpose(1, 2).reshape(1, -1, *source_grid).float()
        resized = interpolate(volume, size=tuple(target_grid), mode="trilinear", align_corners=False)
        tokens = resized.flatten(2).transpose(1, 2).to(embedding.dtype)
    return torch.cat([prefix, tokens], dim=1)
