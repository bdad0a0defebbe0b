"""Load a checkpoint file as data: nothing in it is executed, and its tensors stay on the disk until someone uses them.

`weights_only=True` always. Files in PyTorch's zip format (since 1.6) are memory-mapped, so that opening several hundred
megabytes costs milliseconds; the mapping is private: tensors may be changed without touching the file.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

from nnunetv2_ext.checkpoints.safe_globals import harmless_types
from nnunetv2_ext.checkpoints.safetensors_files import load_safetensors, looks_like_safetensors
from nnunetv2_ext.errors import UserError

_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
_PICKLE = b"\x80"
_TAR = b"ustar"  # PyTorch before 0.1.10
_TAR_AT = 257
_ZIP_FORMAT, _OLD_FORMAT, _SAFETENSORS = "zip", "old", "safetensors"


def load_as_data(path: Path) -> Any:
    """`torch.load` for files from anywhere: executes nothing, maps the file where it can, explains what it refuses.

    Numpy scalars are let through besides tensors and plain Python values: stock nnU-Net and older nnssl write them. A
    safetensors file comes as a dict of its tensors.

    Raises:
        UserError: Missing, empty, cut off, no checkpoint at all, or one that would run code.
    """
    kind = _recognise(path)
    if kind == _SAFETENSORS:
        return load_safetensors(path)

    import torch

    try:
        with torch.serialization.safe_globals(harmless_types()), warnings.catch_warnings():
            # both are then refused, with a reason
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            warnings.filterwarnings("ignore", message=".*TorchScript")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == _ZIP_FORMAT)
    except pickle.UnpicklingError as error:
        asked_for = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        what = f"it asks for '{asked_for[1]}' when loaded" if asked_for else "it is damaged or holds more than weights"
        raise UserError(
            f"'{path}' was refused and nothing of it executed: {what}. Take the checkpoint "
            "from a source you trust; of one that you made yourself, save the network's state_dict() alone."
        ) from error
    except Exception as error:  # damaged bytes lead the reader anywhere
        if "TorchScript" in str(error):
            raise UserError(f"'{path}' is a TorchScript program, not a checkpoint: give a file of weights.") from error
        raise UserError(f"'{path}' is damaged or no PyTorch checkpoint: download or copy it again.") from error


def _recognise(path: Path) -> str:
    """Which format a file has, by its first bytes; refuses what is none of them."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"There is no file '{path}': check the path.") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}): give a readable checkpoint file.") from error

    if not head:
        raise UserError(f"'{path}' is empty: download or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"'{path}' is a git-lfs pointer, not the checkpoint itself: run 'git lfs pull' where it lies.")
    if re.match(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml|!--)", head, re.IGNORECASE):
        raise UserError(f"'{path}' is a web page, not a checkpoint: download the file itself, not the page about it.")
    if head.startswith(_EMPTY_ZIP):
        raise UserError(f"'{path}' is a zip archive with nothing in it: export the model, or download it, again.")
    if head.startswith(_ZIP):
        _check_archive(path)
        return _ZIP_FORMAT
    if looks_like_safetensors(head):
        return _SAFETENSORS
    if not head.startswith(_PICKLE) and head[_TAR_AT : _TAR_AT + len(_TAR)] != _TAR:
        raise UserError(f"'{path}' is not a PyTorch checkpoint: give a .pth or .safetensors file.")
    return _OLD_FORMAT


def _check_archive(path: Path) -> None:
    """A zip file's table of contents is at its end: a file without one was cut off."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(
            f"'{path}' is cut off after {path.stat().st_size:,} bytes: download or copy it again."
        ) from error
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(
            f"'{path}' is a zip archive, and neither a checkpoint nor an exported nnU-Net model (no plans.json): "
            "unpack it and give the file of weights in it."
        )
