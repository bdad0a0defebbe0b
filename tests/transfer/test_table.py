"""The table and the lines that a terminal and the training log show."""

from __future__ import annotations

from collections import Counter

from torch import nn

from nnunetv2_ext.transfer.matching import PartKeys
from nnunetv2_ext.transfer.report import TransferReport
from nnunetv2_ext.transfer.table import report_lines, report_table
from tests.transfer.networks import PLAIN_KEYS, PRIMUS_KEYS, plain_unet, plan_into, primus, random_values, weights_of


def cells(report: TransferReport) -> list[list[str]]:
    """The rows of the table as plain text, read from the printed lines."""
    lines = [line for line in report_lines(report) if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def counted(network: nn.Module, part: str, prefixes: tuple[str, ...]) -> list[int]:
    """Tensors and parameters of a network below some prefixes, counted by torch."""
    tensors = {p for name, p in network.named_parameters() if name.startswith(prefixes)}
    return [len(tensors), sum(p.numel() for p in tensors)]


def test_every_part_and_action_has_a_row_with_the_networks_own_numbers() -> None:
    network = plain_unet(channels=2)
    rows = cells(plan_into(network, random_values(plain_unet()), PLAIN_KEYS).report)
    stem = counted(network, "stem", ("encoder.stages.0.",))
    projection = network.encoder.stages[0][0].convs[0].conv.weight.numel()
    encoder = counted(network, "encoder", ("encoder.stages.1.", "encoder.stages.2."))
    decoder = counted(network, "decoder", ("decoder.stages.", "decoder.transpconvs."))
    head = counted(network, "head", ("decoder.seg_layers.",))
    assert rows == [
        ["stem", "copied", str(stem[0] - 1), f"{stem[1] - projection:,}"],
        ["", "adapted", "1", f"{projection:,}"],
        ["encoder", "copied", str(encoder[0]), f"{encoder[1]:,}"],
        ["decoder", "fresh", str(decoder[0]), f"{decoder[1]:,}"],
        ["head", "fresh", str(head[0]), f"{head[1]:,}"],
    ]


def test_the_title_says_the_coverage() -> None:
    report = plan_into(plain_unet(features=(4, 8, 12)), random_values(plain_unet()), PLAIN_KEYS, min_coverage=0).report
    assert 0 < report.coverage < 1
    assert report_lines(report)[0].strip() == f"{100 * report.coverage:.1f}% of encoder and stem arrive"
    assert report_table(report).row_count == 5


def test_the_remarks_follow_the_table_once_each() -> None:
    network = primus(channels=2, patch_size=(16, 32, 48))
    transfer = plan_into(network, weights_of("tiny_primus"), PRIMUS_KEYS, patch_size=(16, 32, 48))
    lines = report_lines(transfer.report)
    assert [line.strip() for line in lines[-3:]] == [
        "adapted: down_projection.proj.weight: 1 input channel to 2: sum over channels kept, shared equally",
        "adapted: eva.pos_embed: token grid 4x4x4 to 2x4x6: trilinear",
        f"{num_decoder_tensors()} other tensors of the checkpoint are not used",
    ]
    assert max(Counter(lines[-3:]).values()) == 1


def num_decoder_tensors() -> int:
    """What a fine-tuning leaves of the pre-training: its decoders and the mask token."""
    weights = weights_of("tiny_primus")
    return sum(not name.startswith((PRIMUS_KEYS.key_to_encoder, PRIMUS_KEYS.key_to_stem)) for name in weights)


def test_lines_are_plain_text_without_control_characters() -> None:
    network = plain_unet()
    text = "\n".join(report_lines(plan_into(network, random_values(plain_unet()), PartKeys.of_network(network)).report))
    assert "\x1b" not in text
    assert all(len(line) <= 100 for line in text.splitlines() if line.startswith(("│", "┃", "┏", "└")))
