"""The optimizers' hyper-parameters, and clipping without a copy of nnU-Net's train_step."""

from __future__ import annotations

import copy

import pytest
import torch

from nnunetv2_ext.recipes.recipe import recipe_for
from nnunetv2_ext.training.optimizers import clip_before_step, make_optimizer


def parameter_with_gradient(norm: float) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), norm / 2)
    return parameter


def test_cnn_gets_nesterov_sgd_with_nnunets_momentum() -> None:
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], recipe_for("cnn"))
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (1e-3, 0.99, True, 3e-5)


def test_primus_gets_adamw() -> None:
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], recipe_for("primus"))
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (1e-4, (0.9, 0.98), 5e-2)


def test_frozen_parameters_are_left_out() -> None:
    trained, frozen = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    optimizer = make_optimizer([trained, frozen], recipe_for("cnn"))
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(trained)]


@pytest.mark.parametrize("norm", [0.5, 5.0, 500.0])
def test_clipping_before_the_step_gives_what_clipping_once_gives(norm: float) -> None:
    ours, reference = parameter_with_gradient(norm), parameter_with_gradient(norm)
    optimizer = torch.optim.SGD([ours], lr=1.0)
    clip_before_step(optimizer, 1.0)
    torch.nn.utils.clip_grad_norm_([ours], 12)  # as nnU-Net's train_step does before every step
    optimizer.step()
    torch.nn.utils.clip_grad_norm_([reference], 1.0)
    torch.optim.SGD([reference], lr=1.0).step()
    assert torch.allclose(ours, reference, rtol=1e-5)


def test_primus_clips_at_one_and_cnn_leaves_nnunets_clipping_alone() -> None:
    for family, expected in (("primus", 1.0), ("cnn", 8.0)):
        parameter = parameter_with_gradient(8.0)
        optimizer = make_optimizer([parameter], recipe_for(family))
        before = copy.deepcopy(parameter.grad)
        optimizer.step()
        assert parameter.grad is not None
        assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-4)
        assert before is not None
