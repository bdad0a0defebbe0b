"""Adaptation modes: which spacing the dataset is brought to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import NO_RESAMPLING

LIKE_PRETRAINED = "like_pretrained"
DEFAULT_NNUNET = "default_nnunet"
FIXED = "fixed"
NO_RESAMPLE = "no_resample"
ADAPTATION_MODES = (LIKE_PRETRAINED, DEFAULT_NNUNET, FIXED, NO_RESAMPLE)


def no_resampling_functions() -> dict[str, Any]:
    """The entries of a plan's configuration that switch resampling off."""
    functions: dict[str, Any] = {}
    for role in ("data", "seg", "probabilities"):
        functions |= {f"resampling_fn_{role}": NO_RESAMPLING, f"resampling_fn_{role}_kwargs": {}}
    return functions


@dataclass(frozen=True)
class TargetSpacing:
    """What an adaptation mode decided.

    Attributes:
        spacing: mm, network axis order; always numbers, since nnU-Net cannot take None.
        resample: False where cases keep their own spacing (`spacing` is then the dataset's typical one).
        note: a line for the user where the mode could not do what its name says.
    """

    spacing: tuple[float, ...]
    resample: bool = True
    note: str | None = None


def target_spacing(
    mode: str,
    pretraining: AdaptationPlan,
    dataset_spacing: Sequence[float],
    override: Sequence[float] | None = None,
) -> TargetSpacing:
    """The spacing for an adaptation mode.

    Args:
        mode: one of `ADAPTATION_MODES`.
        pretraining: the checkpoint's plan; its spacing is copied axis by axis in the network's order.
        dataset_spacing: mm, of the base plan's `3d_fullres`, transposed.
        override: mm, `-os`; with `fixed` and with nothing else.

    Raises:
        UserError: `fixed` without three positive finite numbers, or `-os` with another mode.
    """
    if mode not in ADAPTATION_MODES:
        raise UserError(f"-am takes {', '.join(ADAPTATION_MODES)}, not {mode!r}")
    if override is not None and mode != FIXED:
        raise UserError(f"-os goes with -am fixed, not with -am {mode}")
    own = tuple(float(s) for s in dataset_spacing)
    if mode == FIXED:
        if override is None or len(override) != 3 or not all(math.isfinite(s) and s > 0 for s in override):
            given = "" if override is None else f", not {' '.join(map(str, override))}"
            raise UserError(f"-am fixed needs -os Z Y X: three positive finite numbers (mm){given}")
        return TargetSpacing(tuple(float(s) for s in override))
    if mode == NO_RESAMPLE:
        return TargetSpacing(own, resample=False)
    if mode == DEFAULT_NNUNET:
        return TargetSpacing(own)
    if pretraining.spacing is None:
        known = pretraining.spacing_style is not None
        why = "the pre-training had no target spacing (it did not resample)"
        why = why if known else "the checkpoint has no spacing (its pre-training did not resample, or it is not known)"
        note = f"{why}: like_pretrained uses the dataset's own"
        return TargetSpacing(own, note=f"{note}, {' x '.join(f'{s:g}' for s in own)} mm")
    return TargetSpacing(tuple(float(s) for s in pretraining.spacing))
