"""Checkpoints of a fine-tuning: stock nnU-Net's format, whole or absent, without numpy scalars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_ext.files import whole_or_absent

INFERENCE_TRAINER = "nnUNetTrainer"
"""The class that rebuilds the network from the plans for stock inference, with or without this package installed."""


def without_numpy(value: Any) -> Any:
    """`value` with numpy scalars and arrays as Python numbers and lists, so that it loads with `weights_only=True`."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {without_numpy(k): without_numpy(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_numpy(v) for v in value)
    return value


def save_whole(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name, flush it to disk and rename it: `path` is never a part of a file."""
    with whole_or_absent(path) as temporary:
        torch.save(checkpoint, temporary)
