"""What a checkpoint is, and what a transfer into a plan would do: what nnUNetv2_inspect_pretrained_checkpoint shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.checkpoints.citations import format_citations
from nnunetv2_ext.checkpoints.pages import page_releaser
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION, dataset_name, preprocessed_folder, read_json
from nnunetv2_ext.planning.dynamic_plan import DynamicPlanOptions, make_dynamic_plan
from nnunetv2_ext.planning.given_architecture import read_with_architecture
from nnunetv2_ext.planning.names import inner_plans_name
from nnunetv2_ext.planning.plan_files import read_plan
from nnunetv2_ext.planning.pretrain_info import TransferOptions, keys_in, pretrain_info, rehearse_transfer
from nnunetv2_ext.transfer.matching import is_below
from nnunetv2_ext.transfer.pretrained import is_finite
from nnunetv2_ext.transfer.report import TransferReport
from nnunetv2_ext.transfer.request import TransferRequest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Inspection:
    """What is known of a checkpoint.

    Attributes:
        facts: plain JSON types, by topic.
        report: the transfer into a plan, where one was given.
    """

    facts: dict[str, Any]
    report: TransferReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """For programs: the facts and, where there is one, the report under `transfer`."""
        return self.facts if self.report is None else {**self.facts, "transfer": self.report.as_dict()}


def inspect_checkpoint(
    source: str, dataset: str | None = None, plans: str | None = None, *, arch: str | None = None
) -> Inspection:
    """Read everything that a checkpoint says of itself, and look through its tensors once.

    Args:
        source: `-pc`.
        dataset: `-d`, id or name; with `plans`.
        plans: `-p`, a ptPlan, or one of nnU-Net's own plans, whose network would take what fits.
        arch: `-arch`, for weights that do not say which network they are of.

    Raises:
        UserError: as planning with this checkpoint would, but for too small a coverage, which is shown.
    """
    if (dataset is None) != (plans is None):
        raise UserError("-d and -p go together: the transfer is shown for a plan of a dataset")
    checkpoint = read_with_architecture(resolve_checkpoint_source(source), arch, None)
    report = None if dataset is None or plans is None else _transfer_into(checkpoint, dataset, plans)
    return Inspection(_facts(checkpoint), report)


def _facts(checkpoint: PretrainedCheckpoint) -> dict[str, Any]:
    plan, file = checkpoint.adaptation_plan, checkpoint.file
    tensors = _each_once(checkpoint.network_weights)
    not_finite = []
    release = page_releaser(file.path)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            not_finite.append(name)
        release()
    labels = (checkpoint.dataset_json or {}).get("labels")
    return {
        "file": str(file.path),
        "source": file.source,
        "hub_repo": file.hub_repo,
        "hub_revision": file.hub_revision,
        "kind": checkpoint.kind,
        "trainer_name": checkpoint.trainer_name,
        "architecture": None if plan is None else plan.architecture_name,
        "architecture_arguments": None if plan is None else plan.architecture_kwargs,
        "pretrain_spacing": None if plan is None or plan.spacing is None else list(plan.spacing),
        "pretrain_patch_size": None if plan is None else list(plan.pretrain_patch_size),
        "recommended_downstream_patch_size": None if plan is None else list(plan.recommended_downstream_patchsize),
        "pretrain_num_input_channels": None if plan is None else plan.pretrain_num_input_channels,
        "normalization_schemes": list(plan.normalization_schemes) if plan and plan.normalization_schemes else None,
        "key_to_encoder": None if plan is None else plan.key_to_encoder,
        "key_to_stem": None if plan is None else plan.key_to_stem,
        "keys_to_in_proj": None if plan is None else list(plan.keys_to_in_proj),
        "key_to_lpe": None if plan is None else plan.key_to_lpe,
        "labels": None if labels is None else dict(labels),
        "citations": format_citations(checkpoint.citations),
        "parts": _parts(checkpoint, tensors),
        "dtypes": dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())),
        "not_finite": not_finite,
    }


def _each_once(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor under its first name; further names of the same storage are left out."""
    found: dict[tuple[int, Sequence[int]], str] = {}
    for name, tensor in weights.items():
        found.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
    return {name: weights[name] for name in found.values()}


def _parts(checkpoint: PretrainedCheckpoint, tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Tensors and parameters by part: stem and encoder where the plan says where they are, else by first component."""
    plan = checkpoint.adaptation_plan
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        part = name.partition(".")[0]
        if plan is not None and is_below(name, plan.key_to_stem):
            part = "stem"
        elif plan is not None and is_below(name, plan.key_to_encoder):
            part = "encoder"
        row = parts.setdefault(part, {"part": part, "tensors": 0, "parameters": 0})
        row["tensors"] += 1
        row["parameters"] += tensor.numel()
    return list(parts.values())


def _transfer_into(checkpoint: PretrainedCheckpoint, dataset: str, plans: str) -> TransferReport:
    """The report of a rehearsal, whatever the coverage."""
    folder = preprocessed_folder(dataset_name(dataset))
    dataset_json = read_json(folder / "dataset.json")
    stem = Path(plans).name.removesuffix(".json")
    stock = folder / f"{stem}.json"
    if not stem.startswith("ptPlans") and stock.is_file():
        options = DynamicPlanOptions("inspection", transfer=TransferOptions(min_coverage=0.0))
        return make_dynamic_plan(read_json(stock), dataset_json, checkpoint, options, "")[1]
    if not stock.is_file() and not stem.startswith("ptPlans"):
        stems = sorted(p.stem for p in folder.glob("*Plans*.json") if not p.stem.endswith(".settings"))
        there = [s for s in stems if inner_plans_name(s) == s]
        raise UserError(f"there is no plan {stem} (-p) in {folder}; there are {', '.join(there) or 'none'}")
    plan, _ = read_plan(folder, plans)
    configuration = plan["configurations"][CONFIGURATION]
    recorded = TransferRequest.from_dict(plan["pretrain_info"].get("transfer"))
    request = TransferOptions(
        load=recorded.load if "transfer" in plan["pretrain_info"] else None,
        keep_head=recorded.keep_head,
        channel_map=recorded.channel_map,
    ).request(checkpoint, dataset_json, 0.0)
    keys = keys_in(checkpoint, configuration["architecture"])
    info = pretrain_info(checkpoint, "inspection", keys, configuration["patch_size"], request, "")
    return rehearse_transfer(
        {**plan, "pretrain_info": info}, dataset_json, checkpoint.network_weights, checkpoint.file.path
    )
