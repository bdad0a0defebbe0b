"""Transfer as a whole: the encoder is the checkpoint's, tensor by tensor, the decoder the network's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.transfer.pretrained import load_tensors, transfer_encoder
from nnunetv2_ext.transfer.report import TransferReport
from tests.transfer.networks import NETWORKS, PATCH, copies, keys_of, of_encoder, primus, resenc, weights_of

BOTH = pytest.mark.parametrize("name", ["tiny_resenc", "tiny_primus"])


def transfer(
    name: str,
    network: nn.Module,
    weights: dict[str, torch.Tensor] | None = None,
    patch_size: tuple[int, ...] = PATCH,
    pretrain_patch_size: tuple[int, ...] = PATCH,
) -> tuple[dict[str, torch.Tensor], TransferReport]:
    return transfer_encoder(
        network,
        weights_of(name) if weights is None else weights,
        keys_of(name),
        pretrain_patch_size=pretrain_patch_size,
        patch_size=patch_size,
    )


@BOTH
def test_the_encoder_equals_the_checkpoint_tensor_by_tensor(name: str) -> None:
    network = NETWORKS[name]()
    load_tensors(network, transfer(name, network)[0])
    weights = weights_of(name)
    encoder = {n: t for n, t in network.state_dict().items() if of_encoder(n)}
    assert {n for n in weights if of_encoder(n) and not n.startswith("decoder.")} <= set(encoder)
    for n, tensor in encoder.items():
        assert torch.equal(tensor, weights[n.removeprefix("decoder.")]), n


@BOTH
def test_the_decoder_keeps_its_own_values(name: str) -> None:
    network = NETWORKS[name]()
    before = copies(network.state_dict())
    load_tensors(network, transfer(name, network)[0])
    decoder = {n: t for n, t in network.state_dict().items() if not of_encoder(n)}
    assert decoder
    assert all(torch.equal(tensor, before[n]) for n, tensor in decoder.items())


@BOTH
def test_a_network_without_values_gets_the_same_tensors(name: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[name]()
    planned, _ = transfer(name, network)
    loaded, _ = transfer(name, NETWORKS[name]())
    assert list(planned) == list(loaded)
    assert all(torch.equal(tensor, loaded[n]) for n, tensor in planned.items())


@BOTH
def test_planning_a_transfer_leaves_the_network_alone(name: str) -> None:
    network = NETWORKS[name]()
    before = copies(network.state_dict())
    transfer(name, network)
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())


@BOTH
def test_training_the_network_leaves_the_checkpoint_alone(name: str) -> None:
    weights = weights_of(name)
    before = copies(weights)
    network = NETWORKS[name](channels=2)
    load_tensors(network, transfer(name, network, weights)[0])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[n]) for n, tensor in weights.items())


@BOTH
def test_parameters_stay_the_same_objects_with_gradients(name: str) -> None:
    network = NETWORKS[name]()
    before = dict(network.named_parameters())
    load_tensors(network, transfer(name, network)[0])
    after = dict(network.named_parameters())
    assert all(after[n] is parameter and parameter.requires_grad for n, parameter in before.items())


def test_values_are_converted_to_the_networks_type() -> None:
    network = resenc().double()
    load_tensors(network, transfer("tiny_resenc", network)[0])
    stem = network.state_dict()["encoder.stem.convs.0.conv.weight"]
    assert stem.dtype == torch.float64
    assert torch.equal(stem, weights_of("tiny_resenc")["encoder.stem.convs.0.conv.weight"].double())


@pytest.mark.parametrize(("name", "stem"), [("tiny_resenc", "encoder.stem"), ("tiny_primus", "down_projection")])
def test_more_input_channels_change_the_input_projection_alone(name: str, stem: str) -> None:
    one, four = NETWORKS[name](), NETWORKS[name](channels=4)
    load_tensors(one, transfer(name, one)[0])
    tensors, report = transfer(name, four)
    load_tensors(four, tensors)
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
    weights = weights_of("tiny_primus")
    weights["down_projection.proj.weight"] = torch.randn(96, 3, 8, 8, 8)
    tensors, _ = transfer("tiny_primus", primus(), weights)
    torch.testing.assert_close(
        tensors["down_projection.proj.weight"], weights["down_projection.proj.weight"].sum(1, keepdim=True)
    )


@pytest.mark.parametrize("patch_size", [(16, 48, 32), (64, 64, 64), (16, 64, 32)])
def test_another_patch_interpolates_the_positional_embedding_as_scipy_does(patch_size: tuple[int, ...]) -> None:
    network = primus(patch_size=patch_size)
    tensors, report = transfer("tiny_primus", network, patch_size=patch_size)
    load_tensors(network, tensors)
    table = weights_of("tiny_primus")["eva.pos_embed"][0].double().numpy().reshape(4, 4, 4, 96)
    axes = [(np.arange(p // 8) + 0.5) * 4 / (p // 8) - 0.5 for p in patch_size]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    expected = np.stack([map_coordinates(table[..., c], where, order=1, mode="nearest") for c in range(96)], -1)
    np.testing.assert_allclose(network.eva.pos_embed.detach().numpy()[0], expected.reshape(-1, 96), atol=1e-6)
    assert [r.name for r in report.records if r.action == "adapted"] == ["eva.pos_embed"]
    assert network(torch.randn(1, 1, *patch_size)).shape == (1, 3, *patch_size)


def test_as_many_tokens_on_another_grid_count_as_another_patch() -> None:
    """16 x 64 x 32 voxels have the 64 tokens of 32 x 32 x 32."""
    tensors, report = transfer("tiny_primus", primus(patch_size=(16, 64, 32)), patch_size=(16, 64, 32))
    pretrained = weights_of("tiny_primus")["eva.pos_embed"]
    assert tensors["eva.pos_embed"].shape == pretrained.shape
    assert not torch.allclose(tensors["eva.pos_embed"], pretrained)
    assert "4x4x4 to 2x8x4" in "\n".join(report.summary_lines())


def test_a_patch_that_does_not_explain_the_checkpoints_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"eva\.pos_embed is \(1, 64, 96\) here"):
        transfer("tiny_primus", primus(), pretrain_patch_size=(64, 64, 64))


def drop(weights: dict[str, torch.Tensor], part: str) -> None:
    for name in [n for n in weights if part in n]:
        del weights[name]


def halve(weights: dict[str, torch.Tensor], part: str) -> None:
    for name in [n for n in weights if part in n]:
        weights[name] = weights[name][: len(weights[name]) // 2]


@pytest.mark.parametrize(
    ("name", "part", "reported"),
    [
        ("tiny_resenc", "encoder.stages.1.blocks.0.conv1.", "encoder.stages.1.blocks.0.conv1.conv.weight"),
        ("tiny_resenc", "encoder.stem.convs.0.", "encoder.stem.convs.0.conv.weight"),
        ("tiny_primus", "eva.blocks.1.attn.q_proj.weight", "eva.blocks.1.attn.q_proj.weight"),
        ("tiny_primus", "down_projection.proj.weight", "down_projection.proj.weight"),
        ("tiny_primus", "eva.pos_embed", "eva.pos_embed"),
    ],
)
@pytest.mark.parametrize(("damage", "words"), [(drop, "not in the checkpoint"), (halve, "here and")])
def test_an_encoder_or_stem_tensor_without_a_match_is_refused_by_name(
    name: str, part: str, reported: str, damage: Callable[[dict[str, torch.Tensor], str], None], words: str
) -> None:
    weights = weights_of(name)
    damage(weights, part)
    if damage is halve and part == "eva.pos_embed":
        weights[part] = weights_of(name)[part][:, :32]
    with pytest.raises(UserError, match="no match in the checkpoint") as caught:
        transfer(name, NETWORKS[name](), weights)
    assert reported in str(caught.value)
    assert words in str(caught.value)


def test_another_width_is_refused_and_only_some_tensors_are_listed() -> None:
    with pytest.raises(UserError, match=r"encoder\.stages.*and \d+ more.*not the one that was pre-trained"):
        transfer("tiny_resenc", resenc(features=(8, 16, 32, 48)))


def test_more_blocks_than_were_pre_trained_are_refused() -> None:
    weights = weights_of("tiny_primus")
    drop(weights, "eva.blocks.2.")
    with pytest.raises(UserError, match=r"eva\.blocks\.2\."):
        transfer("tiny_primus", primus(), weights)
