"""A checkpoint that does not say which network it is of, with the architecture that the user gives (`-arch`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.architectures.presets import PRESETS, PRIMUS_CLASS, check_name
from nnunetv2_ext.checkpoints.adaptation_plan import NOT_RESAMPLED, AdaptationPlan
from nnunetv2_ext.checkpoints.describe import KEYS, check_three_dimensions, describe
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint, check_keys, read_checkpoint, read_without_plan
from nnunetv2_ext.checkpoints.sources import CheckpointFile
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION, NO_RESAMPLING, read_json
from nnunetv2_ext.planning.pretrained_plan import resolved_configuration

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GivenArchitecture:
    """What the user says of a network.

    Attributes:
        arch: `-arch`: a name of `PRESETS`; or a JSON file: an adaptation plan, or an nnU-Net plan with `3d_fullres`.
            None for what the checkpoint says.
        patch_size: voxels, network axis order, of the pre-training; None for what the file or the weights say.
        spacing: mm, the same order; None for what the file says.
        channels: of the images in pre-training; None for what the stem's weight says.
        keys: where the parts lie, any of nnssl's `key_to_...`; the architecture's own otherwise.
        default_patch_size: taken for the pre-training's where nothing else says what it was.
    """

    arch: str | None
    patch_size: Sequence[int] | None = None
    spacing: Sequence[float] | None = None
    channels: int | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    default_patch_size: Sequence[int] | None = None


def read_with_architecture(
    file: CheckpointFile, arch: str | None, patch_size: Sequence[int] | None
) -> PretrainedCheckpoint:
    """A checkpoint as it describes itself or, with `-arch`, as the user does.

    Args:
        file: the checkpoint.
        arch: see `GivenArchitecture`.
        patch_size: `-ps`, of the fine-tuning; not the pre-training's where the file or the weights say another.

    Raises:
        UserError: `-arch` for a checkpoint that describes itself; whatever else is wrong with it.
    """
    if arch is None:
        return read_checkpoint(file)
    checkpoint, raw = read_without_plan(file)
    if raw or read_checkpoint(file).adaptation_plan is not None:
        raise UserError(
            f"'{file.path}' says itself which network it is of: leave -arch out, or write another description with "
            "nnUNetv2_convert_pretrained_checkpoint"
        )
    return described(checkpoint, GivenArchitecture(arch, default_patch_size=patch_size), patch_flag="-ps")


def described(
    checkpoint: PretrainedCheckpoint,
    given: GivenArchitecture,
    raw: Mapping[str, Any] | None = None,
    *,
    patch_flag: str = "-patch_size",
) -> PretrainedCheckpoint:
    """The checkpoint with an adaptation plan of the given architecture.

    Args:
        checkpoint: its tensors' names and shapes are used.
        given: what the user says; wins over everything else.
        raw: an incomplete adaptation plan that the checkpoint carries; what it has is kept.
        patch_flag: the command's flag for the patch size, for the message.

    Raises:
        UserError: an unknown architecture; no patch size to be found; keys that point at nothing.
    """
    plan = adaptation_plan_from(checkpoint.network_weights, given, raw or {}, patch_flag)
    parsed = AdaptationPlan.from_dict(plan)
    check_keys(parsed, checkpoint.network_weights, checkpoint.file.path)
    return dataclasses.replace(checkpoint, adaptation_plan=parsed)


def adaptation_plan_from(
    weights: Mapping[str, torch.Tensor], given: GivenArchitecture, raw: Mapping[str, Any], patch_flag: str
) -> dict[str, Any]:
    """The adaptation plan of weights: the user's word first, then the `-arch` file's, then the checkpoint's own.

    Raises:
        UserError: as `described`.
    """
    own = _of_adaptation_plan(raw)
    told: dict[str, Any] = own
    if given.arch is not None:
        told = _of_file(Path(given.arch)) if _is_file(given.arch) else {"name": given.arch, "kwargs": None}
    if not told.get("name"):
        raise UserError(
            "the checkpoint does not say which network it is of: give -arch (a name, or a plan's JSON file)"
        )
    patch_size = given.patch_size or told.get("patch_size") or own.get("patch_size")
    if patch_size is None and PRESETS.get(told["name"], ("",))[0] == PRIMUS_CLASS:
        patch_size = _cube_of_tokens(weights, told["kwargs"])
    patch_size = patch_size or given.default_patch_size
    if patch_size is None:
        raise UserError(
            f"the checkpoint does not say with which patch it was trained: give {patch_flag} Z Y X (voxels)"
        )
    keys = {k: given.keys.get(k) or told.get(k) or own.get(k) for k in KEYS}
    plan = describe(
        weights,
        told["name"],
        told["kwargs"],
        patch_size=patch_size,
        spacing=given.spacing or told.get("spacing") or own.get("spacing"),
        spacing_style=None if given.spacing else told.get("spacing_style") or own.get("spacing_style"),
        channels=given.channels or own.get("channels"),
        keys={k: v for k, v in keys.items() if v},
        configuration=told.get("configuration") or own.get("configuration"),
        origin=own.get("origin"),
    )
    recommended = told.get("recommended") or own.get("recommended")
    return plan if recommended is None else {**plan, "recommended_downstream_patchsize": list(recommended)}


def _is_file(arch: str) -> bool:
    if arch in PRESETS:
        return False
    if Path(arch).is_file():
        return True
    if arch.endswith(".json") or "/" in arch:
        raise UserError(f"there is no file {arch} (-arch): give a plan's JSON file, or one of {', '.join(PRESETS)}")
    check_name(arch)
    return False


def _of_file(path: Path) -> dict[str, Any]:
    """Architecture, patch, spacing and normalisation in an adaptation plan or an nnU-Net plan."""
    content = read_json(path)
    if "architecture_plans" in content:
        return _of_adaptation_plan(content)
    if CONFIGURATION not in (content.get("configurations") or {}):
        raise UserError(
            f"{path} (-arch) is neither an adaptation plan (with architecture_plans) nor an nnU-Net plan (with "
            f"{CONFIGURATION})"
        )
    configuration = resolved_configuration({**content, "plans_name": f"{path} (-arch)"})
    check_three_dimensions(configuration["patch_size"], str(path))
    resampled = configuration.get("resampling_fn_data") != NO_RESAMPLING
    return {
        "name": configuration["architecture"]["network_class_name"],
        "kwargs": configuration["architecture"]["arch_kwargs"],
        "patch_size": configuration["patch_size"],
        "spacing": configuration["spacing"] if resampled else None,
        "spacing_style": None if resampled else NOT_RESAMPLED,
        "configuration": {k: configuration.get(k) for k in ("normalization_schemes", "use_mask_for_norm")},
    }


_PLACEHOLDERS: dict[str, Any] = {
    "architecture_plans": "-",
    "pretrain_num_input_channels": 1,
    "key_to_encoder": "-",
    "key_to_stem": "-",
    "keys_to_in_proj": ["-"],
}
"""For reading what there is of an incomplete plan with the same checks as a complete one."""


def _of_adaptation_plan(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What an adaptation plan says; nothing where it says nothing."""
    if not raw:
        return {}
    try:
        plan = AdaptationPlan.from_dict({**_PLACEHOLDERS, **_given(raw)})
        patch: Sequence[int] | None = plan.pretrain_patch_size
    except UserError:  # again, if not for the patch
        plan = AdaptationPlan.from_dict({**_PLACEHOLDERS, "pretrain_patch_size": [1, 1, 1], **_given(raw)})
        patch = None
    pretraining = raw.get("pretrain_plan") or {}
    return {
        "name": plan.architecture_name if raw.get("architecture_plans") else None,
        "kwargs": plan.architecture_kwargs,
        "patch_size": patch,
        "spacing": plan.spacing,
        "spacing_style": plan.spacing_style,
        "recommended": plan.recommended_downstream_patchsize if raw.get("recommended_downstream_patchsize") else None,
        "channels": raw.get("pretrain_num_input_channels"),
        "origin": {k: v for k, v in pretraining.items() if k in _ORIGIN},
        "configuration": {
            "normalization_schemes": list(plan.normalization_schemes) if plan.normalization_schemes else None,
            "use_mask_for_norm": list(plan.use_mask_for_norm) if plan.use_mask_for_norm else None,
        },
        **{k: raw.get(k) for k in KEYS},
    }


_ORIGIN = ("dataset_name", "plans_name", "transpose_forward", "transpose_backward", "image_reader_writer",
           "original_median_spacing_after_transp", "experiment_planner_used")  # fmt: skip
"""What a `pretrain_plan` says of where the weights come from, besides its configuration."""


def _given(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if value is not None}


def _cube_of_tokens(weights: Mapping[str, torch.Tensor], kwargs: Mapping[str, Any] | None) -> list[int] | None:
    """The patch of a Primus whose tokens form a cube, as nearly all are trained."""
    for name, tensor in weights.items():
        if name.endswith("eva.pos_embed") and tensor.ndim == 3:
            edge = round(tensor.shape[1] ** (1 / 3))
            size = (kwargs or {}).get("patch_embed_size", 8)
            sizes = [size] * 3 if isinstance(size, int) else size
            return [int(s) * edge for s in sizes] if edge**3 == tensor.shape[1] else None
    return None
