"""The optimizers' hyper-parameters."""

from __future__ import annotations

import torch

from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.training.optimizers import make_optimizer


def test_cnn_gets_nesterov_sgd_with_nnunets_momentum() -> None:
    optimizer = make_optimizer(torch.nn.Linear(1, 1), recipe_for("cnn"))
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (1e-3, 0.99, True, 3e-5)


def test_primus_gets_adamw() -> None:
    optimizer = make_optimizer(torch.nn.Linear(1, 1), recipe_for("primus"))
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (1e-4, (0.9, 0.98), 5e-2)


def test_frozen_parameters_are_left_out() -> None:
    layer = torch.nn.Linear(1, 1)
    layer.bias.requires_grad_(False)
    optimizer = make_optimizer(layer, recipe_for("cnn"))
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(layer.weight)]
