"""Names of one parameter: counted once, enough by themselves, and weighed where a checkpoint's disagree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from nnunetv2_ext.transfer.matching import PartKeys
from tests.synthesis import RESENC_L_SPARK, read_manifest
from tests.transfer.networks import (
    PLAIN_KEYS,
    RESENC_KEYS,
    keys_of,
    plain_unet,
    plan_into,
    primus,
    random_values,
    resenc,
    transfer_into,
    weights_of,
)

CONVOLUTIONAL = pytest.mark.parametrize(
    ("make", "keys"), [(resenc, RESENC_KEYS), (plain_unet, PLAIN_KEYS)], ids=["resenc", "plain"]
)
Make = Callable[[], nn.Module]


def spark(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a small ResEnc whose names share storage as those of the real SparkMAE checkpoint do."""
    shared = read_manifest(RESENC_L_SPARK)["shared_storage"]
    generator = torch.Generator().manual_seed(seed)
    own = resenc().state_dict()
    drawn = {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in own.items() if n not in shared}
    return {name: drawn[shared.get(name, name)] for name in own}


def forward_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under every name, what a network computes with that has the weights of `all_modules`."""
    return {
        name: weights[name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")]
        if name.startswith(("encoder.", "decoder.encoder."))
        else tensor
        for name, tensor in weights.items()
    }


def test_the_small_checkpoint_has_the_names_that_disagree_in_the_real_one() -> None:
    weights = spark()
    plain, computed = (f"encoder.stages.1.blocks.0.conv1.{n}.weight" for n in ("conv", "all_modules.0"))
    assert not torch.equal(weights[plain], weights[computed])
    assert weights[f"decoder.{plain}"] is weights[plain]
    manifest = read_manifest(RESENC_L_SPARK)["shared_storage"]
    assert computed not in manifest
    assert manifest[f"decoder.{computed}"] == computed


def test_where_names_disagree_all_modules_is_taken() -> None:
    weights, network = spark(), resenc()
    transfer_into(network, weights, RESENC_KEYS)
    expected = forward_names(weights)
    for name, tensor in network.state_dict().items():
        if name.startswith(("encoder.", "decoder.encoder.")):
            assert torch.equal(tensor, expected[name]), name


def test_the_network_then_computes_what_the_one_that_was_pretrained_did() -> None:
    """`load_state_dict` without aliases, all_modules last: what was under `all_modules` when SparkMAE computed."""
    weights, ours, theirs = spark(), resenc(), resenc()
    transfer_into(ours, weights, RESENC_KEYS)
    theirs.load_state_dict({n: t for n, t in weights.items() if ".conv." not in n and ".norm." not in n}, strict=False)
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    for skip, expected in zip(ours.encoder(image), theirs.encoder(image), strict=True):
        assert torch.equal(skip, expected)


def test_the_disagreement_is_said() -> None:
    report = plan_into(resenc(), spark(), RESENC_KEYS).report
    (line,) = [remark for remark in report.remarks() if "disagree" in remark]
    convolutions = [m for m in resenc().encoder.modules() if isinstance(m, (nn.Conv3d, nn.InstanceNorm3d))]
    count = sum(len(list(m.parameters())) for m in convolutions)
    assert line.startswith("its all_modules and its plain name disagree in the checkpoint")
    assert "all_modules is what the forward pass used, and is taken" in line
    assert line.endswith(f"({count} tensors)")


def test_the_encoders_own_name_is_taken_before_the_decoders_copy_and_that_is_said() -> None:
    weights = {name: tensor.clone() for name, tensor in weights_of("tiny_resenc").items()}
    for name, tensor in weights.items():
        if name.startswith("decoder.encoder.stages.2."):
            tensor.add_(1)
    network = resenc()
    report = transfer_into(network, weights, RESENC_KEYS)
    own = network.state_dict()
    assert all(torch.equal(own[n], weights[n]) for n in own if n.startswith("encoder."))
    noted = {r.stage for r in report.records if r.note and "names in the checkpoint disagree" in r.note}
    assert noted == {"encoder.stages.2"}


def test_copies_that_agree_are_no_disagreement() -> None:
    weights = {name: tensor.clone() for name, tensor in weights_of("tiny_resenc").items()}
    assert not any(r.note for r in plan_into(resenc(), weights, RESENC_KEYS).report.records)


def test_memory_is_given_back_after_values_were_compared() -> None:
    from nnunetv2_ext.transfer.pretrained import plan_transfer

    calls: list[int] = []
    patches = {"pretrain_patch_size": None, "patch_size": (32, 32, 32)}
    plan_transfer(resenc(), spark(), RESENC_KEYS, **patches, release=lambda: calls.append(1))
    assert len(calls) > 40
    calls.clear()
    plan_transfer(resenc(), weights_of("tiny_resenc"), RESENC_KEYS, **patches, release=lambda: calls.append(1))
    assert not calls


@CONVOLUTIONAL
@pytest.mark.parametrize("kept", ["all_modules", "conv and norm", "decoder.encoder", "decoder.encoder's conv and norm"])
def test_a_checkpoint_with_only_one_of_the_names_is_enough(make: Make, keys: PartKeys, kept: str) -> None:
    pretrained = random_values(make())
    weights = {
        n: t
        for n, t in pretrained.items()
        if (".all_modules." not in n if "conv" in kept else kept != "all_modules" or ".all_modules." in n)
        and n.startswith("decoder.encoder.") == ("decoder" in kept)
    }
    assert 0 < len(weights) < len(pretrained) / 2 + 1
    network = make()
    report = transfer_into(network, weights, keys)
    assert report.coverage == 1
    for name, tensor in network.state_dict().items():
        if name.startswith(("encoder.", "decoder.encoder.")):
            assert torch.equal(tensor, pretrained[name])


@CONVOLUTIONAL
def test_a_safetensors_file_that_dropped_shared_names_is_enough(make: Make, keys: PartKeys, tmp_path: Path) -> None:
    source, network = make(), make()
    pretrained = random_values(source)
    save_model(source, str(tmp_path / "model.safetensors"))
    weights = load_file(tmp_path / "model.safetensors")
    assert len(weights) < len(pretrained)
    transfer_into(network, weights, keys, load="encoder+decoder", keep_head=True)
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("make", [resenc, plain_unet, primus, lambda: primus(registers=2)])
def test_parameters_are_counted_once(make: Make) -> None:
    network = make()
    saved = network.state_dict()
    expected = sum(p.numel() for p in network.parameters())
    expected += sum(b.numel() for name, b in network.named_buffers() if name in saved)
    keys = PartKeys.of_network(network)
    rows = plan_into(network, random_values(make()), keys).report.summary_table()
    assert sum(row["parameters"] for row in rows) == expected


def test_a_value_is_loaded_once_and_appears_under_all_names() -> None:
    network = resenc()
    transfer = plan_into(network, weights_of("tiny_resenc"), keys_of("tiny_resenc"))
    loaded = [name for name, _ in transfer.values()]
    encoder = list(network.encoder.parameters())
    assert len(loaded) == len(set(loaded)) == len(encoder)
