"""Whether a fold is finished, and whether a checkpoint is of the training that is to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_ext.checkpoints.loading import load_as_data
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.plan_files import first_difference, first_lasting_difference
from nnunetv2_ext.training.checkpoint_files import CONTINUED_FROM, FINAL
from nnunetv2_ext.training.fold_records import stored_recipe

_DATASET_KEYS = ("labels", "regions_class_order", "channel_names", "modality", "file_ending")
"""Of `dataset.json`: what a network depends on. Cases may come and go."""


def is_finished(fold_folder: Path, recipe: Mapping[str, Any], *, probabilities: bool) -> bool:
    """Whether nothing is left to do: trained with this recipe, and validated.

    Args:
        fold_folder: `fold_X`.
        recipe: resolved, as a dict.
        probabilities: whether the validation's are wanted (`--npz`).
    """
    final = fold_folder / FINAL
    if not final.is_file():
        return False
    try:
        content = load_as_data(final)
        # the fold's own record is ahead of it while a finished training is being extended
        trained_with = content["finetuning"]["recipe"]
        ending = content["init_args"]["dataset_json"]["file_ending"]
    except (UserError, KeyError, TypeError):
        return False
    return trained_with == recipe and _is_validated(fold_folder / "validation", ending, probabilities=probabilities)


def _is_validated(validation: Path, ending: str, *, probabilities: bool) -> bool:
    try:
        summary = json.loads((validation / "summary.json").read_text(encoding="utf-8"))
        cases = [Path(case["prediction_file"]).name.removesuffix(ending) for case in summary["metric_per_case"]]
    except (OSError, ValueError, KeyError, TypeError):  # none, or cut off
        return False
    # nnU-Net writes a case's .pkl when its .npz is whole
    return not probabilities or all((validation / f"{c}{e}").is_file() for c in cases for e in (".npz", ".pkl"))


def recipe_to_continue(fold_folder: Path) -> Mapping[str, Any] | None:
    """The recipe that a fold was started with: its own record's, or, if that has gone, its newest checkpoint's."""
    stored = stored_recipe(fold_folder)
    for path in (fold_folder / name for name in CONTINUED_FROM) if stored is None else ():
        try:
            return dict(load_as_data(path)["finetuning"]["recipe"])
        except (UserError, KeyError, TypeError):  # none, damaged, or of stock nnU-Net
            continue
    return stored


def check_same_training(fold_folder: Path, plan: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> None:
    """Refuse to go on with another plan, architecture or dataset than a fold's checkpoints are of.

    Args:
        fold_folder: `fold_X`; the newest checkpoint that can be opened counts.
        plan: a ptPlan.
        dataset_json: the dataset's description.

    Raises:
        UserError: names the first difference.
    """
    for path in (fold_folder / name for name in CONTINUED_FROM):
        if not path.is_file():
            continue
        try:
            arguments = load_as_data(path)["init_args"]
            theirs, dataset = arguments["plans"], arguments["dataset_json"]
        except (UserError, KeyError, TypeError):  # damaged: reading it says so, and takes another
            continue
        names = ({"dataset": theirs.get("dataset_name")}, {"dataset": plan.get("dataset_name")})
        selected = tuple({key: d.get(key) for key in _DATASET_KEYS} for d in (dataset, dataset_json))
        if difference := (
            first_difference(*names) or first_lasting_difference(theirs, plan) or first_difference(*selected)
        ):
            raise UserError(
                f"{path} was trained differently: it and the present plan or dataset.json differ in {difference}; "
                "restore what was changed, or leave --c out to train anew (the earlier run is kept)"
            )
        return
