"""The average of the weights: its closed form, its exchange with the network, its state."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_ext.training.average import WeightAverage, decay_of_update
from tests.transfer.networks import resenc

Values = list[torch.Tensor]


def values(network: nn.Module) -> Values:
    return [p.detach().clone() for p in network.parameters()]


def equal(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def averaged(average: WeightAverage, network: nn.Module) -> Values:
    with average.swapped(network):
        return values(network)


def move(network: nn.Module, seed: int) -> None:
    """A step of some optimizer: what trains moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


def trained(network: nn.Module, decay: float = 0.9, steps: int = 3) -> WeightAverage:
    average = WeightAverage(network, decay)
    for step in range(steps):
        move(network, step)
        average.update(network)
    return average


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_the_average_is_the_weighted_sum_of_all_weights_there_were(decay: float) -> None:
    """In numpy: the weight of step t is (1 - d_t) times all later d, and that of the start the product of all d."""
    network = nn.Linear(3, 2)
    history = [network.weight.detach().double().numpy().copy()]
    average = WeightAverage(network, decay)
    for step in range(30):
        move(network, step)
        average.update(network)
        history.append(network.weight.detach().double().numpy().copy())
    d = np.minimum(decay, [(1 + t) / (10 + t) for t in range(30)])
    weights = [np.prod(d)] + [(1 - d[t]) * np.prod(d[t + 1 :]) for t in range(30)]
    assert sum(weights) == pytest.approx(1)
    np.testing.assert_allclose(averaged(average, network)[0].numpy(), np.tensordot(weights, history, 1), atol=1e-5)


def test_the_decay_is_a_tenth_at_first_and_reaches_its_value() -> None:
    assert decay_of_update(0.999, 0) == 0.1
    assert decay_of_update(0.999, 8000) < 0.999
    assert decay_of_update(0.999, 8990) == 0.999
    assert decay_of_update(0.05, 0) == 0.05


def test_swapped_gives_the_network_the_average_and_then_its_own_weights_back() -> None:
    network = resenc(features=(4, 8), blocks=(1, 1))
    average = trained(network)
    own, addresses = values(network), [p.data_ptr() for p in network.parameters()]
    with average.swapped(network):
        inside = values(network)
        assert [p.data_ptr() for p in network.parameters()] == addresses
    assert not any(torch.equal(a, b) for a, b in zip(inside, own, strict=True))
    assert equal(network.parameters(), own)
    assert equal(averaged(average, network), inside)
    assert [p.data_ptr() for p in network.parameters()] == addresses


def test_the_weights_come_back_after_an_error() -> None:
    network = nn.Linear(3, 2)
    average = trained(network)
    own, there = values(network), averaged(average, network)
    with pytest.raises(KeyboardInterrupt), average.swapped(network):
        raise KeyboardInterrupt
    assert equal(network.parameters(), own)
    assert equal(averaged(average, network), there)


def test_swapped_within_swapped_changes_nothing() -> None:
    network = nn.Linear(3, 2)
    average = trained(network)
    own = values(network)
    with average.swapped(network):
        inside = values(network)
        with average.swapped(network):
            assert equal(network.parameters(), inside)
        assert equal(network.parameters(), inside)
    assert equal(network.parameters(), own)


def test_the_average_is_not_taken_into_itself() -> None:
    network = nn.Linear(3, 2)
    average = trained(network)
    with average.swapped(network), pytest.raises(RuntimeError, match="holds the average"):
        average.update(network)


def test_a_parameter_under_several_names_is_averaged_once() -> None:
    network = resenc(features=(4, 8), blocks=(1, 1))
    aliases = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    assert "decoder.encoder.stem.convs.0.conv.weight" in aliases  # the case the test is for
    average = trained(network, 0.5, steps=1)  # d = 0.1 at the first step
    start = resenc(features=(4, 8), blocks=(1, 1))
    start.load_state_dict(network.state_dict())
    assert len(average.state_dict()["weights"]) == len(list(network.parameters())) < len(aliases)
    with average.swapped(network):
        state = network.state_dict()
    assert torch.equal(state["encoder.stem.convs.0.conv.weight"], state["decoder.encoder.stem.convs.0.conv.weight"])


def test_a_frozen_parameter_stays_bit_by_bit_and_one_frozen_later_is_approached() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[0].requires_grad_(False)
    average = WeightAverage(network, 0.9)
    frozen = values(network[0])
    for step in range(20):
        move(network, step)
        average.update(network)
    assert equal(averaged(average, network)[:2], frozen)

    network[0].requires_grad_(True)
    network[1].requires_grad_(False)
    for step in range(200):
        move(network, step)
        average.update(network)
    after = averaged(average, network)
    assert not equal(after[:2], frozen)
    torch.testing.assert_close(after[2:], values(network[1]))
    assert [p.requires_grad for p in network.parameters()] == [True, True, False, False]


def test_buffers_are_the_networks_own() -> None:
    network = nn.BatchNorm1d(2)
    average = WeightAverage(network, 0.9)
    network(torch.randn(8, 2))
    average.update(network)
    mean = network.running_mean.clone()
    with average.swapped(network):
        assert torch.equal(network.running_mean, mean)
        assert not torch.equal(mean, torch.zeros(2))


def test_it_holds_one_copy_of_the_parameters_and_no_graph() -> None:
    network = resenc(features=(4, 8), blocks=(1, 1))
    held = list(trained(network).state_dict()["weights"].values())
    assert sum(w.numel() for w in held) == sum(p.numel() for p in network.parameters())
    assert not any(w.requires_grad for w in held)
    assert {w.dtype for w in held} == {torch.float32}


def saved_and_loaded(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("inside", [False, True])
def test_a_continued_average_goes_on_bit_by_bit(inside: bool) -> None:
    """Outside `swapped`; and inside, where the checkpoint has the average as the network's weights."""
    network = nn.Linear(3, 2)
    average = trained(network)
    if inside:
        with average.swapped(network):
            exported = values(network)
            checkpoint = saved_and_loaded({"network": network.state_dict(), "average": average.state_dict()})
        assert equal(checkpoint["network"].values(), exported)
    else:
        checkpoint = saved_and_loaded({"network": network.state_dict(), "average": average.state_dict()})

    other = nn.Linear(3, 2)
    resumed = WeightAverage(other, 0.9)
    if inside:
        with resumed.swapped(other):
            other.load_state_dict(checkpoint["network"])
            resumed.load_state_dict(checkpoint["average"])
    else:
        other.load_state_dict(checkpoint["network"])
        resumed.load_state_dict(checkpoint["average"])
    assert equal(other.parameters(), network.parameters())
    for step in range(5):
        move(network, step)
        move(other, step)
        average.update(network)
        resumed.update(other)
    assert equal(averaged(resumed, other), averaged(average, network))


def test_a_state_made_inside_swapped_is_not_loaded_outside() -> None:
    network = nn.Linear(3, 2)
    average = trained(network)
    with average.swapped(network):
        state = copy.deepcopy(average.state_dict())
    with pytest.raises(RuntimeError, match="inside `swapped`"):
        average.load_state_dict(state)


@pytest.mark.parametrize("other", [nn.Linear(1, 2), nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2)])
def test_the_state_of_another_network_is_refused(other: nn.Module) -> None:
    average = trained(nn.Linear(3, 2))
    before = copy.deepcopy(average.state_dict())
    with pytest.raises(RuntimeError, match=r"is of another network: (weight|bias) "):
        average.load_state_dict(WeightAverage(other, 0.9).state_dict())
    assert equal(average.state_dict()["weights"].values(), before["weights"].values())
