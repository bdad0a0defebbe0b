"""Folders that cannot be written to: found before anything is read, and said with what the user does about it."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import nnunet_folder

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_PROBE_BYTES = 4096


def check_writable(variable: str, dataset: str) -> None:
    """Write a little where a dataset is to be, or above it; no trace is left.

    Args:
        variable: the environment variable of one of nnU-Net's folders.
        dataset: full name.

    Raises:
        UserError: it cannot be written to.
    """
    folder = nnunet_folder(variable) / dataset
    while not folder.is_dir():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        raise UserError(f"{said(error, folder, variable)}; {fix_of(error)}; nothing was imported") from error


@contextmanager
def faults_named(variable: str) -> Iterator[None]:
    """Of what writes into one of nnU-Net's folders. Raises UserError for a full disk and a forbidden folder."""
    try:
        yield
    except OSError as error:
        if not is_of_disk(error):
            raise
        place = Path(error.filename) if error.filename else nnunet_folder(variable)
        raise UserError(
            f"{said(error, place, variable)}; {fix_of(error)}; what is done is kept, and the same command goes on"
        ) from error


def is_of_disk(error: BaseException) -> bool:
    """Whether a disk is full or a folder forbidden."""
    return isinstance(error, OSError) and error.errno in (*_FULL, *_FORBIDDEN)


def said(error: OSError, place: Path, variable: str) -> str:
    """`No space left on device: /data/raw (nnUNet_raw)`."""
    return f"{error.strerror}: {place} ({variable})"


def fix_of(error: OSError) -> str:
    """What the user does about it."""
    return "make room" if error.errno in _FULL else "make it writable"
