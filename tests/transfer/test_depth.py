"""Other numbers of stages and blocks: what is in common is copied, in the encoder from the full resolution downwards,
in the decoder by the resolution that a stage restores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_ext.transfer.report import TransferReport
from tests.transfer.networks import (
    PLAIN_KEYS,
    PRIMUS_KEYS,
    RESENC_KEYS,
    copies,
    plain_unet,
    primus,
    random_values,
    resenc,
    transfer_into,
)

FOUR, FIVE = (4, 8, 16, 16), (4, 8, 16, 16, 16)
BOTH = {"load": "encoder+decoder", "keep_head": True, "min_coverage": 0.0}


def brought(source: nn.Module, target: nn.Module, **request: object) -> tuple[dict[str, torch.Tensor], TransferReport]:
    """Random values of one U-Net brought into another; returns them."""
    pretrained = random_values(source)
    return pretrained, transfer_into(target, pretrained, PLAIN_KEYS, **{**BOTH, **request})


def test_a_shallower_network_takes_the_stages_in_common() -> None:
    target = plain_unet(features=FOUR)
    pretrained, report = brought(plain_unet(features=FIVE), target)
    encoder = {n: t for n, t in target.state_dict().items() if n.startswith("encoder.")}
    assert report.coverage == 1
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in encoder.items())


@pytest.mark.parametrize("part", ["stages", "transpconvs", "seg_layers"])
@pytest.mark.parametrize(("theirs", "ours"), [(FIVE, FOUR), (FOUR, FIVE)])
def test_decoder_stages_that_restore_the_same_resolution_belong_together(
    part: str, theirs: tuple[int, ...], ours: tuple[int, ...]
) -> None:
    source, target = plain_unet(features=theirs), plain_unet(features=ours)
    brought(source, target, keep_head=False)
    modules = list(zip(reversed(getattr(source.decoder, part)), reversed(getattr(target.decoder, part)), strict=False))
    assert len(modules) == 3
    for before, after in modules:
        equal = [torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
        assert equal == [part != "seg_layers"] * len(equal)


def test_the_same_skips_through_the_common_decoder_stages_give_the_same_output() -> None:
    """The deepest decoder stage in common takes what comes from below; from there on both networks are one."""
    source, target = plain_unet(features=FIVE), plain_unet(features=FOUR)
    brought(source, target)
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        skips = target.encoder(image)
        for ours, theirs in zip(skips, source.encoder(image), strict=False):
            assert torch.equal(ours, theirs)
        x = skips[-1]
        for stage in range(1, 4):
            x = source.decoder.transpconvs[stage](x)
            x = source.decoder.stages[stage](torch.cat((x, skips[-(stage + 1)]), 1))
        assert torch.equal(target(image), source.decoder.seg_layers[3](x))


def test_deeper_stages_stay_as_they_were_and_are_named() -> None:
    target = plain_unet(features=FIVE)
    before = copies(target.state_dict())
    pretrained, report = brought(plain_unet(features=FOUR), target, keep_head=False)
    own = target.state_dict()
    for name, tensor in own.items():
        if name.startswith("encoder."):
            fresh = name.startswith("encoder.stages.4.")
            assert torch.equal(tensor, before[name] if fresh else pretrained[name]), name
    assert report.coverage < 1
    encoder, decoder = report.reasons()
    assert encoder.startswith("encoder: 8 tensors not in the checkpoint (encoder.stages.4;")
    assert decoder.startswith("decoder: 6 tensors not in the checkpoint (decoder.stages.0, decoder.transpconvs.0;")


def test_surplus_stages_of_encoder_and_decoder_are_named_once() -> None:
    _, report = brought(plain_unet(features=FIVE), plain_unet(features=FOUR))
    (line,) = [remark for remark in report.remarks() if "more than the network" in remark]
    assert line == (
        "the checkpoint has more than the network: encoder.stages.4, decoder.stages.0, decoder.transpconvs.0"
    )
    assert len(report.surplus) == 8 + 6


def test_surplus_is_named_once_where_the_decoders_copy_of_the_encoder_has_storage_of_its_own() -> None:
    pretrained = {name: tensor.half() for name, tensor in random_values(plain_unet(features=FIVE)).items()}
    report = transfer_into(plain_unet(features=FOUR), pretrained, PLAIN_KEYS)
    assert "the checkpoint has more than the network: encoder.stages.4" in report.remarks()


def test_surplus_is_named_where_the_decoders_copy_of_the_encoder_is_alone() -> None:
    pretrained = random_values(plain_unet(features=FIVE))
    copy = {name: tensor for name, tensor in pretrained.items() if name.startswith("decoder.encoder.")}
    report = transfer_into(plain_unet(features=FOUR), copy, PLAIN_KEYS)
    assert "the checkpoint has more than the network: decoder.encoder.stages.4" in report.remarks()


def test_a_decoder_that_was_not_asked_for_has_no_surplus() -> None:
    _, report = brought(plain_unet(features=FIVE), plain_unet(features=FOUR), load="encoder", keep_head=False)
    assert {name.split(".")[0] for name in report.surplus} == {"encoder"}


def test_a_tensor_that_does_not_fit_is_no_surplus() -> None:
    _, report = brought(plain_unet(features=(4, 8, 16)), plain_unet(features=(4, 8, 12)), keep_head=False)
    assert any(r.action == "fresh" and r.name.startswith("encoder.stages.2.") for r in report.records)
    assert not report.surplus


def test_blocks_in_common_are_copied_and_further_ones_fresh_and_named() -> None:
    pretrained = random_values(resenc(blocks=(1, 2, 2, 2)))
    target = resenc(blocks=(1, 4, 2, 3))
    before = copies(target.state_dict())
    report = transfer_into(target, pretrained, RESENC_KEYS, min_coverage=0.1)
    for name, tensor in target.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, pretrained[name] if name in pretrained else before[name]), name
    (reason,) = report.reasons()
    places = "encoder.stages.1.blocks.2, encoder.stages.1.blocks.3, encoder.stages.3.blocks.2"
    assert f"not in the checkpoint ({places};" in reason


def test_surplus_blocks_are_named() -> None:
    pretrained = random_values(resenc(blocks=(1, 4, 2, 3)))
    report = transfer_into(resenc(), pretrained, RESENC_KEYS)
    assert report.coverage == 1
    places = "encoder.stages.1.blocks.2, encoder.stages.1.blocks.3, encoder.stages.3.blocks.2"
    assert f"the checkpoint has more than the network: {places}" in report.remarks()


def test_surplus_convolutions_of_a_plain_stage_are_named() -> None:
    pretrained = random_values(plain_unet(convs=3))
    report = transfer_into(plain_unet(convs=2), pretrained, PLAIN_KEYS)
    places = ", ".join(f"encoder.stages.{s}.0.convs.2" for s in range(3))
    assert f"the checkpoint has more than the network: {places}" in report.remarks()


@pytest.mark.parametrize(("theirs", "ours"), [(3, 5), (5, 3)])
def test_transformer_blocks_in_common_are_copied(theirs: int, ours: int) -> None:
    pretrained, target = random_values(primus(depth=theirs)), primus(depth=ours)
    before = copies(target.state_dict())
    report = transfer_into(target, pretrained, PRIMUS_KEYS, min_coverage=0.0)
    for name, tensor in target.state_dict().items():
        if name.startswith("eva."):
            assert torch.equal(tensor, pretrained[name] if name in pretrained else before[name]), name
    text = "\n".join(report.remarks())
    words = "not in the checkpoint (eva.blocks.3, eva.blocks.4;" if ours > theirs else "eva.blocks.3, eva.blocks.4"
    assert words in text
