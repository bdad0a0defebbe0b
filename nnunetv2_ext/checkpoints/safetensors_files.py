"""Safetensors files: a length, a JSON header, and tensors that are memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    import torch

_LENGTH_BYTES = 8


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file's first bytes are those of a safetensors file: a little-endian length, then a JSON object."""
    return len(head) > _LENGTH_BYTES and head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, on the CPU, read from the disk when used.

    Raises:
        UserError: the file is damaged or cut off.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"'{path}' is damaged or no safetensors file ({error}): download or copy it again.") from error
