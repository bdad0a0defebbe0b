"""What a recipe changes in a network before it trains; names, values and what it predicts stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.errors import UserError


def set_drop_path(network: nn.Module, rate: float) -> None:
    """Give a Primus stochastic depth (Huang et al. 2016, arXiv 1603.09382), whatever it was built with.

    Block i of n drops its attention and its MLP, each for a whole sample, with probability `rate * i / (n - 1)`, as
    dynamic-network-architectures' `Eva` does for `drop_path_rate`.

    Args:
        network: changed in place. One without such blocks is left alone if the rate is 0.
        rate: of the last block, in [0, 1).

    Raises:
        UserError: the network is no Primus and the rate is not 0.
    """
    blocks = getattr(getattr(network, "eva", None), "blocks", None)
    if blocks is None:
        if rate == 0:
            return
        raise UserError(
            f"drop path is for Primus, a {type(network).__name__} has no blocks to drop: switch it off with "
            "--set drop_path=0"
        )
    from timm.layers import DropPath  # which takes a second to import, with torchvision

    for block, block_rate in zip(blocks, np.linspace(0, rate, len(blocks)), strict=True):
        for name in ("drop_path1", "drop_path2"):  # timm's EvaBlock
            module = DropPath(float(block_rate)) if block_rate > 0 else nn.Identity()
            setattr(block, name, module.train(block.training))


def checkpoint_activations(network: nn.Module) -> None:
    """Compute activations again in the backward pass instead of keeping them (Chen et al. 2016, arXiv 1604.06174).

    Only what goes into the stem and each stage of encoder and decoder is kept, or into each block of a Primus; it costs
    one more forward pass. Random numbers and mixed precision are replayed, so outputs and gradients are the same. In
    `eval`, or where no gradient is asked for, nothing changes.

    Args:
        network: changed in place.

    Raises:
        UserError: the network has none of these parts.
    """
    segments = list(_segments(network))
    if not segments:
        raise UserError(
            f"{type(network).__name__} has no stages or blocks that gradient checkpointing knows: switch it off with "
            "--set gradient_checkpointing=false"
        )
    for segment in segments:
        # on the object, so that no wrapper changes the names in the state dict
        segment.forward = partial(_forward, segment, segment.forward)


def _segments(network: nn.Module) -> Iterable[nn.Module]:
    for path in ("eva.blocks", "encoder.stages", "decoder.stages"):
        parts: Any = network
        for name in path.split("."):
            parts = getattr(parts, name, None)
        yield from parts if parts is not None else ()
    stem = getattr(getattr(network, "encoder", None), "stem", None)
    if stem is not None:  # a PlainConvUNet has its stem in the first stage
        yield stem


def _forward(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if module.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)


def to_channels_last(network: nn.Module) -> None:
    """Lay the weights of 3D convolutions out with channels last, which cuDNN's mixed-precision kernels prefer.

    The data should come in `torch.channels_last_3d` too. Values, names and shapes stay the same. torch's instance norm
    gives its output the plain layout again, so every convolution of a U-Net after the first has its input laid out
    anew: measure whether it pays.

    Args:
        network: changed in place.
    """
    network.to(memory_format=torch.channels_last_3d)
