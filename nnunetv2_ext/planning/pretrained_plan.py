"""The ptPlans content: a valid stock nnU-Net plan that says which weights, which network, which data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_ext.architectures.build import build_on_meta_device
from nnunetv2_ext.architectures.patch_size import check_patch_size
from nnunetv2_ext.architectures.presets import downstream_architecture, family
from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION
from nnunetv2_ext.planning import names
from nnunetv2_ext.planning.modes import TargetSpacing, no_resampling_functions
from nnunetv2_ext.recipes.recipe import recipe_for
from nnunetv2_ext.transfer.matching import PartKeys
from nnunetv2_ext.transfer.pretrained import transfer_encoder
from nnunetv2_ext.transfer.report import TransferReport

ZSCORE = "zscore"
DEFAULT_NORMALIZATION = "default_nnunet"
NORMALIZATIONS = (ZSCORE, DEFAULT_NORMALIZATION)


@dataclass(frozen=True)
class PlanOptions:
    """What the user chose.

    Attributes:
        name: `-n`, checked.
        batch_size: `-bs`.
        normalization: `-norm`, one of `NORMALIZATIONS`.
        patch_size: `-ps`, voxels in network axis order; None for the checkpoint's recommended one.
    """

    name: str
    batch_size: int = 2
    normalization: str = ZSCORE
    patch_size: tuple[int, ...] | None = None


def part_keys(pretraining: AdaptationPlan) -> PartKeys:
    """Where the checkpoint's parts lie, as transfer wants it."""
    return PartKeys(
        pretraining.key_to_encoder, pretraining.key_to_stem, pretraining.keys_to_in_proj, pretraining.key_to_lpe
    )


def make_plan(
    base_plan: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    checkpoint: PretrainedCheckpoint,
    spacing: TargetSpacing,
    options: PlanOptions,
    sha256: str,
) -> tuple[dict[str, Any], TransferReport]:
    """The plan, and what transfer will do with it.

    The network is built and matched against the checkpoint here, on the meta device, so that a checkpoint that does
    not fit is found before hours of preprocessing and not after.

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
    pretraining = checkpoint.adaptation_plan
    base = _resolved_configuration(base_plan)
    patch_size = tuple(options.patch_size or pretraining.recommended_downstream_patchsize)
    architecture = downstream_architecture(pretraining.architecture_name, pretraining.architecture_kwargs, patch_size)
    check_patch_size(architecture, patch_size, pretraining.architecture_name)
    schemes, masks = _normalization(base, pretraining, options.normalization)
    identifier = names.data_identifier(spacing.spacing if spacing.resample else None, schemes)

    configuration = copy.deepcopy(base)
    for stale in ("inherits_from", "previous_stage", "next_stage"):
        configuration.pop(stale, None)
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
    plan["pretrain_info"] = _pretrain_info(checkpoint, options.name, patch_size, sha256)

    network = build_on_meta_device(architecture, len(schemes), _num_outputs(plan, dataset_json))
    _, report = transfer_encoder(
        network,
        checkpoint.network_weights,
        part_keys(pretraining),
        pretrain_patch_size=pretraining.pretrain_patch_size,
        patch_size=patch_size,
    )
    return plan, report


def _resolved_configuration(plan: Mapping[str, Any]) -> dict[str, Any]:
    """`3d_fullres` with what it inherits, resolved by nnU-Net itself."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return copy.deepcopy(PlansManager(copy.deepcopy(dict(plan))).get_configuration(CONFIGURATION).configuration)


def _num_outputs(plan: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> int:
    """Segmentation heads as nnU-Net counts them: regions have their own, an ignore label has none."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return int(PlansManager(dict(plan)).get_label_manager(dict(dataset_json)).num_segmentation_heads)


def _normalization(base: Mapping[str, Any], pretraining: AdaptationPlan, choice: str) -> tuple[list[str], list[bool]]:
    """Schemes and masks, one for each image channel.

    `zscore` normalises like nearly all pre-training does (z-score, over the mask only if pre-training did so);
    `default_nnunet` keeps nnU-Net's choice for the dataset (CT windows, for example).
    """
    if choice == DEFAULT_NORMALIZATION:
        return list(base["normalization_schemes"]), list(base["use_mask_for_norm"])
    if choice != ZSCORE:
        raise UserError(f"-norm takes {' or '.join(NORMALIZATIONS)}, not {choice!r}")
    channels = len(base["normalization_schemes"])
    masks = list(pretraining.use_mask_for_norm or (False,))
    return ["ZScoreNormalization"] * channels, masks if len(masks) == channels else [masks[0]] * channels


def _median_size(base: Mapping[str, Any], spacing: TargetSpacing) -> list[float]:
    """Voxels of the median image at the new spacing: the base plan's, scaled axis by axis."""
    return [
        float(round(size * old / new, 2))
        for size, old, new in zip(base["median_image_size_in_voxels"], base["spacing"], spacing.spacing, strict=True)
    ]


def _pretrain_info(
    checkpoint: PretrainedCheckpoint, name: str, patch_size: Sequence[int], sha256: str
) -> dict[str, Any]:
    """The keys that the nnssl fork and nnU-Net's development branch read, then those that find the weights again."""
    pretraining = checkpoint.adaptation_plan
    return {
        "checkpoint_path": str(checkpoint.file.path),
        "checkpoint_name": name,
        "key_to_encoder": pretraining.key_to_encoder,
        "key_to_stem": pretraining.key_to_stem,
        "keys_to_in_proj": list(pretraining.keys_to_in_proj),
        "key_to_lpe": pretraining.key_to_lpe,
        "pt_num_in_channels": pretraining.pretrain_num_input_channels,
        "pt_used_patchsize": list(pretraining.pretrain_patch_size),
        # the fork takes this for the patch size of the network that it builds, so it has to be the plan's
        "pt_recommended_downstream_patchsize": list(patch_size),
        "citations": checkpoint.citations,
        "checkpoint_source": checkpoint.file.source,
        "checkpoint_sha256": sha256,
        "hub_repo": checkpoint.file.hub_repo,
        "hub_revision": checkpoint.file.hub_revision,
        "architecture_name": pretraining.architecture_name,
        "trainer_name": checkpoint.trainer_name,
    }
