"""A report is believed only after the network was compared with it: what was tampered with is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nnunetv2_ext.transfer.loading import TransferMismatchError, load_and_verify
from tests.transfer.networks import (
    PLAIN_KEYS,
    PRIMUS_KEYS,
    RESENC_KEYS,
    copies,
    plain_unet,
    plan_into,
    primus,
    random_values,
    resenc,
    weights_of,
)


def once(tamper: Callable[[], object], after: int) -> Callable[[], None]:
    """A `release` that does something else too, after so many tensors."""
    calls: list[int] = []

    def release() -> None:
        calls.append(1)
        if len(calls) == after:
            with torch.no_grad():
                tamper()

    return release


def load_and_tamper(name: str, after: int | None = None, channels: int = 2) -> None:
    """Change one value of a network by the smallest step that its type knows, after all tensors or `after` of them."""
    network = resenc(channels=channels)
    transfer = plan_into(network, weights_of("tiny_resenc"), RESENC_KEYS)
    values = network.state_dict()[name].view(-1)
    up = torch.tensor(float("inf"))
    load_and_verify(
        network,
        transfer,
        once(lambda: values[-1:].copy_(torch.nextafter(values[-1:], up)), after or len(transfer.steps)),
    )


@pytest.mark.parametrize(
    ("action", "name", "after"),
    [
        ("copied", "encoder.stages.3.blocks.1.conv2.conv.weight", None),
        ("adapted", "encoder.stem.convs.0.conv.weight", None),
        ("fresh", "decoder.seg_layers.2.bias", None),
        ("fresh", "decoder.transpconvs.0.weight", 1),
    ],
)
def test_one_value_that_changed_after_loading_is_found(action: str, name: str, after: int | None) -> None:
    transfer = plan_into(resenc(channels=2), weights_of("tiny_resenc"), RESENC_KEYS)
    assert {r.action for r in transfer.report.records if name in (r.name, *r.aliases)} == {action}
    with pytest.raises(TransferMismatchError, match="a tensor is not what the report says") as caught:
        load_and_tamper(name, after)
    assert name in str(caught.value)


def test_a_value_that_changed_before_its_tensor_was_written_does_no_harm() -> None:
    """Otherwise the tests above would pass for any change, and not for one that stays."""
    load_and_tamper("encoder.stages.3.blocks.1.conv2.conv.weight", after=1)


class _Halved(torch.Tensor):
    """A parameter that does not keep what is copied into it, as a tensor of another device may not."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_:
            args = (args[0], args[1] * 0.5)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def test_a_copy_that_did_not_arrive_as_it_was_sent_is_found() -> None:
    network = plain_unet()
    transfer = plan_into(network, random_values(plain_unet()), PLAIN_KEYS)
    norm = network.encoder.stages[1][0].convs[0].norm
    norm._parameters["weight"] = norm.weight.detach().as_subclass(_Halved)
    norm.weight.requires_grad_(False)
    with pytest.raises(TransferMismatchError, match=r"a tensor is not .*: encoder\.stages\.1\.0\.convs\.0\.norm"):
        load_and_verify(network, transfer)


def test_a_name_that_came_apart_from_its_tensor_is_found() -> None:
    network = resenc()
    transfer = plan_into(network, weights_of("tiny_resenc"), RESENC_KEYS)
    block = network.encoder.stages[2].blocks[0].conv1
    block.conv = nn.Conv3d(16, 32, 3, stride=2, padding=1)
    block.conv.weight.data.copy_(weights_of("tiny_resenc")["encoder.stages.2.blocks.0.conv1.conv.weight"])
    with pytest.raises(TransferMismatchError, match=r"encoder\.stages\.2\.blocks\.0\.conv1\.all_modules\.0"):
        load_and_verify(network, transfer)


def test_fresh_tensors_of_every_kind_are_watched() -> None:
    """Buffers too, and numbers without a dimension."""
    network = primus()
    network.register_buffer("step", torch.tensor(3))
    transfer = plan_into(network, weights_of("tiny_primus"), PRIMUS_KEYS)
    with pytest.raises(TransferMismatchError, match="a tensor is not what the report says: step"):
        load_and_verify(network, transfer, once(lambda: network.step.add_(1), len(transfer.steps)))


def test_a_fresh_tensor_that_is_not_finite_is_fresh_all_the_same() -> None:
    network = primus()
    network.mask_token.fill_(float("nan"))
    load_and_verify(network, plan_into(network, weights_of("tiny_primus"), PRIMUS_KEYS))
    assert network.mask_token.isnan().all()


def test_values_are_made_one_at_a_time_and_memory_given_back_after_each() -> None:
    network = resenc()
    transfer = plan_into(network, weights_of("tiny_resenc"), RESENC_KEYS)
    calls: list[int] = []
    load_and_verify(network, transfer, lambda: calls.append(1))
    assert len(calls) == 2 * len(transfer.steps)  # written, then compared


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_type_is_verified_in_its_own(dtype: torch.dtype) -> None:
    network = plain_unet(channels=2).to(dtype)
    load_and_verify(network, plan_into(network, random_values(plain_unet()), PLAIN_KEYS))


def test_loading_twice_gives_the_same_network() -> None:
    network = plain_unet(channels=4)
    weights = random_values(plain_unet())
    load_and_verify(network, plan_into(network, weights, PLAIN_KEYS))
    once_loaded = copies(network.state_dict())
    load_and_verify(network, plan_into(network, weights, PLAIN_KEYS))
    assert all(torch.equal(tensor, once_loaded[name]) for name, tensor in network.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_network_on_a_gpu_gets_the_checkpoints_values() -> None:
    network, weights = plain_unet().cuda(), random_values(plain_unet())
    load_and_verify(network, plan_into(network, weights, PLAIN_KEYS))
    for name, tensor in network.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(tensor.cpu(), weights[name])
