"""The rules for another number of input channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def adapt_input_channels(weight: torch.Tensor, num_input_channels: int) -> torch.Tensor:
    """The input projection's weight for another number of input channels.

    Every new channel gets the sum over the old ones divided by the new number, so that the sum over input channels
    stays what it was: an image repeated in all channels gives the output that the pre-trained network gave for it.
    With one channel pre-trained this is "repeat and divide by N", as nnssl's fine-tuning does.

    Args:
        weight: (out, M, z, y, x), the pre-trained weight.
        num_input_channels: N.

    Returns:
        (out, N, z, y, x), of the same type.
    """
    total = weight.sum(dim=1, keepdim=True, dtype=torch.float64) / num_input_channels
    return total.to(weight.dtype).expand(-1, num_input_channels, *weight.shape[2:]).contiguous()


def map_input_channels(weight: torch.Tensor, channel_map: Sequence[int | None]) -> torch.Tensor:
    """The input projection's weight for channels that are known to be those of the pre-training.

    A mapped channel is copied exactly, an unmapped one starts at zero: the network computes on the mapped channels
    what it did before, whatever lies in the others.

    Args:
        weight: (out, M, z, y, x), the pre-trained weight.
        channel_map: for each new channel the old one (0 to M - 1), or None.

    Returns:
        (out, len(channel_map), z, y, x), of the same type.
    """
    mapped = weight.new_zeros(weight.shape[0], len(channel_map), *weight.shape[2:])
    for new, old in enumerate(channel_map):
        if old is not None:
            mapped[:, new] = weight[:, old]
    return mapped
