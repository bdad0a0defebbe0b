"""The ptPlans content: a valid stock nnU-Net plan that says which weights, which network, which data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_ext.architectures.patch_size import check_patch_size
from nnunetv2_ext.architectures.presets import downstream_architecture, family
from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION
from nnunetv2_ext.planning import names
from nnunetv2_ext.planning.modes import TargetSpacing, no_resampling_functions
from nnunetv2_ext.planning.pretrain_info import TransferOptions, keys_in, pretrain_info, rehearse_transfer
from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.transfer.report import TransferReport

ZSCORE = "zscore"
DEFAULT_NORMALIZATION = "default_nnunet"
NORMALIZATIONS = (ZSCORE, DEFAULT_NORMALIZATION)
OWN_ARCHITECTURE_COVERAGE = 1.0
"""The checkpoint's own network takes all of its encoder, or something is wrong."""


@dataclass(frozen=True)
class PlanOptions:
    """What the user chose.

    Attributes:
        name: `-n`, checked.
        batch_size: `-bs`.
        normalization: `-norm`, one of `NORMALIZATIONS`.
        patch_size: `-ps`, voxels in network axis order; None for the checkpoint's recommended one.
        transfer: `-load`, `-keep_head`, `-cm`, `-min_coverage`.
    """

    name: str
    batch_size: int = 2
    normalization: str = ZSCORE
    patch_size: tuple[int, ...] | None = None
    transfer: TransferOptions = TransferOptions()  # noqa: RUF009  frozen


def make_plan(
    base_plan: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    checkpoint: PretrainedCheckpoint,
    spacing: TargetSpacing,
    options: PlanOptions,
    sha256: str,
) -> tuple[dict[str, Any], TransferReport]:
    """The plan, and what transfer will do with it.

    Args:
        base_plan: the dataset's own nnU-Net plan; dataset properties and resampling functions are kept.
        dataset_json: the dataset's description (channels, labels).
        checkpoint: read lazily.
        spacing: from `modes.target_spacing`.
        options: the user's choices.
        sha256: of the checkpoint file.

    Returns:
        The plan with one configuration, `3d_fullres`, its `data_identifier` not yet checked against other plans', and
        the transfer report.

    Raises:
        UserError: patch, architecture or weights do not fit.
    """
    pretraining = checkpoint.plan
    base = resolved_configuration(base_plan)
    patch_size = tuple(options.patch_size or pretraining.recommended_downstream_patchsize)
    architecture = downstream_architecture(pretraining.architecture_name, pretraining.architecture_kwargs, patch_size)
    check_patch_size(architecture, patch_size, pretraining.architecture_name)
    schemes, masks = normalization_of(base, pretraining, options.normalization)
    identifier = names.data_identifier(spacing.spacing if spacing.resample else None, schemes)

    configuration = copy.deepcopy(base)
    configuration |= {
        "data_identifier": identifier,
        "batch_size": options.batch_size,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": _median_size(base, spacing),
        "spacing": list(spacing.spacing),
        "normalization_schemes": schemes,
        "use_mask_for_norm": masks,
        "architecture": architecture,
    }
    if not spacing.resample:
        configuration |= no_resampling_functions()

    plan = copy.deepcopy(dict(base_plan))
    plan["plans_name"] = names.inner_plans_name(names.plans_file_stem(options.name, identifier))
    plan["configurations"] = {CONFIGURATION: configuration}
    plan["finetuning"] = {"recipe": recipe_for(family(architecture)).as_dict()}
    request = options.transfer.request(checkpoint, dataset_json, OWN_ARCHITECTURE_COVERAGE)
    plan["pretrain_info"] = pretrain_info(
        checkpoint, options.name, keys_in(checkpoint, architecture), patch_size, request, sha256
    )
    return plan, rehearse_transfer(plan, dataset_json, checkpoint.network_weights, checkpoint.file.path)


def resolved_configuration(plan: Mapping[str, Any]) -> dict[str, Any]:
    """`3d_fullres` by itself, with what it inherits, resolved by nnU-Net itself; plans of nnU-Net before 2.3 included.

    Raises:
        UserError: there is none (a 2D dataset), or nnU-Net cannot read it.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    name = plan.get("plans_name", "the plan")
    if CONFIGURATION not in (plan.get("configurations") or {}):
        raise UserError(f"{name} has no configuration {CONFIGURATION}: pre-trained 3D networks need 3D images")
    try:
        manager = PlansManager(copy.deepcopy(dict(plan)))
        configuration = copy.deepcopy(manager.get_configuration(CONFIGURATION).configuration)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"nnU-Net cannot read {CONFIGURATION} of {name} ({type(error).__name__}: {error})") from error
    # what concerns other configurations, which a ptPlan does not have
    return {k: v for k, v in configuration.items() if k not in ("inherits_from", "previous_stage", "next_stage")}


def normalization_of(
    base: Mapping[str, Any], pretraining: AdaptationPlan | None, choice: str
) -> tuple[list[str], list[bool]]:
    """Schemes and masks, one for each image channel.

    `zscore` normalises like nearly all pre-training does (z-score, over the mask only if pre-training did so);
    `default_nnunet` keeps nnU-Net's choice for the dataset (CT windows, for example).
    """
    if choice == DEFAULT_NORMALIZATION:
        return list(base["normalization_schemes"]), list(base["use_mask_for_norm"])
    if choice != ZSCORE:
        raise UserError(f"-norm takes {' or '.join(NORMALIZATIONS)}, not {choice!r}")
    channels = len(base["normalization_schemes"])
    masks = list((pretraining and pretraining.use_mask_for_norm) or (False,))
    return ["ZScoreNormalization"] * channels, masks if len(masks) == channels else [masks[0]] * channels


def _median_size(base: Mapping[str, Any], spacing: TargetSpacing) -> list[float]:
    """Voxels of the median image at the new spacing: the base plan's, scaled axis by axis."""
    return [
        float(round(size * old / new, 2))
        for size, old, new in zip(base["median_image_size_in_voxels"], base["spacing"], spacing.spacing, strict=True)
    ]
