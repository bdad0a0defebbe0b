"""The ptPlan of the dynamic route: the dataset's own network, spacing and patch, and what fits of a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_ext.architectures.patch_size import check_patch_size
from nnunetv2_ext.architectures.presets import (
    PLAIN_CLASS,
    RESENC_CLASS,
    class_of,
    downstream_architecture,
    family,
    short_name,
)
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION
from nnunetv2_ext.planning import names
from nnunetv2_ext.planning.pretrain_info import TransferOptions, keys_in, pretrain_info, rehearse_transfer
from nnunetv2_ext.planning.pretrained_plan import DEFAULT_NORMALIZATION, normalization_of, resolved_configuration
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.transfer.pretrained import MisfitError
from nnunetv2_ext.transfer.report import TransferReport

COVERAGE = 0.5
"""Another network takes what fits; below half of the encoder it is hardly a pre-trained one."""


@dataclass(frozen=True)
class DynamicPlanOptions:
    """What the user chose.

    Attributes:
        name: `-n`, checked.
        batch_size: `-bs`; None for the dataset's own plan's.
        normalization: `-norm`; the dataset's own by default, so that cases which nnU-Net has preprocessed are used.
        patch_size: `-ps`, voxels in network axis order; None for the dataset's own plan's.
        transfer: `-load`, `-keep_head`, `-cm`, `-min_coverage`.
    """

    name: str
    batch_size: int | None = None
    normalization: str = DEFAULT_NORMALIZATION
    patch_size: tuple[int, ...] | None = None
    transfer: TransferOptions = TransferOptions()  # noqa: RUF009  frozen


def make_dynamic_plan(
    base_plan: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    checkpoint: PretrainedCheckpoint,
    options: DynamicPlanOptions,
    sha256: str,
) -> tuple[dict[str, Any], TransferReport]:
    """The plan, and what transfer will do with it.

    Args:
        base_plan: the dataset's own nnU-Net plan; all of its `3d_fullres` is kept.
        dataset_json: the dataset's description (channels, labels).
        checkpoint: of any kind, read lazily.
        options: the user's choices.
        sha256: of the checkpoint file.

    Returns:
        The plan with one configuration, `3d_fullres`, its `data_identifier` not yet checked against other plans', and
        the transfer report.

    Raises:
        UserError: the dataset's network is not one of nnU-Net's own; less of the weights fits than must.
    """
    configuration = resolved_configuration(base_plan)
    patch_size = tuple(options.patch_size or configuration["patch_size"])
    architecture = _own_architecture(configuration, patch_size, str(base_plan.get("plans_name")))
    check_patch_size(architecture, patch_size, short_name(architecture["network_class_name"]))
    configuration |= {"architecture": architecture, "patch_size": [int(p) for p in patch_size]}
    if options.batch_size is not None:
        configuration["batch_size"] = options.batch_size
    if options.normalization != DEFAULT_NORMALIZATION:
        schemes, masks = normalization_of(configuration, checkpoint.adaptation_plan, options.normalization)
        if schemes != configuration["normalization_schemes"] or masks != configuration["use_mask_for_norm"]:
            configuration |= {
                "normalization_schemes": schemes,
                "use_mask_for_norm": masks,
                "data_identifier": names.data_identifier(configuration["spacing"], schemes),
            }

    plan = copy.deepcopy(dict(base_plan))
    plan["plans_name"] = names.inner_plans_name(names.dynamic_file_stem(options.name))
    plan["configurations"] = {CONFIGURATION: configuration}
    plan["finetuning"] = {"recipe": recipe_for(family(architecture)).as_dict()}
    request = options.transfer.request(checkpoint, dataset_json, COVERAGE)
    keys = keys_in(checkpoint, architecture)
    plan["pretrain_info"] = pretrain_info(checkpoint, options.name, keys, patch_size, request, sha256)
    try:
        return plan, rehearse_transfer(plan, dataset_json, checkpoint.network_weights, checkpoint.file.path)
    except MisfitError as error:
        raise UserError(f"{error}. {_way_out(checkpoint, architecture)}") from error


def _way_out(checkpoint: PretrainedCheckpoint, architecture: Mapping[str, Any]) -> str:
    """What to do where too little of a checkpoint fits the network of the dataset's plan."""
    if checkpoint.adaptation_plan is None:
        return (
            "nnUNetv2_preprocess_like_nnssl -arch plans the checkpoint's own network instead, and "
            "nnUNetv2_convert_pretrained_checkpoint takes the keys of a network with other names"
        )
    theirs, ours = class_of(checkpoint.adaptation_plan.architecture_name), architecture["network_class_name"]
    if theirs == ours:
        return (
            "Another of the dataset's plans (-pl) may have the same widths, and nnUNetv2_preprocess_like_nnssl plans "
            "the checkpoint's own network"
        )
    start = f"It is a {short_name(theirs)}, and the network of the dataset's plan a {short_name(ours)}: "
    own_network = "plan the checkpoint's own network with nnUNetv2_preprocess_like_nnssl"
    if theirs == RESENC_CLASS:
        return (
            f"{start}give a plan of that kind with -pl (nnUNetv2_plan_experiment -d DATASET -pl nnUNetPlannerResEncM "
            f"makes nnUNetResEncUNetMPlans), or {own_network}"
        )
    return f"{start}{'give nnUNetPlans with -pl, or ' if theirs == PLAIN_CLASS else ''}{own_network}"


def _own_architecture(configuration: Mapping[str, Any], patch_size: Sequence[int], plans: str) -> dict[str, Any]:
    named = configuration["architecture"]
    try:
        return downstream_architecture(short_name(named["network_class_name"]), named["arch_kwargs"], patch_size)
    except UserError as error:
        raise UserError(
            f"the network of the dataset's own plan {plans} is not one that weights can be brought into: {error}; "
            "start from another plan (-pl)"
        ) from error
