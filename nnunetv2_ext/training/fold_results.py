"""What a finished fold says of itself: its validation, its log, its recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_ext.checkpoints.contents import find_weights
from nnunetv2_ext.checkpoints.loading import load_as_data
from nnunetv2_ext.checkpoints.nnunet_models import DATASET_FILE
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import read_json
from nnunetv2_ext.training.fold_records import FINETUNING_FILE

if TYPE_CHECKING:
    import torch

CHECKPOINT_FILE, SUMMARY_FILE = "checkpoint_final.pth", "validation/summary.json"
_STATISTICS = ("running_mean", "running_var")
"""What batch normalisation keeps beside its parameters."""
_UNREADABLE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class FoldResult:
    """One finished fold.

    Attributes:
        fold: a number, or `all`.
        recipe: the recipe's name; the trainer's name where there is no recipe.
        dice: of the validation, by label name; NaN for a class that is in no case.
        epochs: how many were trained.
        hours: the sum of the epochs' durations.
        trainable_parameters: how many numbers the optimizer changes.
        ema_dice: nnU-Net's moving average of the pseudo Dice, by epoch.
        val_losses: the validation loss, by epoch.
    """

    fold: str
    recipe: str
    dice: Mapping[str, float]
    epochs: int
    hours: float
    trainable_parameters: int
    ema_dice: Sequence[float]
    val_losses: Sequence[float]

    @property
    def mean_dice(self) -> float:
        """Over the classes that are in the validation cases; NaN where none is."""
        return mean_of(list(self.dice.values()))


def read_fold(folder: Path, trainer: str) -> FoldResult:
    """What a finished fold's validation, checkpoint and `finetuning.json` say; no weight is read.

    Raises:
        UserError: one of the files is missing (`finetuning.json` may be) or damaged.
    """
    dice = _validation_dice(folder / SUMMARY_FILE, folder.parent / DATASET_FILE)
    path = folder / CHECKPOINT_FILE
    content = load_as_data(path)
    try:
        log = content["logging"]
        columns = ("ema_fg_dice", "val_losses", "epoch_start_timestamps", "epoch_end_timestamps")
        ema_dice, losses, starts, ends = (np.array(log[name], dtype=float).ravel() for name in columns)
        hours = float((ends - starts[: len(ends)]).sum() / 3600)
    except _UNREADABLE as error:
        raise UserError(f"'{path}' has no log of nnU-Net's ({type(error).__name__}: {error})") from error
    if not len(ends):
        raise UserError(f"'{path}' has a log of no epochs")
    recipe, parameters = _recipe_and_parameters(folder / FINETUNING_FILE)
    return FoldResult(
        fold=folder.name.removeprefix("fold_"),
        recipe=recipe or trainer,
        dice=dice,
        epochs=len(ends),
        hours=hours,
        trainable_parameters=num_parameters(find_weights(content, path)) if parameters is None else parameters,
        ema_dice=ema_dice.tolist(),
        val_losses=losses.tolist(),
    )


def _recipe_and_parameters(path: Path) -> tuple[str | None, int | None]:
    """The recipe's name and the number of trainable parameters; None for what stock nnU-Net does not write."""
    if not path.is_file():
        return None, None
    records = read_json(path)
    recipe, parameters = records.get("recipe"), records.get("trainable_parameters")
    if parameters is not None and not isinstance(parameters, int):
        raise UserError(f"{path}: trainable_parameters is {parameters!r}, not a number")
    name = recipe.get("name") if isinstance(recipe, Mapping) else None
    return (None if name is None else str(name)), parameters


def _validation_dice(summary: Path, dataset: Path) -> dict[str, float]:
    """The Dice of nnU-Net's summary by label name; labels that `dataset.json` does not name go by their numbers."""
    labels = read_json(dataset).get("labels") if dataset.is_file() else None
    names: dict[tuple[int, ...], str] = {}
    for name, values in (labels if isinstance(labels, Mapping) else {}).items():
        names.setdefault(_numbers(values), name)
    try:
        means = read_json(summary)["mean"]
        dice = {names.get(_numbers(key), key): float(means[key]["Dice"]) for key in means if key != "0"}
    except _UNREADABLE as error:
        raise UserError(f"{summary} is no summary of nnU-Net's ({type(error).__name__}: {error})") from error
    if not dice:
        raise UserError(f"{summary} has no classes")
    order = list(names.values())
    return dict(sorted(dice.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _numbers(label: Any) -> tuple[int, ...]:
    """`(1,)` for `1` and `"1"`, `(1, 2)` for the region `[1, 2]` and `"(1, 2)"`."""
    return tuple(int(n) for n in re.findall(r"\b\d+\b", str(label)))


def num_parameters(weights: Mapping[str, torch.Tensor]) -> int:
    """How many numbers a network's parameters have; those under several names are counted once."""
    sizes = {
        (tensor.data_ptr(), tensor.numel()): tensor.numel()
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not name.endswith(_STATISTICS)
    }
    return sum(sizes.values())


def mean_of(values: Sequence[float]) -> float:
    """Without NaN; NaN where there is nothing else."""
    finite = [value for value in values if not np.isnan(value)]
    return float(np.mean(finite)) if finite else float("nan")
