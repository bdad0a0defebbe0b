"""The report speaks of every tensor of the network once, and its counts are the network's."""

from __future__ import annotations

import json

import pytest
from torch import nn

from nnunetv2_ext.transfer.pretrained import transfer_encoder
from nnunetv2_ext.transfer.report import TransferReport
from tests.transfer.networks import NETWORKS, PATCH, keys_of, of_encoder, primus, weights_of

CASES = pytest.mark.parametrize(("name", "channels"), [("tiny_resenc", 1), ("tiny_resenc", 3), ("tiny_primus", 2)])


def report_of(name: str, network: nn.Module, patch_size: tuple[int, ...] = PATCH) -> TransferReport:
    return transfer_encoder(network, weights_of(name), keys_of(name), pretrain_patch_size=PATCH, patch_size=patch_size)[
        1
    ]


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


def test_the_summary_has_a_line_for_each_part_and_each_adapted_tensor() -> None:
    report = report_of("tiny_primus", primus(channels=2, patch_size=(16, 32, 48)), patch_size=(16, 32, 48))
    text = "\n".join(report.summary_lines())
    for words in ("stem", "encoder", "decoder", "eva.pos_embed: token grid", "down_projection.proj.weight: 1 input"):
        assert words in text
