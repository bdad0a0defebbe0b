"""Checkpoints of a fine-tuning: stock nnU-Net's format, whole or absent, without numpy scalars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from nnunetv2_ext.checkpoints.safe_globals import harmless_types
from nnunetv2_ext.errors import UserError
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


@contextmanager
def read_training_checkpoint(path: Path | str, device: torch.device) -> Iterator[dict[str, Any]]:
    """A checkpoint of a training to continue, as data; no code in it is run.

    Args:
        path: the file.
        device: where its tensors go.

    Raises:
        UserError: the file is not whole, or (inside the `with`) what it holds does not fit.
    """
    try:
        with torch.serialization.safe_globals(harmless_types()):
            checkpoint = torch.load(path, map_location=device, weights_only=True)
        yield checkpoint
    except (RuntimeError, KeyError, EOFError, ValueError, OSError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be continued from: {reason}") from error
