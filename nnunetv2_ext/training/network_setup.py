"""What a recipe changes about a network before it is trained."""

from __future__ import annotations

from torch import nn

from nnunetv2_ext.recipes.recipe import Lora, Recipe
from nnunetv2_ext.training.lora import adaptable_modules, inject
from nnunetv2_ext.training.network_levers import checkpoint_activations, set_drop_path, to_channels_last
from nnunetv2_ext.training.parts import selected_parameters


def set_up(network: nn.Module, recipe: Recipe) -> None:
    """Apply drop path, adapters, gradient checkpointing and memory layout, in place.

    Args:
        network: with its pre-trained weights, neither compiled nor wrapped.
        recipe: says which.

    Raises:
        UserError: the network has no place for one of them, or a package is missing.
    """
    if recipe.drop_path is not None:
        set_drop_path(network, recipe.drop_path)
    if recipe.lora is not None:
        modules = lora_modules(network, recipe.lora)
        inject(network, modules, rank=recipe.lora.rank, alpha=recipe.lora.alpha, dropout=recipe.lora.dropout)
    if recipe.gradient_checkpointing:
        checkpoint_activations(network)
    if recipe.channels_last:
        to_channels_last(network)


def lora_modules(network: nn.Module, lora: Lora) -> list[str]:
    """The layers that get an adapter. Raises UserError if there are none."""
    return adaptable_modules(network, selected_parameters(network, lora.targets))


def unused_parameters(network: nn.Module, *, deep_supervision: bool) -> list[str]:
    """Names of parameters that have no part in the output: without deep supervision, a U-Net's lower outputs.

    They get no gradient. Fixing them changes no value and keeps DDP from waiting for them.
    """
    layers = getattr(getattr(network, "decoder", None), "seg_layers", ())
    if deep_supervision or not layers:
        return []
    lower = {id(p) for layer in layers[:-1] for p in layer.parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) in lower]
