"""Find a plan's checkpoint, and bring its weights into the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nnunetv2_ext.checkpoints.reading import format_citations, read_network_weights
from nnunetv2_ext.checkpoints.sources import locate_recorded_checkpoint
from nnunetv2_ext.nnunet_folders import CONFIGURATION
from nnunetv2_ext.transfer.matching import PartKeys
from nnunetv2_ext.transfer.pretrained import load_tensors, transfer_encoder
from nnunetv2_ext.transfer.report import TransferReport


def load_pretrained_weights(network: nn.Module, plans: Mapping[str, Any], log: Callable[[str], Any]) -> TransferReport:
    """Load encoder and stem of the plan's checkpoint into a network, in place, and say what was done.

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
    keys = PartKeys(info["key_to_encoder"], info["key_to_stem"], tuple(info["keys_to_in_proj"]), info.get("key_to_lpe"))
    tensors, report = transfer_encoder(
        network,
        weights,
        keys,
        pretrain_patch_size=info["pt_used_patchsize"],
        patch_size=plans["configurations"][CONFIGURATION]["patch_size"],
    )
    load_tensors(network, tensors)
    log("\n".join([f"Pre-trained weights from {file.path}:", *report.summary_lines()]))
    for line in format_citations(info.get("citations") or []):
        log(line)
    return report
