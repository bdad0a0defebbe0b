"""Checkpoints of a fine-tuning: stock nnU-Net's format, whole or absent, and never only one good copy.

`checkpoint_latest.pth` is written under a temporary name, flushed and renamed, and the one before it stays as
`checkpoint_previous.pth`. What is read is checked first: PyTorch's reader does not notice a flipped bit.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from shutil import rmtree
from typing import Any

import numpy as np
import torch

from nnunetv2_ext.checkpoints.loading import load_as_data
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import flush_to_disk, whole_or_absent

INFERENCE_TRAINER = "nnUNetTrainer"
"""The class that rebuilds the network from the plans for stock inference, with or without this package installed."""

FINAL, LATEST, PREVIOUS, BEST = (f"checkpoint_{name}.pth" for name in ("final", "latest", "previous", "best"))
CONTINUED_FROM = (FINAL, LATEST, PREVIOUS, BEST)
"""In this order: the first that can be read; one of a training that was extended before `FINAL`, which is older."""
DAMAGED = ".damaged"
"""What is added to the name of a checkpoint that cannot be read, before another takes its place."""


@dataclass(frozen=True)
class ReadCheckpoint:
    """A checkpoint that was read.

    Attributes:
        path: its file.
        content: what nnU-Net's checkpoints hold, on the CPU.
        passed_over: newer files that could not be read, with the reasons.
    """

    path: Path
    content: dict[str, Any]
    passed_over: Mapping[Path, str]


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


def held_in_memory(value: Any) -> Any:
    """A copy of a checkpoint's content that no later step changes; its tensors are on the CPU.

    A tensor that stands in several places is copied once.
    """
    copies: dict[tuple[int, torch.dtype, torch.Size, tuple[int, ...]], torch.Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            key = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if key not in copies or not value.numel():
                copies[key] = value.detach().to("cpu", copy=True)
            return copies[key]
        if isinstance(value, dict):
            return {k: copied(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(copied(v) for v in value)
        return value

    return copied(value)


def save_whole(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name, flush it to disk and rename it: `path` is never a part of a file.

    What `checkpoint_latest.pth` was becomes `checkpoint_previous.pth` when the new one is safe.

    Raises:
        UserError: the disk is full or cannot be written to; what was there before is as it was.
    """
    try:
        with whole_or_absent(path) as temporary:
            _write(checkpoint, temporary)
            flush_to_disk(temporary)
            if path.name == LATEST and path.is_file():
                os.replace(path, path.with_name(PREVIOUS))
        flush_to_disk(path.parent)
    except OSError as error:
        kept = [name for name in CONTINUED_FROM if path.with_name(name).is_file()]
        still = f"{' and '.join(kept)} are as they were: make room, and" if kept else "make room;"
        raise UserError(
            f"{path} could not be written ({error.strerror or error}); {still} the same command with --c continues"
        ) from error


class _Remembering(io.BufferedWriter):
    """A file that remembers why it could not be written; torch's writer raises something else in place of it."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.problem = error
            raise


def _write(checkpoint: Mapping[str, Any], path: Path) -> None:
    with _Remembering(io.FileIO(path, "w")) as file:
        try:
            torch.save(dict(checkpoint), file)
        except RuntimeError as error:
            raise file.problem or error from None


def read_to_continue(folder: Path, names: tuple[str, ...] = CONTINUED_FROM) -> ReadCheckpoint | None:
    """The newest checkpoint in a fold's folder that is whole, or None if there is none at all.

    Args:
        folder: the fold's.
        names: of the files to try, in this order.

    Raises:
        UserError: there are some, and none can be read.
    """
    passed_over: dict[Path, str] = {}
    for path in _newest_first([folder / name for name in names if (folder / name).is_file()]):
        try:
            return ReadCheckpoint(path, read_training_checkpoint(path), passed_over)
        except UserError as error:
            passed_over[path] = str(error)
    if passed_over:
        raise UserError(
            f"no checkpoint in {folder} can be continued from: {'; '.join(passed_over.values())}; move the folder away "
            "to begin anew"
        )
    return None


def _newest_first(paths: list[Path]) -> list[Path]:
    """`FINAL` behind those on the way, if they are further: a training that `--set num_epochs=` has extended."""
    on_the_way = [path for path in paths if path.name in (LATEST, PREVIOUS)]
    if not on_the_way or paths[0].name != FINAL:
        return paths
    if max(map(_epochs_done, on_the_way)) <= _epochs_done(paths[0]):
        return paths
    return [*on_the_way, *(path for path in paths if path not in on_the_way)]


def _epochs_done(path: Path) -> int:
    """That a checkpoint holds; -1 where it cannot be opened."""
    try:
        return int(load_as_data(path)["current_epoch"])
    except (UserError, KeyError, TypeError, ValueError):
        return -1


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a training to continue, checked and as data; no code in it is run. Raises UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # damaged bytes lead the reader anywhere
        raise UserError(f"{path} is damaged ({str(error) or type(error).__name__})") from error
    if damaged is not None:
        raise UserError(f"{path} is damaged (the checksum of {damaged} is wrong)")
    content = load_as_data(path)
    if not isinstance(content, dict) or "network_weights" not in content:
        raise UserError(f"{path} is no checkpoint of a training")
    return content


def set_aside_damaged(paths: Mapping[Path, str], log: Callable[[str], Any]) -> None:
    """Give files that could not be read another name, so that none takes the place of a good one, and say so."""
    for path, reason in paths.items():
        path.replace(path.with_name(path.name + DAMAGED))
        log(f"{reason}: it is kept as {path.name}{DAMAGED}")


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove what a training that was killed left half-written in its folder (`prefix`: of sub-folders)."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"{prefix}*"):
        rmtree(path, ignore_errors=True)


@contextmanager
def continuing_from(path: Path) -> Iterator[None]:
    """Say in one line that what a checkpoint holds does not fit. Raises UserError."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be continued from: {reason}") from error
