"""Which tensor goes where: prefixes of other frameworks, a stem inside the encoder, names that differ in value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_ext.transfer.matching import PartKeys, is_below, network_tensors, unused_names
from tests.transfer.networks import (
    NETWORKS,
    PLAIN_KEYS,
    PRIMUS_KEYS,
    of_encoder,
    plain_unet,
    primus,
    random_values,
    resenc,
    transfer_into,
    weights_of,
)


def loaded(network: nn.Module, weights: dict[str, torch.Tensor], keys: PartKeys) -> dict[str, torch.Tensor]:
    """The network's encoder and stem after transfer, by name."""
    transfer_into(network, weights, keys)
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
    assert parts["decoder.seg_layers.2.weight"] == "head"
    assert parts["decoder.transpconvs.0.weight"] == "decoder"
    assert parts["decoder.stages.0.convs.0.conv.weight"] == "decoder"


def test_the_head_of_a_primus_is_the_last_layer_of_its_patch_decoder() -> None:
    network = primus(classes=5)
    heads = [t for t in network_tensors(network, PartKeys.of_network(network)) if t.part == "head"]
    last = [m for m in network.up_projection.modules() if isinstance(m, nn.ConvTranspose3d)][-1]
    assert {id(t.tensor) for t in heads} == {id(last.weight), id(last.bias)}
    assert heads[0].shape[1] == 5


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


def test_a_prefix_ends_at_a_dot() -> None:
    network = NETWORKS["tiny_primus"]()
    network.evasion = nn.Linear(2, 2)
    parts = {n: t.part for t in network_tensors(network, PartKeys.of_network(network)) for n in t.names}
    assert parts["evasion.weight"] == "decoder"
    assert parts["eva.pos_embed"] == "encoder"


@pytest.mark.parametrize(
    ("name", "prefix", "below"),
    [
        ("eva", "eva", True),
        ("eva.norm.weight", "eva", True),
        ("evaluator.weight", "eva", False),
        ("eva2.norm.weight", "eva", False),
        ("encoder.stages.10.weight", "encoder.stages.1", False),
        ("my.eva.norm.weight", "eva", False),
        ("encoder", "encoder.stages", False),
    ],
)
def test_prefixes_match_on_whole_components(name: str, prefix: str, below: bool) -> None:
    assert is_below(name, prefix) is below


def test_names_that_only_begin_like_the_checkpoints_encoder_are_neither_taken_nor_called_its_encoder() -> None:
    real = {name: t for name, t in random_values(primus(), seed=1).items() if of_encoder(name)}
    decoys = {f"eva{name.removeprefix('eva.')}": torch.zeros_like(t) for name, t in real.items() if "eva." in name}
    network = primus()
    report = transfer_into(network, {**decoys, **real}, PRIMUS_KEYS)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in real.items())
    assert "evablocks.0.norm1.weight" in report.unused
    assert not report.surplus


def test_a_stem_elsewhere_is_taken_although_only_the_decoy_has_all_names() -> None:
    """The checkpoint's `key_to_stem` decides, not which of the names is the better one."""
    pretrained = random_values(plain_unet())
    moved = renamed(pretrained, {"encoder.stages.0": "first", "encoder.stages.1": "e.1", "encoder.stages.2": "e.2"})
    moved = {n: t for n, t in moved.items() if not (n.startswith("first.") and ".all_modules." in n)}
    decoys = {n: torch.zeros_like(t) for n, t in renamed(pretrained, {"encoder.stages.0": "e.0"}).items()}
    ours = loaded(plain_unet(), moved | decoys, PartKeys("e", "first", ("first.0.convs.0.conv",)))
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("root", ["module.", "module._orig_mod.", "model.backbone."])
def test_the_decoder_is_found_below_the_same_root_as_the_encoder(root: str) -> None:
    pretrained = random_values(plain_unet())
    keys = PartKeys(
        f"{root}{PLAIN_KEYS.key_to_encoder}",
        f"{root}{PLAIN_KEYS.key_to_stem}",
        (f"{root}{PLAIN_KEYS.keys_to_in_proj[0]}",),
    )
    network = plain_unet()
    transfer_into(
        network, {f"{root}{n}": t for n, t in pretrained.items()}, keys, load="encoder+decoder", keep_head=True
    )
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in network.state_dict().items())


def test_register_tokens_of_the_same_number_are_kept_and_belong_to_the_encoder() -> None:
    pretrained = random_values(primus(registers=4))
    network = primus(registers=4)
    report = transfer_into(network, pretrained, PRIMUS_KEYS)
    assert torch.equal(network.register_tokens, pretrained["register_tokens"])
    assert torch.equal(network.eva.pos_embed, pretrained["eva.pos_embed"])
    assert {r.part for r in report.records if r.name == "register_tokens"} == {"encoder"}


def test_register_tokens_are_found_beside_an_encoder_below_a_prefix() -> None:
    pretrained = random_values(primus(registers=4))
    keys = PartKeys("net.eva", "net.down_projection", ("net.down_projection.proj",), "net.eva.pos_embed")
    network = primus(registers=4)
    transfer_into(network, {f"net.{n}": t for n, t in pretrained.items()}, keys)
    assert torch.equal(network.register_tokens, pretrained["register_tokens"])


def test_names_that_share_storage_are_left_over_once() -> None:
    shared, used = torch.zeros(3), torch.ones(3)
    weights = {"used": used, "alias.of.used": used, "left": shared, "alias.of.left": shared, "apart": torch.zeros(3)}
    assert unused_names(weights, ["used"]) == ("left", "apart")
