"""Groups of parameters with rates that fall towards the input: the scale worked out from the name alone."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_ext.recipes.recipe import Recipe
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.training.lora import adaptable_modules, inject
from nnunetv2_ext.training.optimizers import make_optimizer, parameter_groups
from nnunetv2_ext.training.parts import selected_parameters, train_only
from nnunetv2_ext.training.schedule import EpochSchedule
from tests.training.architectures import PRIMUSES, U_NETS, network
from tests.transfer.networks import primus, resenc

BLOCKS = {**U_NETS, **PRIMUSES}
every_network = pytest.mark.parametrize("name", BLOCKS)
DECAY = 0.85


def recipe_of(name: str, *changes: str) -> Recipe:
    return recipe_for("primus" if name in PRIMUSES else "cnn", list(changes), chosen="layer_decay")


def distance_from_the_output(parameter: str, count: int) -> int:
    """How many layers lie behind it: none for the decoder, 1 for the last block, one more than blocks for a stem."""
    if match := re.match(r"(?:encoder\.stages|eva\.blocks)\.(\d+)\.", parameter):
        return count - int(match[1])
    if parameter.startswith(("encoder.stem.", "down_projection.", "eva.pos_embed", "register_tokens")):
        return count + 1
    assert parameter.startswith(("decoder.", "up_projection.", "eva.norm.")), parameter
    return 0


def by_name(net: nn.Module, groups: list[dict]) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


@every_network
def test_every_parameter_is_in_one_group(name: str) -> None:
    groups = parameter_groups(network(name), recipe_of(name))
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in network(name).parameters()}


@every_network
@pytest.mark.parametrize("decay", [0.85, 0.5, 1.0])
def test_the_scale_falls_by_the_decay_from_each_block_to_the_one_before_it(name: str, decay: float) -> None:
    groups = parameter_groups(network(name), recipe_of(name, f"layer_decay={decay}"))
    count = BLOCKS[name][0]
    for parameter, group in by_name(network(name), groups).items():
        expected = decay ** distance_from_the_output(parameter, count)
        assert group["lr_scale"] == pytest.approx(expected, rel=1e-12), parameter


@pytest.mark.parametrize(("name", "lowest"), [("ResEncL", 7), ("PlainConvUNet", 5), ("PrimusS", 13), ("Primus", 13)])
def test_the_stem_has_the_lowest_rate(name: str, lowest: int) -> None:
    """ResEnc-L: a stem before 6 stages; a PlainConvUNet's stem is the first of 5; 12 blocks after a patch embedding."""
    net = network(name)
    found = by_name(net, parameter_groups(net, recipe_of(name)))
    scales = {found[parameter]["lr_scale"] for parameter in selected_parameters(net, ["stem"])}
    (scale,) = scales
    assert scale == pytest.approx(DECAY**lowest)
    assert scale == min(group["lr_scale"] for group in found.values())


@every_network
def test_vectors_positions_and_extra_tokens_have_no_weight_decay(name: str) -> None:
    groups = by_name(network(name), parameter_groups(network(name), recipe_of(name)))
    for parameter, tensor in network(name).named_parameters():
        free = tensor.ndim < 2 or parameter in ("eva.pos_embed", "register_tokens")
        assert groups[parameter]["weight_decay"] == (0 if free else 0.05), parameter


@every_network
def test_the_group_that_is_shown_comes_first_and_has_the_full_rate(name: str) -> None:
    scales = [group["lr_scale"] for group in parameter_groups(network(name), recipe_of(name))]
    assert scales[0] == 1
    assert scales == sorted(scales, reverse=True)
    assert len(set(scales)) == 1 + BLOCKS[name][0] + (name != "PlainConvUNet")


@every_network
def test_the_schedule_gives_every_parameter_its_own_rate_at_every_epoch(name: str) -> None:
    recipe, net = recipe_of(name), network(name)
    optimizer = make_optimizer(net, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    schedule = EpochSchedule(optimizer, recipe, effective_batch=8)
    epochs = np.arange(1000)
    shape = np.where(epochs < 50, (epochs + 1) / 50, np.cos(np.pi * (epochs - 50) / 950 / 2) ** 2)
    groups = by_name(net, optimizer.param_groups)
    for epoch in (0, 1, 49, 50, 500, 999):
        schedule.step(epoch)
        full = 1e-3 * 8 / 256 * shape[epoch]
        assert schedule.get_last_lr()[0] == pytest.approx(full)
        for parameter, group in groups.items():
            expected = full * DECAY ** distance_from_the_output(parameter, BLOCKS[name][0])
            assert group["lr"] == pytest.approx(expected, rel=1e-9)


@every_network
def test_without_layer_decay_all_are_one_group_with_the_recipes_weight_decay(name: str) -> None:
    net = network(name)
    (group,) = make_optimizer(net, recipe_for("primus" if name in PRIMUSES else "cnn")).param_groups
    assert len(group["params"]) == len(list(net.parameters()))
    assert group["weight_decay"] == (5e-2 if name in PRIMUSES else 3e-5)


@every_network
@pytest.mark.parametrize("part", ["decoder", "stage:1.."])
def test_what_never_trains_is_left_out_and_the_others_keep_their_scale(name: str, part: str) -> None:
    net = copy.deepcopy(network(name))
    trained = selected_parameters(net, [part])
    train_only(net, trained)
    found = by_name(net, parameter_groups(net, recipe_of(name)))
    assert set(found) == trained
    for parameter, group in found.items():
        assert group["lr_scale"] == pytest.approx(DECAY ** distance_from_the_output(parameter, BLOCKS[name][0]))


@pytest.mark.parametrize(("make", "count"), [(resenc, 4), (primus, 3)])
def test_adapters_have_the_rate_of_the_block_that_they_are_in(make: type[nn.Module], count: int) -> None:
    pytest.importorskip("peft")
    net = make()
    inject(net, adaptable_modules(net, selected_parameters(net, ["encoder"])), rank=2, alpha=2.0, dropout=0.0)
    adapters = selected_parameters(net, ["lora"])
    train_only(net, adapters)
    found = by_name(net, parameter_groups(net, recipe_of("PrimusS")))
    assert set(found) == adapters
    for parameter, group in found.items():
        assert group["lr_scale"] == pytest.approx(DECAY ** distance_from_the_output(parameter, count))


def test_a_step_moves_a_parameter_in_proportion_to_its_scale() -> None:
    """AdamW's first step is the rate in size, whatever the gradient."""
    net = resenc(features=(4, 8, 16))
    recipe = recipe_of("ResEncL", "weight_decay=0", "optimizer=adamw")
    optimizer = make_optimizer(net, recipe)
    EpochSchedule(optimizer, recipe, effective_batch=256).step(49)  # the peak: 1e-3
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    for name, parameter in net.named_parameters():
        moved = (before[name] - parameter.detach()).abs().mean().item()
        assert moved == pytest.approx(1e-3 * DECAY ** distance_from_the_output(name, 3), rel=1e-2), name
