"""Whether what is to be preprocessed has room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION, NO_RESAMPLING

_BYTES_PER_CLASS = 10_000 * 4 * 8
"""Of the foreground locations in a case's `.pkl`, where no class has more than a million voxels."""
_BYTES_PER_VOXEL = 4
"""float32; the labels beside them compress to next to nothing."""
USUAL_COMPRESSION = 0.8
"""Compressed by uncompressed bytes of resampled MRI scans with noise (documentation/preprocessing.md)."""
BEST_COMPRESSION = 0.3
"""The same for scans that compress very well: not resampled, or mostly air that nnU-Net cannot crop."""


def check_space(folder: Path, plan: Mapping[str, Any], *, num_channels: int, num_classes: int, num_cases: int) -> str:
    """Compare what cases of the dataset's median size will need with what is free.

    Args:
        folder: where the cases will lie; exists.
        plan: a ptPlan.
        num_channels: image channels.
        num_classes: labels or regions, without the background.
        num_cases: cases that are still to be made.

    Returns:
        A warning in a line, or nothing.

    Raises:
        UserError: there is too little room even for images that compress very well.
    """
    free = shutil.disk_usage(folder).free
    uncompressed = num_cases * num_channels * _BYTES_PER_VOXEL * _voxels_per_case(plan)
    locations = num_cases * num_classes * _BYTES_PER_CLASS
    usual, least = (locations + ratio * uncompressed for ratio in (USUAL_COMPRESSION, BEST_COMPRESSION))
    figures = f"{num_cases} cases will take about {_size(usual)}, and {folder} has {_size(free)} free"
    if least > free:
        raise UserError(f"{figures}: make room, or point nnUNet_preprocessed to a larger disk")
    return f"Disk space may run out: {figures}" if usual > free else ""


def _voxels_per_case(plan: Mapping[str, Any]) -> float:
    shape, spacing = plan["original_median_shape_after_transp"], plan["original_median_spacing_after_transp"]
    configuration = plan["configurations"][CONFIGURATION]
    if configuration["resampling_fn_data"] == NO_RESAMPLING:
        return float(prod(shape))
    return float(prod(n * old / new for n, old, new in zip(shape, spacing, configuration["spacing"], strict=True)))


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
