"""The rule for another number of input channels."""

from __future__ import annotations

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
