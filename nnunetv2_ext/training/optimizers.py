"""From a recipe to an optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nnunetv2_ext.recipes import recipe as recipes
from nnunetv2_ext.recipes.recipe import Recipe


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that train; gradients are clipped before every step if it says so."""
    trained = [p for p in parameters if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer is recipes.Optimizer.adamw:
        betas = (recipe.betas[0], recipe.betas[1])
        optimizer = torch.optim.AdamW(trained, recipe.initial_lr, betas=betas, weight_decay=recipe.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            trained, recipe.initial_lr, momentum=recipe.momentum, nesterov=recipe.nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )  # fmt: skip
    if recipe.gradient_clipping < recipes.STOCK_GRADIENT_CLIPPING:
        clip_before_step(optimizer, recipe.gradient_clipping)
    return optimizer


def clip_before_step(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Clip the norm of the gradient right before each step.

    nnU-Net's `train_step` clips at 12, after un-scaling; clipping the result again at a smaller norm gives what
    clipping once at that norm gives, and needs no copy of `train_step`.
    """

    def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)

    optimizer.register_step_pre_hook(clip)
