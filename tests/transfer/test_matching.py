"""Which tensor goes where: prefixes of other frameworks, a stem inside the encoder, names that differ in value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_ext.transfer.matching import PartKeys, network_tensors
from nnunetv2_ext.transfer.pretrained import load_tensors, transfer_encoder
from tests.transfer.networks import NETWORKS, PATCH, keys_of, of_encoder, plain_unet, primus, resenc, weights_of


def loaded(network: nn.Module, weights: dict[str, torch.Tensor], keys: PartKeys) -> dict[str, torch.Tensor]:
    """The network's encoder and stem after transfer, by name."""
    tensors, _ = transfer_encoder(network, weights, keys, pretrain_patch_size=PATCH, patch_size=PATCH)
    load_tensors(network, tensors)
    return {name: tensor for name, tensor in network.state_dict().items() if of_encoder(name)}


def renamed(weights: dict[str, torch.Tensor], prefixes: dict[str, str]) -> dict[str, torch.Tensor]:
    """Only what lies under a prefix, under the new one."""
    return {
        new + name[len(old) :]: tensor
        for name, tensor in weights.items()
        for old, new in prefixes.items()
        if name.startswith(f"{old}.")
    }


@pytest.mark.parametrize("network", [resenc(), plain_unet(), primus(), primus(registers=2)], ids=lambda n: type(n))
def test_every_name_of_the_state_dict_belongs_to_one_tensor(network: nn.Module) -> None:
    names = [name for t in network_tensors(network, PartKeys.of_network(network)) for name in t.names]
    assert sorted(names) == sorted(network.state_dict())


@pytest.mark.parametrize("network", [resenc(), plain_unet(), primus()], ids=lambda n: type(n))
def test_all_names_of_a_tensor_have_one_storage_and_other_tensors_another(network: nn.Module) -> None:
    state = network.state_dict()
    groups = [{state[n].data_ptr() for n in t.names} for t in network_tensors(network, PartKeys.of_network(network))]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) == len(groups)


def test_parts_are_told_by_the_names() -> None:
    parts = {n: t.part for t in network_tensors(resenc(), PartKeys.of_network(resenc())) for n in t.names}
    assert parts["encoder.stem.convs.0.conv.weight"] == "stem"
    assert parts["encoder.stages.3.blocks.1.conv2.norm.bias"] == "encoder"
    assert parts["decoder.encoder.stages.3.blocks.1.conv2.norm.bias"] == "encoder"
    assert parts["decoder.seg_layers.2.weight"] == "decoder"
    assert parts["decoder.transpconvs.0.weight"] == "decoder"


def test_a_stem_inside_the_encoder_is_the_stem_and_the_rest_the_encoder() -> None:
    parts = {n: t.part for t in network_tensors(plain_unet(), PartKeys.of_network(plain_unet())) for n in t.names}
    assert parts["encoder.stages.0.0.convs.1.conv.weight"] == "stem"
    assert parts["encoder.stages.1.0.convs.0.conv.weight"] == "encoder"


def test_a_plain_unet_gets_the_encoder_of_another() -> None:
    pretrained = plain_unet(classes=1)
    weights = dict(pretrained.state_dict())
    ours = loaded(plain_unet(), weights, PartKeys.of_network(pretrained))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.items())
    assert "encoder.stages.2.0.convs.1.norm.weight" in ours


def test_a_plain_unet_is_found_under_another_prefix() -> None:
    pretrained = plain_unet(classes=1).state_dict()
    weights = renamed(dict(pretrained), {"encoder.stages": "online_encoder.stages"})
    keys = PartKeys("online_encoder.stages", "online_encoder.stages.0", ("online_encoder.stages.0.0.convs.0.conv",))
    ours = loaded(plain_unet(), weights, keys)
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in ours.items())


def test_a_plain_unet_finds_a_stem_that_the_checkpoint_keeps_elsewhere() -> None:
    pretrained = plain_unet(classes=1).state_dict()
    stages = {"encoder.stages.0": "first", "encoder.stages.1": "e.1", "encoder.stages.2": "e.2"}
    moved = renamed(dict(pretrained), stages)
    decoys = renamed(dict(pretrained), {"encoder.stages.0": "e.0"})
    moved |= {name: torch.zeros_like(tensor) for name, tensor in decoys.items()}
    ours = loaded(plain_unet(), moved, PartKeys("e", "first", ("first.0.convs.0.conv",)))
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in ours.items())


def test_an_online_encoder_of_a_resenc_is_found() -> None:
    pretrained = weights_of("tiny_resenc")
    weights = renamed(pretrained, {"encoder": "online_encoder"})
    keys = PartKeys("online_encoder.stages", "online_encoder.stem", ("online_encoder.stem.convs.0.conv",))
    ours = loaded(resenc(), weights, keys)
    assert all(torch.equal(tensor, pretrained[name.removeprefix("decoder.")]) for name, tensor in ours.items())


def test_a_primus_saved_as_an_encoder_alone_is_found() -> None:
    pretrained = weights_of("tiny_primus")
    weights = renamed(pretrained, {"eva": "encoder.eva", "down_projection": "encoder.down_projection"})
    keys = PartKeys(
        "encoder.eva", "encoder.down_projection", ("encoder.down_projection.proj",), "encoder.eva.pos_embed"
    )
    ours = loaded(primus(), weights, keys)
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in ours.items())


def test_a_positional_embedding_outside_the_encoder_is_found_by_its_own_key() -> None:
    pretrained = weights_of("tiny_primus")
    weights = {name: tensor for name, tensor in pretrained.items() if name != "eva.pos_embed"}
    weights["position.table"] = pretrained["eva.pos_embed"]
    keys = PartKeys("eva", "down_projection", ("down_projection.proj",), "position.table")
    assert torch.equal(loaded(primus(), weights, keys)["eva.pos_embed"], pretrained["eva.pos_embed"])


def test_where_two_names_differ_in_value_the_one_that_computed_wins() -> None:
    weights = {name: tensor.clone() for name, tensor in weights_of("tiny_resenc").items()}
    for name, tensor in weights.items():
        if ".all_modules." in name:
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    ours = loaded(resenc(), weights, keys_of("tiny_resenc"))
    convolutions = [name for name in ours if ".all_modules." in name and not name.startswith("decoder.")]
    assert len(convolutions) > 40
    for name in convolutions:
        assert torch.equal(ours[name], weights[name])
        assert torch.equal(ours[f"decoder.{name}"], weights[name])
        alias = name.replace("all_modules.0", "conv").replace("all_modules.1", "norm")
        assert torch.equal(ours[alias], weights[name])


@pytest.mark.parametrize("kept", ["all_modules", "conv and norm"])
def test_a_checkpoint_with_only_one_of_the_names_is_enough(kept: str) -> None:
    pretrained = weights_of("tiny_resenc")
    weights = {n: t for n, t in pretrained.items() if (".all_modules." in n) == (kept == "all_modules")}
    ours = loaded(resenc(), weights, keys_of("tiny_resenc"))
    assert all(torch.equal(tensor, pretrained[name.removeprefix("decoder.")]) for name, tensor in ours.items())


def test_a_prefix_ends_at_a_dot() -> None:
    network = NETWORKS["tiny_primus"]()
    network.evasion = nn.Linear(2, 2)
    parts = {n: t.part for t in network_tensors(network, PartKeys.of_network(network)) for n in t.names}
    assert parts["evasion.weight"] == "decoder"
    assert parts["eva.pos_embed"] == "encoder"
