"""From a checkpoint's tensors to a network's: encoder and stem from the checkpoint, decoder and head fresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.transfer.channels import adapt_input_channels
from nnunetv2_ext.transfer.matching import (
    NetworkTensor,
    PartKeys,
    is_input_projection,
    is_positional_embedding,
    network_tensors,
    source_name,
    unused_names,
)
from nnunetv2_ext.transfer.position import adapt_positional_embedding
from nnunetv2_ext.transfer.report import ADAPTED, COPIED, FRESH, TensorRecord, TransferReport


def transfer_encoder(
    network: nn.Module,
    weights: Mapping[str, torch.Tensor],
    keys: PartKeys,
    *,
    pretrain_patch_size: Sequence[int],
    patch_size: Sequence[int],
) -> tuple[dict[str, torch.Tensor], TransferReport]:
    """Find, for every encoder and stem tensor of `network`, its value in a checkpoint.

    Nothing is written into the network (it may live on the meta device); see `load_tensors`.

    Args:
        network: a network of dynamic-network-architectures, neither compiled nor wrapped.
        weights: the checkpoint's tensors by name.
        keys: where the parts lie in the checkpoint (the network knows its own).
        pretrain_patch_size: voxels, the patch that the checkpoint was trained with.
        patch_size: voxels, the patch that the network is built for; both in network axis order.

    Returns:
        New tensors by the network's first name for each, and the report over all of its tensors.

    Raises:
        UserError: an encoder or stem tensor has no match of a fitting shape. Nothing starts at random unsaid.
    """
    own = PartKeys.of_network(network)
    token_size = network.get_submodule(own.keys_to_in_proj[0]).get_parameter("weight").shape[2:]
    tensors: dict[str, torch.Tensor] = {}
    records: list[TensorRecord] = []
    problems: list[str] = []
    used: list[str] = []
    for target in network_tensors(network, own):
        name, shape = target.names[0], tuple(target.tensor.shape)
        if target.part == "decoder":
            records.append(TensorRecord(name, target.part, shape, FRESH, aliases=target.names[1:]))
            continue
        source = source_name(target, weights, own, keys)
        if source is None:
            problems.append(f"{name} {shape}: not in the checkpoint")
            continue
        value, how = _fit(target, weights[source], own, token_size, pretrain_patch_size, patch_size)
        if value is None:
            problems.append(f"{name} is {shape} here and {tuple(weights[source].shape)} in the checkpoint")
            continue
        tensors[name] = value
        used.append(source)
        records.append(
            TensorRecord(name, target.part, shape, ADAPTED if how else COPIED, source, how, target.names[1:])
        )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{len(problems)} encoder or stem tensors of the network have no match in the checkpoint: "
            f"{'; '.join(problems[:3])}{more}; the plan's architecture is not the one that was pre-trained"
        )
    return tensors, TransferReport(records, unused_names(weights, used))


def load_tensors(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors into a network in place, by their names in its state dict, converted to its type and device."""
    own = network.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def _fit(
    target: NetworkTensor,
    value: torch.Tensor,
    own: PartKeys,
    token_size: Sequence[int],
    pretrain_patch_size: Sequence[int],
    patch_size: Sequence[int],
) -> tuple[torch.Tensor | None, str | None]:
    """The value for the network's tensor and the rule that made it; (None, None) where no rule applies."""
    shape = tuple(target.tensor.shape)
    if is_positional_embedding(target, own):
        return _fit_position(shape, value, token_size, pretrain_patch_size, patch_size)
    if tuple(value.shape) == shape:
        return value, None
    if is_input_projection(target, own) and (value.shape[0], *value.shape[2:]) == (shape[0], *shape[2:]):
        channels = f"{value.shape[1]} input channel{'s' * (value.shape[1] > 1)} to {shape[1]}"
        return adapt_input_channels(value, shape[1]), f"{channels}: sum over channels kept, shared equally"
    return None, None


def _fit_position(
    shape: tuple[int, ...],
    value: torch.Tensor,
    token_size: Sequence[int],
    pretrain_patch_size: Sequence[int],
    patch_size: Sequence[int],
) -> tuple[torch.Tensor | None, str | None]:
    """Token grids follow from the patch sizes and the patch embedding; (None, None) where they do not fit the tensor.

    The grids are compared, not the number of tokens: 4x8x8 and 8x8x4 have as many.
    """
    source_grid = [p // t for p, t in zip(pretrain_patch_size, token_size, strict=True)]
    target_grid = [p // t for p, t in zip(patch_size, token_size, strict=True)]
    prefix = shape[1] - prod(target_grid)  # register tokens
    if prefix < 0 or value.shape[1] - prod(source_grid) != prefix or value.shape[2] != shape[2]:
        return None, None
    if source_grid == target_grid:
        return value, None
    text = " to ".join("x".join(map(str, grid)) for grid in (source_grid, target_grid))
    return adapt_positional_embedding(value, source_grid, target_grid, prefix), f"token grid {text}: trilinear"
