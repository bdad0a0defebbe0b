"""Find a plan's checkpoint, and bring its weights into the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nnunetv2_ext.checkpoints.pages import page_releaser
from nnunetv2_ext.checkpoints.reading import format_citations, read_network_weights
from nnunetv2_ext.checkpoints.sources import locate_recorded_checkpoint
from nnunetv2_ext.planning.pretrain_info import recorded_transfer
from nnunetv2_ext.transfer.loading import load_and_verify
from nnunetv2_ext.transfer.report import TransferReport
from nnunetv2_ext.transfer.table import report_lines


def load_pretrained_weights(network: nn.Module, plans: Mapping[str, Any], log: Callable[[str], Any]) -> TransferReport:
    """Load what the plan asks for of its checkpoint into a network, in place, verify it, and say what was done.

    Beside the network there is one tensor at a time in memory; the file is memory-mapped, and its pages given back.

    Args:
        network: as the plan describes it, neither compiled nor wrapped.
        plans: a ptPlan; its `pretrain_info` says which checkpoint and where the parts lie in it.
        log: prints a line to the screen and the training log.

    Returns:
        What became of every tensor.

    Raises:
        UserError: the checkpoint is not found or not the one that was planned with, or does not fit.
    """
    info = plans["pretrain_info"]
    file = locate_recorded_checkpoint(info)
    weights = read_network_weights(file)
    release = page_releaser(file.path)
    transfer = recorded_transfer(plans, network, weights, release)
    load_and_verify(network, transfer, release)
    log("\n".join([f"Pre-trained weights from {file.path}:", *report_lines(transfer.report)]))
    for line in format_citations(info.get("citations") or []):
        log(line)
    return transfer.report
