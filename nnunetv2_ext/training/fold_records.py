"""What lies in a fold's folder beside nnU-Net's own files: how it was trained, and what was transferred."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nnunetv2_ext.files import write_json
from nnunetv2_ext.nnunet_folders import read_json
from nnunetv2_ext.recipes.recipe import Recipe
from nnunetv2_ext.training.transfer_figure import draw_transfer
from nnunetv2_ext.transfer.matching import PartKeys, network_tensors
from nnunetv2_ext.transfer.report import FRESH, TensorRecord, TransferReport

FINETUNING_FILE = "finetuning.json"
TRANSFER_FILE = "transfer_report.json"
TRANSFER_FIGURE = "transfer_report.png"
ADAPTER_FOLDER = "adapter"
_PACKAGES = ("nnunetv2-ext", "nnunetv2", "torch", "dynamic-network-architectures", "batchgenerators", "numpy")


def write_transfer_report(folder: Path, report: TransferReport | None, network: nn.Module) -> None:
    """Write `transfer_report.json` and `.png`; without a report (from scratch) every tensor of the network is fresh."""
    if report is None:
        tensors = network_tensors(network, PartKeys.of_network(network))
        report = TransferReport([
            TensorRecord(t.names[0], t.part, tuple(t.tensor.shape), FRESH, aliases=t.names[1:]) for t in tensors
        ])  # fmt: skip
    write_json(folder / TRANSFER_FILE, report.as_dict())
    draw_transfer(report, folder / TRANSFER_FIGURE)


def write_finetuning(folder: Path, recipe: Recipe, plans: Mapping[str, Any], trainable_parameters: int) -> None:
    """Write `finetuning.json`: the resolved recipe, package versions and the checkpoint's identity.

    Args:
        folder: the fold's.
        recipe: resolved.
        plans: a ptPlan.
        trainable_parameters: the largest number that train at a time.
    """
    info = plans.get("pretrain_info", {})
    write_json(
        folder / FINETUNING_FILE,
        {
            "plans_name": plans["plans_name"],
            "from_scratch": recipe.from_scratch,
            "recipe": recipe.as_dict(),
            "trainable_parameters": trainable_parameters,
            "checkpoint": None if recipe.from_scratch else {
                k: info.get(k)
                for k in ("checkpoint_path", "checkpoint_source", "checkpoint_sha256", "hub_repo", "hub_revision")
            },
            "versions": package_versions(),
        },
    )  # fmt: skip


def stored_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe that a fold was started with, or None where the fold has none yet."""
    path = folder / FINETUNING_FILE
    return read_json(path)["recipe"] if path.is_file() else None


def package_versions() -> dict[str, str | None]:
    """Of the packages that a training's numbers depend on."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
