"""`splits_final.json` in the preprocessed folder, where nnU-Net's training reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from nnunetv2_ext.datasets.splits import NUM_FOLDS, Splits, how_to_train
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import write_json
from nnunetv2_ext.nnunet_folders import preprocessed_folder

SPLITS_FILE = "splits_final.json"
PREVIOUS = "splits_final_previous.json"
"""A split that an earlier import has written, beside the one that has taken its place."""


def check_split(dataset: str, splits: Splits | None, before: Splits | None) -> None:
    """Refuse to replace a split that no import has written: trainings may have used it.

    Args:
        dataset: full name.
        splits: that the source defines.
        before: that it defined when the dataset was imported last.

    Raises:
        UserError: there is another.
    """
    path = preprocessed_folder(dataset) / SPLITS_FILE
    if splits is None or not path.is_file():
        return
    there = _read(dataset)
    if there is None or there not in (splits, before):
        raise UserError(f"{path} holds another split than the source defines: move it away, if it is not used any more")


def write_split(dataset: str, splits: Splits | None) -> None:
    """Put the source's split where it is read; one that differs, after `check_split`, is kept as `PREVIOUS`."""
    path = preprocessed_folder(dataset) / SPLITS_FILE
    if splits is None or (path.is_file() and _read(dataset) == splits):
        return
    if path.is_file():
        os.replace(path, path.with_name(PREVIOUS))
        print(f"{path} is another than before, which is kept as {PREVIOUS}: train all folds anew")
    write_json(path, splits)


def folds_line(dataset: str, splits: Splits | None, num_cases: int) -> str | None:
    """With which folds to train; None where nnU-Net makes them all itself, or the user has written them."""
    path = preprocessed_folder(dataset) / SPLITS_FILE
    if splits is None and (path.is_file() or num_cases >= NUM_FOLDS):
        return None
    return f"{'folds' if splits is None else path}: {how_to_train(splits, num_cases)}"


def remark_on_split(dataset: str, splits: Splits | None, cases: Sequence[str]) -> None:
    """Say which cases a split that is there does not know, where the source defines none: they are in no fold."""
    path = preprocessed_folder(dataset) / SPLITS_FILE
    if splits is not None or not path.is_file():
        return
    try:
        known = {name for fold in _read(dataset) for part in fold.values() for name in part}
    except (AttributeError, TypeError):  # no split at all
        known = set()
    if absent := sorted(set(cases) - known):
        print(f"{path} does not name {absent[0]} ({len(absent)} such cases): move it away, and nnU-Net makes another")


def _read(dataset: str) -> Any:
    """What the file holds; None for what is no JSON."""
    try:
        return json.loads((preprocessed_folder(dataset) / SPLITS_FILE).read_text(encoding="utf-8"))
    except ValueError:
        return None
