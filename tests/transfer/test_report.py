"""The report speaks of every tensor of the network once, and its counts are the network's."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from nnunetv2_ext.transfer.report import ACTIONS, TensorRecord, TransferReport, stage_of, stages
from tests.transfer.networks import (
    NETWORKS,
    PATCH,
    PLAIN_KEYS,
    RESENC_KEYS,
    keys_of,
    of_encoder,
    plain_unet,
    plan_into,
    primus,
    random_values,
    resenc,
    weights_of,
)

CASES = pytest.mark.parametrize(("name", "channels"), [("tiny_resenc", 1), ("tiny_resenc", 3), ("tiny_primus", 2)])


def report_of(name: str, network: nn.Module, patch_size: tuple[int, ...] = PATCH) -> TransferReport:
    return plan_into(network, weights_of(name), keys_of(name), patch_size=patch_size).report


@CASES
def test_every_tensor_of_the_network_has_one_record(name: str, channels: int) -> None:
    network = NETWORKS[name](channels=channels)
    named = [n for r in report_of(name, network).records for n in (r.name, *r.aliases)]
    assert sorted(named) == sorted(network.state_dict())


@CASES
def test_the_counts_add_up_to_the_parameters_of_the_network(name: str, channels: int) -> None:
    network = NETWORKS[name](channels=channels)
    saved = network.state_dict()
    buffers = [b for n, b in network.named_buffers() if n in saved]
    expected = sum(tensor.numel() for tensor in [*network.parameters(), *buffers])
    assert sum(row["parameters"] for row in report_of(name, network).summary_table()) == expected


@CASES
def test_the_encoder_is_copied_or_adapted_and_the_rest_fresh(name: str, channels: int) -> None:
    for record in report_of(name, NETWORKS[name](channels=channels)).records:
        assert (record.action == "fresh") == (not of_encoder(record.name)), record.name
        assert (record.source is None) == (record.action == "fresh")
        assert (record.how is None) == (record.action != "adapted")


@CASES
def test_the_shapes_are_those_of_the_network(name: str, channels: int) -> None:
    network = NETWORKS[name](channels=channels)
    state = network.state_dict()
    assert all(r.shape == tuple(state[r.name].shape) for r in report_of(name, network).records)


def test_what_the_checkpoint_has_left_over_is_named() -> None:
    report = report_of("tiny_primus", primus())
    weights = weights_of("tiny_primus")
    used = {r.source for r in report.records if r.source}
    assert set(report.unused) | used == set(weights)
    assert not set(report.unused) & used
    assert "mask_token" in report.unused


def test_a_second_name_of_a_tensor_that_was_used_is_not_left_over() -> None:
    report = report_of("tiny_resenc", NETWORKS["tiny_resenc"]())
    assert not [n for n in report.unused if of_encoder(n)]
    assert any(n.startswith("decoder.") for n in report.unused)


def test_the_dictionary_is_json_and_holds_what_the_records_say() -> None:
    report = report_of("tiny_primus", primus(patch_size=(16, 32, 48)), patch_size=(16, 32, 48))
    content = json.loads(json.dumps(report.as_dict()))
    assert [t["name"] for t in content["tensors"]] == [r.name for r in report.records]
    (adapted,) = [t for t in content["tensors"] if t["action"] == "adapted"]
    assert adapted["name"] == "eva.pos_embed"
    assert adapted["how"] == "token grid 4x4x4 to 2x4x6: trilinear"
    assert adapted["shape"] == [1, 48, 96]
    assert content["unused_checkpoint_tensors"] == list(report.unused)
    assert sum(row["tensors"] for row in content["summary"]) == len(report.records)


def test_an_empty_shape_is_in_the_dictionary_too() -> None:
    """The counter of a batch normalisation is one number."""
    network, pretrained = plain_unet(), plain_unet()
    for made in (network, pretrained):
        made.encoder.register_buffer("num_batches_tracked", torch.tensor(7))
    report = plan_into(network, random_values(pretrained), PLAIN_KEYS).report
    (entry,) = [t for t in report.as_dict()["tensors"] if t["name"] == "encoder.num_batches_tracked"]
    assert list(entry["shape"]) == []


def test_a_dictionary_of_records_lacks_nothing_that_a_record_knows() -> None:
    report = mixed_report()
    content = json.loads(json.dumps(report.as_dict()))
    for entry, record in zip(content["tensors"], report.records, strict=True):
        rebuilt = TensorRecord(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
        assert rebuilt == record
    assert {t["action"] for t in content["tensors"]} == set(ACTIONS)
    assert content["coverage"] == report.coverage
    assert content["surplus_checkpoint_stages"] == ["encoder.stages.3"]


def mixed_report() -> TransferReport:
    """Of everything something: adapted, copied, converted, fresh with and without a reason, left over."""
    weights = random_values(plain_unet(channels=3, features=(4, 8, 16, 16)).half())
    return plan_into(plain_unet(features=(4, 8, 12)), weights, PLAIN_KEYS, min_coverage=0).report


def test_the_shares_of_every_stage_sum_to_one() -> None:
    for report in (mixed_report(), report_of("tiny_primus", primus(channels=2)), report_of("tiny_resenc", resenc())):
        assert all(sum(share.values()) == pytest.approx(1) for share in report.stage_shares().values())
        assert all(tuple(share) == ACTIONS for share in report.stage_shares().values())


def test_the_shares_weighed_by_the_stages_parameters_give_the_coverage() -> None:
    report, network = mixed_report(), plain_unet(features=(4, 8, 12))
    shares = report.stage_shares()
    sizes = {"stem": network.encoder.stages[0]}
    sizes |= {f"encoder.stages.{i}": network.encoder.stages[i] for i in (1, 2)}
    numel = {stage: sum(p.numel() for p in module.parameters()) for stage, module in sizes.items()}
    arrived = sum(numel[stage] * (shares[stage]["copied"] + shares[stage]["adapted"]) for stage in numel)
    assert report.coverage == pytest.approx(arrived / sum(numel.values()))


def test_stages_stand_in_the_networks_order() -> None:
    network = plain_unet()
    report = plan_into(network, random_values(plain_unet()), PLAIN_KEYS).report
    order = ["stem", "encoder.stages.1", "encoder.stages.2"]
    order += [f"decoder.{part}.{i}" for part in ("stages", "transpconvs", "seg_layers") for i in (0, 1)]
    assert list(report.stage_shares()) == order


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("encoder.stages.3.blocks.0.conv1.conv.weight", "encoder.stages.3"),
        ("encoder.stages.12.0.convs.1.norm.bias", "encoder.stages.12"),
        ("eva.blocks.11.attn.proj.weight", "eva.blocks.11"),
        ("eva.pos_embed", "eva"),
        ("mask_token", "mask_token"),
        ("decoder.seg_layers.2.bias", "decoder.seg_layers.2"),
    ],
)
def test_a_tensors_stage_is_its_name_up_to_the_first_number(name: str, stage: str) -> None:
    assert stage_of(name) == stage


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["eva.blocks.0.a", "eva.blocks.0.b", "eva.blocks.2.a"], ["eva.blocks.0", "eva.blocks.2"]),
        (["encoder.stages.1.blocks.0.x", "encoder.stages.1.blocks.1.x"], ["encoder.stages.1"]),
        (
            ["encoder.stages.1.blocks.2.x", "encoder.stages.1.blocks.3.x"],
            [f"encoder.stages.1.blocks.{i}" for i in (2, 3)],
        ),
        (["encoder.stages.0.0.convs.1.conv.weight"], ["encoder.stages.0.0.convs.1"]),
        (["encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.0.convs.1.conv.weight"], ["encoder.stages.0"]),
        ([], []),
    ],
)
def test_places_are_stages_or_single_blocks_of_them(names: list[str], places: list[str]) -> None:
    assert stages(names) == places


def test_reasons_are_grouped_by_part_and_kind_in_the_order_of_the_parts() -> None:
    weights = random_values(plain_unet(features=(4, 8, 16)))
    weights = {n: t for n, t in weights.items() if "stages.1.0.convs.1." not in n}
    report = plan_into(
        plain_unet(features=(4, 8, 12)), weights, PLAIN_KEYS, min_coverage=0, load="encoder+decoder"
    ).report
    assert report.reasons() == [
        "encoder: 4 tensors not in the checkpoint (encoder.stages.1.0.convs.1; encoder.stages.1.0.convs.1.conv.weight)",
        "encoder: 8 tensors of another width (encoder.stages.2; encoder.stages.2.0.convs.0.conv.weight is "
        "(12, 8, 3, 3, 3) here and (16, 8, 3, 3, 3) in the checkpoint)",
        "decoder: 1 tensor of another width (decoder.transpconvs.0; decoder.transpconvs.0.weight is "
        "(12, 8, 2, 2, 2) here and (16, 8, 2, 2, 2) in the checkpoint)",
    ]


def test_what_was_not_asked_for_needs_no_reason() -> None:
    report = plan_into(plain_unet(), random_values(plain_unet()), PLAIN_KEYS, load="encoder").report
    assert {r.part for r in report.records if r.action == "fresh"} == {"decoder", "head"}
    assert not report.reasons()


def test_every_tensor_that_was_looked_for_and_stayed_fresh_has_a_reason() -> None:
    report = mixed_report()
    fresh = [r for r in report.records if r.action == "fresh"]
    assert all((r.reason is None) == (r.part in ("decoder", "head")) for r in fresh)
    assert all(r.reason is None for r in report.records if r.action != "fresh")
    assert any(r.reason for r in fresh)


def test_remarks_say_adapted_fresh_converted_and_left_over_once_each() -> None:
    encoder = [p for n, p in plain_unet().named_parameters() if n.startswith("encoder.")]
    others = [p for n, p in plain_unet(features=(4, 8, 16, 16)).named_parameters() if not n.startswith("encoder.")]
    arriving = len(encoder) - 8  # all but the two convolutions of the last stage with their norms
    assert mixed_report().remarks() == [
        "adapted: encoder.stages.0.0.convs.0.conv.weight: 3 input channels to 1: sum over channels kept, shared "
        "equally",
        "fresh: encoder: 8 tensors of another width (encoder.stages.2; encoder.stages.2.0.convs.0.conv.weight is "
        "(12, 8, 3, 3, 3) here and (16, 8, 3, 3, 3) in the checkpoint)",
        f"float16 as float32 ({arriving} tensors)",
        "the checkpoint has more than the network: encoder.stages.3",
        f"{8 + len(others)} other tensors of the checkpoint are not used",
    ]


def test_many_tensors_of_one_rule_are_named_by_their_stages() -> None:
    flat = plain_unet(kernels=[(1, 3, 3)] * 3)
    (line, *_) = plan_into(plain_unet(), random_values(flat), PLAIN_KEYS).report.remarks()
    assert line == (
        "adapted: encoder.stages.0, encoder.stages.1, encoder.stages.2: kernel 1x3x3 to 3x3x3: centred in zeros"
    )


def test_a_single_surplus_tensor_is_named_itself() -> None:
    weights = {**weights_of("tiny_resenc"), "encoder.stages.gate": torch.zeros(3)}
    report = plan_into(resenc(), weights, RESENC_KEYS).report
    assert "the checkpoint has more than the network: encoder.stages.gate" in report.remarks()
