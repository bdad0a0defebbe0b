"""Transfer as a whole: the encoder is the checkpoint's, tensor by tensor, the decoder the network's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from nnunetv2_ext.transfer.matching import PartKeys
from nnunetv2_ext.transfer.report import TransferReport
from tests.transfer import references
from tests.transfer.networks import (
    NETWORKS,
    PLAIN_KEYS,
    PRIMUS_KEYS,
    copies,
    keys_of,
    of_encoder,
    plain_unet,
    plan_into,
    primus,
    random_values,
    records_by_name,
    resenc,
    transfer_into,
    weights_of,
)

BOTH = pytest.mark.parametrize("name", ["tiny_resenc", "tiny_primus"])


def transfer(
    name: str, network: nn.Module, weights: dict[str, torch.Tensor] | None = None, **options: object
) -> TransferReport:
    return transfer_into(network, weights_of(name) if weights is None else weights, keys_of(name), **options)


@BOTH
def test_the_encoder_equals_the_checkpoint_tensor_by_tensor(name: str) -> None:
    network = NETWORKS[name]()
    transfer(name, network)
    weights = weights_of(name)
    encoder = {n: t for n, t in network.state_dict().items() if of_encoder(n)}
    assert {n for n in weights if of_encoder(n) and not n.startswith("decoder.")} <= set(encoder)
    for n, tensor in encoder.items():
        assert torch.equal(tensor, weights[n.removeprefix("decoder.")]), n


@BOTH
def test_the_decoder_keeps_its_own_values(name: str) -> None:
    network = NETWORKS[name]()
    before = copies(network.state_dict())
    transfer(name, network)
    decoder = {n: t for n, t in network.state_dict().items() if not of_encoder(n)}
    assert decoder
    assert all(torch.equal(tensor, before[n]) for n, tensor in decoder.items())


@BOTH
def test_a_network_without_values_gets_the_same_tensors(name: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[name]()
    planned = dict(plan_into(network, weights_of(name), keys_of(name)).values())
    loaded = NETWORKS[name]()
    report = transfer(name, loaded)
    assert set(planned) == {r.name for r in report.records if r.action != "fresh"}
    assert all(torch.equal(tensor, loaded.state_dict()[n]) for n, tensor in planned.items())


@BOTH
def test_planning_a_transfer_leaves_the_network_alone(name: str) -> None:
    network = NETWORKS[name]()
    before = copies(network.state_dict())
    list(plan_into(network, weights_of(name), keys_of(name)).values())
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())


@BOTH
def test_training_the_network_leaves_the_checkpoint_alone(name: str) -> None:
    weights = weights_of(name)
    before = copies(weights)
    network = NETWORKS[name](channels=2)
    transfer(name, network, weights)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[n]) for n, tensor in weights.items())


@BOTH
def test_parameters_stay_the_same_objects_with_gradients(name: str) -> None:
    network = NETWORKS[name]()
    before = dict(network.named_parameters())
    transfer(name, network)
    after = dict(network.named_parameters())
    assert all(after[n] is parameter and parameter.requires_grad for n, parameter in before.items())


def test_values_are_converted_to_the_networks_type() -> None:
    network = resenc().double()
    transfer("tiny_resenc", network)
    stem = network.state_dict()["encoder.stem.convs.0.conv.weight"]
    assert stem.dtype == torch.float64
    assert torch.equal(stem, weights_of("tiny_resenc")["encoder.stem.convs.0.conv.weight"].double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_and_said(dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in weights_of("tiny_primus").items()}
    network = primus()
    report = transfer("tiny_primus", network, weights)
    own = network.state_dict()
    assert all(own[n].dtype == torch.float32 and torch.equal(own[n], weights[n].float()) for n in own if of_encoder(n))
    count = sum(of_encoder(n) for n in own)
    assert f"{str(dtype).removeprefix('torch.')} as float32 ({count} tensors)" in report.remarks()
    assert report.coverage == 1


@pytest.mark.parametrize(("name", "stem"), [("tiny_resenc", "encoder.stem"), ("tiny_primus", "down_projection")])
def test_more_input_channels_change_the_input_projection_alone(name: str, stem: str) -> None:
    one, four = NETWORKS[name](), NETWORKS[name](channels=4)
    transfer(name, one)
    report = transfer(name, four)
    adapted = [r for r in report.records if r.action == "adapted"]
    assert [r.part for r in adapted] == ["stem"]
    assert "1 input channel to 4" in str(adapted[0].how)
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = one.get_submodule(stem)(image)
        repeated = four.get_submodule(stem)(image.repeat(1, 4, 1, 1, 1))
    torch.testing.assert_close(repeated, expected, atol=1e-4, rtol=1e-4)
    others = one.state_dict()
    for n, tensor in four.state_dict().items():
        if of_encoder(n) and tensor.shape == others[n].shape:
            assert torch.equal(tensor, others[n]), n


def test_fewer_input_channels_than_in_pre_training_are_summed() -> None:
    weights, network = weights_of("tiny_primus"), primus()
    weights["down_projection.proj.weight"] = torch.randn(96, 3, 8, 8, 8)
    transfer("tiny_primus", network, weights)
    torch.testing.assert_close(
        network.down_projection.proj.weight, weights["down_projection.proj.weight"].sum(1, keepdim=True)
    )


@pytest.mark.parametrize("channel_map", [(1, None, 0), (None, 2), (0, 1, 2, None, 0)])
def test_with_a_map_the_stem_gives_what_it_gave_on_the_mapped_channels(channel_map: tuple[int | None, ...]) -> None:
    """Channels of the pre-training that nothing maps to are absent there, as an image of zeros is."""
    source, network = plain_unet(channels=3), plain_unet(channels=len(channel_map))
    transfer_into(network, random_values(source), PLAIN_KEYS, channel_map=channel_map)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, len(channel_map), 8, 8, 8, generator=generator)
    known = torch.zeros(1, 3, 8, 8, 8)
    for new, old in enumerate(channel_map):
        if old is not None:
            known[:, old] += image[:, new]
    with torch.no_grad():
        torch.testing.assert_close(network.encoder.stages[0](image), source.encoder.stages[0](known))


@pytest.mark.parametrize("patch_size", [(16, 48, 32), (64, 64, 64), (16, 64, 32)])
def test_another_patch_interpolates_the_positional_embedding_as_scipy_does(patch_size: tuple[int, ...]) -> None:
    network = primus(patch_size=patch_size)
    report = transfer("tiny_primus", network, patch_size=patch_size)
    table = weights_of("tiny_primus")["eva.pos_embed"][0].double().numpy().reshape(4, 4, 4, 96)
    axes = [(np.arange(p // 8) + 0.5) * 4 / (p // 8) - 0.5 for p in patch_size]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    expected = np.stack([map_coordinates(table[..., c], where, order=1, mode="nearest") for c in range(96)], -1)
    np.testing.assert_allclose(network.eva.pos_embed.detach().numpy()[0], expected.reshape(-1, 96), atol=1e-6)
    assert [r.name for r in report.records if r.action == "adapted"] == ["eva.pos_embed"]
    assert network(torch.randn(1, 1, *patch_size)).shape == (1, 3, *patch_size)


def test_as_many_tokens_on_another_grid_count_as_another_patch() -> None:
    """16 x 64 x 32 voxels have the 64 tokens of 32 x 32 x 32."""
    network = primus(patch_size=(16, 64, 32))
    report = transfer("tiny_primus", network, patch_size=(16, 64, 32))
    pretrained = weights_of("tiny_primus")["eva.pos_embed"]
    assert network.eva.pos_embed.shape == pretrained.shape
    assert not torch.allclose(network.eva.pos_embed, pretrained)
    assert "adapted: eva.pos_embed: token grid 4x4x4 to 2x8x4: trilinear" in report.remarks()


def test_a_patch_embedding_for_anisotropic_voxels_takes_the_same_tokens_over_another_grid() -> None:
    source, network = (
        primus(token_size=(2, 8, 8), patch_size=(8, 32, 32)),
        primus(token_size=(2, 8, 8), patch_size=(16, 16, 48)),
    )
    pretrained = random_values(source)
    report = transfer_into(
        network, pretrained, keys_of("tiny_primus"), pretrain_patch_size=(8, 32, 32), patch_size=(16, 16, 48)
    )
    expected = references.position(pretrained["eva.pos_embed"].numpy(), (4, 4, 4), (8, 2, 6))
    np.testing.assert_allclose(network.eva.pos_embed.detach().numpy(), expected, atol=1e-6)
    assert report.coverage == 1


def test_another_patch_embedding_stays_fresh_and_the_transformer_arrives() -> None:
    network = primus(token_size=(2, 8, 8), patch_size=(8, 32, 32))
    before = network.down_projection.proj.weight.detach().clone()
    report = transfer("tiny_primus", network, patch_size=(8, 32, 32), min_coverage=0.5)
    assert torch.equal(network.down_projection.proj.weight, before)
    assert torch.equal(network.eva.pos_embed, weights_of("tiny_primus")["eva.pos_embed"])
    assert report.reasons() == [
        "stem: 1 tensor of a kernel size without a rule (down_projection; down_projection.proj.weight is "
        "(96, 1, 2, 8, 8) here and (96, 1, 8, 8, 8) in the checkpoint)"
    ]


@pytest.mark.parametrize(
    ("request_", "arriving"),
    [
        ({}, {"stem", "encoder"}),
        ({"load": "encoder"}, {"stem", "encoder"}),
        ({"load": "encoder+decoder"}, {"stem", "encoder", "decoder"}),
        ({"load": "encoder+decoder", "keep_head": True}, {"stem", "encoder", "decoder", "head"}),
    ],
)
@pytest.mark.parametrize(("make", "keys"), [(plain_unet, PLAIN_KEYS), (primus, PRIMUS_KEYS)], ids=["plain", "primus"])
def test_the_parts_that_are_asked_for_arrive_and_no_others(
    request_: dict, arriving: set[str], make: Callable[[], nn.Module], keys: PartKeys
) -> None:
    pretrained, network = random_values(make()), make()
    before = copies(network.state_dict())
    records = records_by_name(transfer_into(network, pretrained, keys, **request_))
    assert {r.part for r in records.values()} == {"stem", "encoder", "decoder", "head"}
    for name, tensor in network.state_dict().items():
        assert (records[name].action == "copied") == (records[name].part in arriving)
        assert torch.equal(tensor, (pretrained if records[name].part in arriving else before)[name])
