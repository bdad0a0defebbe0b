"""A plan's network as stock nnU-Net builds it, and with what training loads into it."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.planning.pretrain_info import recorded_keys
from nnunetv2_ext.transfer.loading import load_and_verify
from nnunetv2_ext.transfer.pretrained import plan_transfer
from nnunetv2_ext.transfer.report import TransferReport
from nnunetv2_ext.transfer.request import TransferRequest


def configuration_of(plan: dict[str, Any]) -> ConfigurationManager:
    return PlansManager(plan).get_configuration("3d_fullres")


def built(plan: dict[str, Any], channels: int = 1, classes: int = 3) -> torch.nn.Module:
    configuration = configuration_of(plan)
    return get_network_from_plans(
        configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import, channels, classes, deep_supervision=False,
    )  # fmt: skip


def loaded(network: torch.nn.Module, plan: dict[str, Any], checkpoint: PretrainedCheckpoint) -> TransferReport:
    """Load a plan's weights into its network by what the plan says, as training does; changes the network."""
    info = plan["pretrain_info"]
    transfer = plan_transfer(
        network,
        checkpoint.network_weights,
        recorded_keys(info),
        pretrain_patch_size=info["pt_used_patchsize"],
        patch_size=plan["configurations"]["3d_fullres"]["patch_size"],
        request=TransferRequest.from_dict(info["transfer"]),
    )
    load_and_verify(network, transfer)
    return transfer.report
