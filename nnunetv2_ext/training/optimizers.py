"""From a recipe to an optimizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from nnunetv2_ext.recipes import recipe as recipes
from nnunetv2_ext.recipes.recipe import Recipe
from nnunetv2_ext.transfer.matching import PartKeys


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters that require a gradient now.

    It holds them through all phases: what is fixed for some epochs has no gradient then and is left alone.
    """
    groups = parameter_groups(network, recipe)
    if recipe.optimizer is recipes.Optimizer.adamw:
        betas = (recipe.betas[0], recipe.betas[1])
        return torch.optim.AdamW(groups, recipe.initial_lr, betas=betas, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        groups, recipe.initial_lr, momentum=recipe.momentum, nesterov=recipe.nesterov and recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )  # fmt: skip


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """All trainable parameters as one group, or, with `layer_decay`, in groups with an `lr_scale`, the largest first.

    By timm's `param_groups_layer_decay` (Bao et al. 2022, BEiT): the decoder has the full rate, every block of the
    encoder `layer_decay` times that of the block after it, the stem the lowest; norms and biases have no weight decay.
    """
    if recipe.layer_decay is None:
        return [{"params": [p for p in network.parameters() if p.requires_grad]}]
    named: Any = SimpleNamespace(
        named_parameters=network.named_parameters, group_matcher=lambda coarse: _layers(network)
    )
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        named, recipe.weight_decay, layer_decay=recipe.layer_decay, no_weight_decay_list=_not_decayed(network)
    )
    return sorted(groups, key=lambda group: -group["lr_scale"])


def _layers(network: nn.Module) -> dict[str, Any]:
    """Regular expressions for timm: the stem and the blocks by number; what matches none is the last layer."""
    keys = PartKeys.of_network(network)
    blocks = "eva.blocks" if hasattr(network, "eva") else "encoder.stages"
    stem = "|".join(k.replace(".", r"\.") for k in (keys.key_to_stem, keys.key_to_lpe, "register_tokens") if k)
    return {"stem": rf"^(?:{stem})", "blocks": rf"^{blocks}\.(\d+)"}  # a PlainConvUNet's stem is its first stage


def _not_decayed(network: nn.Module) -> set[str]:
    """As timm's transformers have it: no weight decay for positional embeddings and extra tokens."""
    eva = getattr(network, "eva", None)
    return set() if eva is None else {*(f"eva.{name}" for name in eva.no_weight_decay()), "register_tokens"}
