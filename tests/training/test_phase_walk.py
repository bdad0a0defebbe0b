"""Walking through phases with real networks, optimizers and steps: what is fixed does not move by a bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.phases import Curve, OptimizerState, Phase
from nnunetv2_ext.recipes.recipe import Lora, Optimizer, Recipe
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.training.network_setup import set_up, unused_parameters
from nnunetv2_ext.training.optimizers import make_optimizer
from nnunetv2_ext.training.parts import train_only
from nnunetv2_ext.training.phase_walk import PhaseWalk, phase_lines
from nnunetv2_ext.training.schedule import EpochSchedule
from tests.transfer.networks import plain_unet, primus, resenc

KEPT, RESTARTED = OptimizerState.kept, OptimizerState.restarted
OPTIMIZERS = {
    "sgd": Recipe(optimizer=Optimizer.sgd, momentum=0.99, nesterov=True, weight_decay=0.1, initial_lr=0.01),
    "adamw": Recipe(optimizer=Optimizer.adamw, weight_decay=0.1, initial_lr=0.01),
    "layer_decay": Recipe(optimizer=Optimizer.adamw, weight_decay=0.1, initial_lr=0.01, layer_decay=0.8),
}
WALK = [("all",), ("decoder",), ("head", "stem"), ("all",)]
"""Two epochs each: what has trained, and has momentum, is fixed and trains again."""
FIXED: dict[str, dict[str, tuple[str, ...]]] = {
    "resenc": {"decoder": ("encoder.",), "head + stem": ("encoder.stages.", "decoder.stages.", "decoder.transpconvs.")},
    "primus": {
        "decoder": ("eva.", "down_projection."),
        "head + stem": ("eva.", "up_projection.decode.0.", "up_projection.decode.1."),
    },
}
PATCHES = {"resenc": 8, "primus": 32}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return resenc(features=(4, 8, 16)) if name == "resenc" else primus(depth=1)


def recipe_with(base: Recipe, *phases: Phase) -> Recipe:
    return replace(base, num_epochs=sum(phase.epochs for phase in phases), warmup_epochs=0, phases=list(phases))


def walking(base: Recipe) -> Recipe:
    return recipe_with(base, *(Phase(parts=list(parts), epochs=2, curve=Curve.constant) for parts in WALK))


class Training:
    """As the trainer does it: one optimizer through all phases, gradients set to none before every update."""

    def __init__(self, name: str, network: nn.Module, recipe: Recipe) -> None:
        self.name, self.network, self.recipe = name, network, recipe
        self.walk = PhaseWalk(network, recipe, never=unused_parameters(network, deep_supervision=False))
        train_only(network, self.walk.ever_trained)
        self.optimizer = make_optimizer(network, recipe)
        self.schedule = EpochSchedule(self.optimizer, recipe)
        self.log: list[str] = []

    def values(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}

    def run_epoch(self, epoch: int) -> None:
        self.schedule.step(epoch)
        self.walk.enter(epoch, self.optimizer, self.log.append)
        patch = PATCHES[self.name]
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(2):
            self.optimizer.zero_grad(set_to_none=True)
            output = self.network(torch.randn(1, 1, patch, patch, patch, generator=generator))
            output.softmax(1)[:, 1].mean().backward()
            self.optimizer.step()


@pytest.mark.parametrize("name", ["resenc", "primus"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_fixed_does_not_move_by_a_bit_and_all_else_moves_in_every_epoch(name: str, optimizer: str) -> None:
    training = Training(name, make(name), walking(OPTIMIZERS[optimizer]))
    unused = {n for n in training.values() if n.startswith("decoder.seg_layers.0.")}
    for epoch in range(8):
        before = training.values()
        training.run_epoch(epoch)
        after = training.values()
        fixed_prefixes = FIXED[name].get(" + ".join(WALK[epoch // 2]), ())
        for parameter in before:
            fixed = parameter in unused or (bool(fixed_prefixes) and parameter.startswith(fixed_prefixes))
            assert torch.equal(before[parameter], after[parameter]) is fixed, (epoch, parameter)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_momentum_of_what_is_fixed_waits_until_it_trains_again(optimizer: str) -> None:
    training = Training("resenc", make("resenc"), walking(OPTIMIZERS[optimizer]))
    stem = dict(training.network.named_parameters())["encoder.stem.convs.0.conv.weight"]
    key = "momentum_buffer" if optimizer == "sgd" else "exp_avg"
    for epoch in (0, 1):
        training.run_epoch(epoch)
    before = training.optimizer.state[stem][key].clone()
    for epoch in (2, 3):
        training.run_epoch(epoch)
        assert torch.equal(training.optimizer.state[stem][key], before)
    training.run_epoch(4)
    assert not torch.equal(training.optimizer.state[stem][key], before)


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_training_that_is_continued_at_any_epoch_ends_with_the_same_bits(stop: int) -> None:
    phases = [
        Phase(parts=["decoder"], epochs=2, curve=Curve.linear, lr_scale=0.5),
        Phase(parts=["all"], epochs=3, curve=Curve.linear, optimizer=RESTARTED),
        Phase(parts=["head", "stage:1.."], epochs=3, curve=Curve.poly),
    ]
    recipe = recipe_with(OPTIMIZERS["sgd"], *phases)
    whole = Training("resenc", make("resenc"), recipe)
    for epoch in range(8):
        if epoch == stop:
            weights = copy.deepcopy(whole.network.state_dict())
            state = copy.deepcopy(whole.optimizer.state_dict())
        whole.run_epoch(epoch)
    continued = Training("resenc", resenc(features=(4, 8, 16)), recipe)
    continued.network.load_state_dict(weights)
    continued.optimizer.load_state_dict(state)
    for epoch in range(stop, 8):
        continued.run_epoch(epoch)
    for name, value in whole.values().items():
        assert torch.equal(value, continued.values()[name]), name


@pytest.mark.parametrize("parts", [["lora", "decoder"], ["all"]])
def test_weights_with_an_adapter_do_not_move_by_a_bit_and_the_adapters_do(parts: list[str]) -> None:
    pytest.importorskip("peft")
    recipe = recipe_with(replace(OPTIMIZERS["adamw"], lora=Lora(rank=2)), Phase(parts=parts, epochs=2))
    network = make("resenc")
    set_up(network, recipe)
    training = Training("resenc", network, recipe)
    before = training.values()
    for epoch in (0, 1):
        training.run_epoch(epoch)
    after = training.values()
    wrapped = {name for name in before if ".base_layer." in name}
    assert wrapped
    assert all(torch.equal(before[name], after[name]) for name in wrapped)
    adapters = {name for name in before if ".lora_" in name}
    assert len(adapters) == len([name for name in wrapped if name.endswith("weight")]) * 2
    assert not any(torch.equal(before[name], after[name]) for name in adapters)


# when the optimizer begins anew


def stateful(network: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.state
    return optimizer


def phases_of(second: OptimizerState) -> Recipe:
    return recipe_with(Recipe(), Phase(parts=["decoder"], epochs=3), Phase(epochs=4, optimizer=second), Phase(epochs=2))


@pytest.mark.parametrize(
    ("second", "epoch", "is_anew"),
    [(RESTARTED, 3, True), (RESTARTED, 4, False), (RESTARTED, 6, False), (RESTARTED, 0, False), (RESTARTED, 2, False),
     (RESTARTED, 7, False), (KEPT, 3, False), (KEPT, 0, False)],
)  # fmt: skip
def test_the_optimizer_begins_anew_in_the_first_epoch_of_a_phase_that_says_so_and_not_where_one_continues_within(
    second: OptimizerState, epoch: int, is_anew: bool
) -> None:
    network = resenc(features=(2, 4))
    optimizer, lines = stateful(network), list[str]()
    PhaseWalk(network, phases_of(second)).enter(epoch, optimizer, lines.append)
    assert (not optimizer.state) is is_anew
    assert [("begins anew" in line) for line in lines] == [is_anew]


def test_the_optimizer_begins_anew_once() -> None:
    network = resenc(features=(2, 4))
    optimizer, lines = stateful(network), list[str]()
    walk = PhaseWalk(network, phases_of(RESTARTED))
    for epoch in range(9):
        if epoch in (4, 5):
            optimizer.state[next(network.parameters())] = {"momentum_buffer": torch.zeros(1)}
        walk.enter(epoch, optimizer, lines.append)
    assert len(lines) == 3
    assert len(optimizer.state) == 1


# what it says of itself


def test_entering_a_phase_says_which_once_and_what_share_trains() -> None:
    network = plain_unet()
    recipe = phases_of(KEPT)
    lines: list[str] = []
    walk = PhaseWalk(network, recipe)
    optimizer = make_optimizer(network, recipe)
    spans = [walk.enter(epoch, optimizer, lines.append).index for epoch in range(9)]
    assert spans == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    total = sum(p.numel() for p in network.parameters())
    decoder = sum(p.numel() for n, p in network.named_parameters() if n.startswith("decoder."))
    assert lines == [
        f"Phase 1 of 3 (decoder: poly), epochs 0 to 2: {decoder:,} of {total:,} parameters train "
        f"({decoder / total:.1%})",
        f"Phase 2 of 3 (all: poly), epochs 3 to 6: {total:,} of {total:,} parameters train (100.0%)",
        f"Phase 3 of 3 (all: poly), epochs 7 to 8: {total:,} of {total:,} parameters train (100.0%)",
    ]


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        ([["head"], ["stem"]], ("decoder.seg_layers.", "encoder.stages.0.")),
        ([["decoder"], ["head"]], ("decoder.",)),
        ([["stage:2"]], ("encoder.stages.2.",)),
    ],
)
def test_what_trains_in_some_phase_is_the_union_and_the_most_is_the_largest_phase(
    parts: Sequence[list[str]], prefixes: tuple[str, ...]
) -> None:
    network = plain_unet()
    walk = PhaseWalk(network, recipe_with(Recipe(), *(Phase(parts=p, epochs=1) for p in parts)))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert walk.ever_trained == {name for name in sizes if name.startswith(prefixes)}
    largest = max(sum(n for name, n in sizes.items() if name.startswith(prefix)) for prefix in prefixes)
    assert walk.most_trained == largest
    for epoch, part in enumerate(parts):
        assert walk.let_train(epoch) == sum(sizes[n] for n, p in network.named_parameters() if p.requires_grad), part


def test_what_has_no_part_in_the_output_never_trains() -> None:
    network = resenc()
    never = [
        n for n, _ in network.named_parameters() if n.startswith(("decoder.seg_layers.0.", "decoder.seg_layers.1."))
    ]
    walk = PhaseWalk(network, recipe_for("cnn"), never=never)
    assert walk.ever_trained == {n for n, _ in network.named_parameters()} - set(never)
    walk.let_train(0)
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == set(never)


@pytest.mark.parametrize("adapted_input", [False, True])
def test_the_sawtooth_lets_an_adapted_input_projection_train_with_the_decoder(adapted_input: bool) -> None:
    network = resenc()
    walk = PhaseWalk(network, recipe_for("cnn", chosen="sawtooth"), adapted_input=adapted_input)
    for epoch in (0, 24, 25, 49):
        walk.let_train(epoch)
        trained = {n for n, p in network.named_parameters() if p.requires_grad and not n.startswith("decoder.")}
        assert trained == ({"encoder.stem.convs.0.conv.weight"} if adapted_input else set())
    for epoch in (50, 999):
        assert walk.let_train(epoch) == sum(p.numel() for p in network.parameters())


def test_a_part_that_matches_nothing_is_refused_before_anything_trains() -> None:
    recipe = recipe_with(Recipe(), Phase(epochs=1), Phase(parts=["xyz.*"], epochs=1))
    with pytest.raises(UserError, match=r"recipe: xyz\.\* matches nothing in this network"):
        PhaseWalk(plain_unet(), recipe)


def test_a_phase_without_an_epoch_needs_no_parts_and_is_said_to_have_none() -> None:
    recipe = recipe_for("cnn", ["num_epochs=2"], chosen="sawtooth")
    walk = PhaseWalk(plain_unet(), recipe)
    assert [span.index for span in walk.spans] == [0, 1]
    assert phase_lines(recipe) == [
        "  epochs 0 to 0: decoder + adapted_input_projection: linear, peak 0.001",
        "  epochs 1 to 1: decoder + adapted_input_projection: poly, peak 0.001",
        "  no epoch is left for all: linear",
        "  no epoch is left for all: poly",
    ]


@pytest.mark.parametrize(
    ("family", "lines"),
    [
        ("cnn", ["epochs 0 to 24: decoder + adapted_input_projection: linear, peak 0.001",
                 "epochs 25 to 49: decoder + adapted_input_projection: poly, peak 0.001",
                 "epochs 50 to 99: all: linear, peak 0.001", "epochs 100 to 999: all: poly, peak 0.001"]),
        ("primus", ["epochs 0 to 24: decoder + adapted_input_projection: linear, peak 1e-06",
                    "epochs 25 to 49: decoder + adapted_input_projection: poly, peak 1e-05",
                    "epochs 50 to 99: all: linear, peak 0.0001", "epochs 100 to 999: all: poly, peak 0.0001"]),
    ],
)  # fmt: skip
def test_the_log_lists_the_phases_with_their_peaks(family: str, lines: list[str]) -> None:
    assert [line.strip() for line in phase_lines(recipe_for(family, chosen="sawtooth"))] == lines


@pytest.mark.parametrize("build", [resenc, plain_unet, primus])
def test_after_the_last_epoch_the_last_phase_goes_on(build: Callable[[], nn.Module]) -> None:
    network = build()
    walk = PhaseWalk(network, phases_of(KEPT))
    assert walk.let_train(9) == walk.let_train(8)
