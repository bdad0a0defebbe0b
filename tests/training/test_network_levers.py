"""Drop path, gradient checkpointing and channels last: the same networks, trained otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training import network_levers
from nnunetv2_ext.training.network_levers import checkpoint_activations, set_drop_path, to_channels_last
from tests.transfer.networks import plain_unet, resenc

SHAPE = (16, 16, 16)


def tiny_primus(drop_path_rate: float = 0.0) -> Primus:
    torch.manual_seed(0)
    return Primus(
        input_channels=1, num_classes=2, embed_dim=24, patch_embed_size=(8, 8, 8), eva_depth=4, eva_numheads=1,
        input_shape=SHAPE, init_values=0.1, scale_attn_inner=True, drop_path_rate=drop_path_rate,
    )  # fmt: skip


def tiny_resenc() -> nn.Module:
    torch.manual_seed(0)
    return resenc(features=(4, 8, 8), blocks=(1, 2, 2))


def tiny_plain_unet() -> nn.Module:
    torch.manual_seed(0)
    return plain_unet(features=(4, 8, 8))


NETWORKS = pytest.mark.parametrize("make", [tiny_resenc, tiny_plain_unet, tiny_primus])


def data() -> torch.Tensor:
    return torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))


def output_and_gradients(network: nn.Module, seed: int = 0) -> list[torch.Tensor]:
    """The output, and the gradient of each parameter that has one."""
    torch.manual_seed(seed)
    output = network(data())
    output.square().mean().backward()
    return [output.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


def all_equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def saved_bytes(network: nn.Module) -> int:
    """What autograd keeps between the forward and the backward pass, weights aside."""
    weights = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(data()).mean()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize("before", [0.0, 0.3])
def test_drop_path_is_that_of_a_network_built_with_it(before: float) -> None:
    network, built = tiny_primus(before), tiny_primus(0.5)
    built.load_state_dict(network.state_dict())
    set_drop_path(network, 0.5)
    assert str(network) == str(built)
    assert all_equal(output_and_gradients(network), output_and_gradients(built))
    plain = tiny_primus()
    plain.load_state_dict(network.state_dict())
    assert not torch.equal(output_and_gradients(plain)[0], output_and_gradients(built)[0])


def test_drop_path_rises_linearly_with_the_block_to_its_rate() -> None:
    network = tiny_primus()
    set_drop_path(network, 0.3)
    rates = [[m.drop_prob for m in (b.drop_path1, b.drop_path2)] for b in network.eva.blocks[1:]]
    assert rates == [[pytest.approx(0.3 * i / 3)] * 2 for i in (1, 2, 3)]


def test_drop_path_changes_no_name_and_no_value_and_nothing_in_eval() -> None:
    network = tiny_primus().eval()
    before, expected = copy.deepcopy(network.state_dict()), network(data())
    set_drop_path(network, 0.9)
    assert list(network.state_dict()) == list(before)
    assert all_equal(list(network.state_dict().values()), list(before.values()))
    assert torch.equal(network(data()), expected)


def test_drop_path_is_switched_off_with_zero() -> None:
    network = tiny_primus(0.5)
    set_drop_path(network, 0.0)
    assert str(network) == str(tiny_primus())


def test_drop_path_of_a_unet_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"drop path is for Primus, a ResidualEncoderUNet .* --set drop_path=0"):
        set_drop_path(tiny_resenc(), 0.2)
    set_drop_path(tiny_resenc(), 0)


@NETWORKS
def test_checkpointing_changes_no_output_gradient_or_name(make: Callable[[], nn.Module]) -> None:
    network, plain = make(), make()
    checkpoint_activations(network)
    assert list(network.state_dict()) == list(plain.state_dict())
    assert all_equal(output_and_gradients(network), output_and_gradients(plain))


@pytest.mark.parametrize(("make", "share"), [(tiny_resenc, 0.5), (tiny_plain_unet, 0.55), (tiny_primus, 0.7)])
def test_checkpointing_keeps_a_share_of_the_activations(make: Callable[[], nn.Module], share: float) -> None:
    """One convolution in a stage is the least there is to save; without stem, encoder or decoder it would be more."""
    network = make()
    before = saved_bytes(network)
    checkpoint_activations(network)
    assert saved_bytes(network) < share * before


@NETWORKS
def test_checkpointing_does_nothing_in_eval_or_without_gradients(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make()
    checkpoint_activations(network)

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("checkpointed")

    monkeypatch.setattr(network_levers, "checkpoint", fail)
    with torch.no_grad():
        network(data())
    network.eval()
    network(data())
    network.train()
    with pytest.raises(AssertionError, match="checkpointed"):
        network(data())


def test_checkpointing_replays_drop_path() -> None:
    network, plain = tiny_primus(0.5), tiny_primus(0.5)
    checkpoint_activations(network)
    assert all_equal(output_and_gradients(network), output_and_gradients(plain))
    assert not torch.equal(output_and_gradients(plain, seed=1)[0], output_and_gradients(plain)[0])


def test_checkpointing_leaves_a_frozen_encoder_without_gradients() -> None:
    network, plain = tiny_resenc(), tiny_resenc()
    for each in (network, plain):
        each.encoder.requires_grad_(False)
    checkpoint_activations(network)
    assert all_equal(output_and_gradients(network), output_and_gradients(plain))
    assert all(p.grad is None for p in network.encoder.parameters())


def test_a_copy_of_a_checkpointed_network_computes_with_its_own_weights() -> None:
    network = tiny_resenc()
    checkpoint_activations(network)
    duplicate = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all_equal(output_and_gradients(duplicate), output_and_gradients(tiny_resenc()))


def test_checkpointing_of_an_unknown_network_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"Linear has no stages .* --set gradient_checkpointing=false"):
        checkpoint_activations(nn.Linear(2, 2))


@NETWORKS
def test_channels_last_computes_the_same(make: Callable[[], nn.Module]) -> None:
    network, plain = make(), make()
    to_channels_last(network)
    assert all_equal(list(network.state_dict().values()), list(plain.state_dict().values()))
    ours = network(data().to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(ours, plain(data()), rtol=1e-5, atol=1e-5)


def test_channels_last_reaches_the_convolutions() -> None:
    network, seen = tiny_resenc(), []
    to_channels_last(network)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    for convolution in convolutions:
        convolution.register_forward_hook(lambda _, __, output: seen.append(output))
    network(data())
    assert len(seen) == len(convolutions) > 10
    for tensor in [*seen, *(c.weight for c in convolutions if c.in_channels > 1)]:
        assert tensor.is_contiguous(memory_format=torch.channels_last_3d)
        assert not tensor.is_contiguous()
