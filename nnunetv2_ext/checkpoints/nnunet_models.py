"""Trained models of nnU-Net v2 as pre-trained checkpoints: the folder, one of its checkpoints, what its plans say."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.checkpoints.adaptation_plan import NOT_RESAMPLED
from nnunetv2_ext.checkpoints.describe import check_three_dimensions, describe
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import NO_RESAMPLING, read_json

if TYPE_CHECKING:
    import torch

PLANS_FILE, DATASET_FILE = "plans.json", "dataset.json"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
"""A fold's checkpoints, in order of preference."""
_DECISIVE = ("architecture", "patch_size")
_FOLD = re.compile(r"fold_(\d+|all)")


@dataclass(frozen=True)
class ModelDescription:
    """What an nnU-Net model says about itself.

    Attributes:
        plans: nnU-Net's plans.
        dataset_json: the dataset's description.
        configuration: the name of the plans' configuration that was trained.
    """

    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    configuration: str


def is_model_folder(folder: Path) -> bool:
    """Whether a folder looks like `TRAINER__PLANS__CONFIGURATION`, with plans or folds in it."""
    return (folder / PLANS_FILE).is_file() or any(_FOLD.fullmatch(p.name) for p in folder.iterdir() if p.is_dir())


def model_folders_in(folder: Path) -> list[Path]:
    """Model folders one level below (in `nnUNet_results/DATASET`)."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and (p / PLANS_FILE).is_file())


def checkpoint_in(folder: Path) -> Path:
    """The checkpoint of a model folder: of `fold_all` or the first fold, the final one if there is one.

    Raises:
        UserError: no `plans.json`, no `dataset.json`, or no checkpoint.
    """
    for needed in (PLANS_FILE, DATASET_FILE):
        if not (folder / needed).is_file():
            raise UserError(
                f"The folder '{folder}' has folds of an nnU-Net model but no {needed}: copy it from the model's "
                "results folder, or give one of its checkpoint files."
            )
    folds = [(match[1], p) for p in folder.iterdir() if p.is_dir() and (match := _FOLD.fullmatch(p.name))]
    for _, fold in sorted(folds, key=lambda f: (f[0] != "all", int(f[0]) if f[0].isdecimal() else -1)):
        if checkpoint := checkpoint_in_fold(fold):
            return checkpoint
    raise UserError(f"The nnU-Net model '{folder}' has no checkpoint in its folds: train it, or give another model.")


def checkpoint_in_fold(folder: Path) -> Path | None:
    """The checkpoint of a model's fold folder (`fold_0`), the final one if there is one; None for other folders."""
    if not _FOLD.fullmatch(folder.name):
        return None
    return next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)


def model_folder_of(checkpoint: Path) -> Path | None:
    """The model folder that a checkpoint lies in (two levels up), if it is one."""
    folder = checkpoint.parent.parent
    return folder if _FOLD.fullmatch(checkpoint.parent.name) and (folder / PLANS_FILE).is_file() else None


def model_description(content: Mapping[str, Any], folder: Path | None) -> ModelDescription | None:
    """What a model's folder or, without one, its checkpoint says of it; None for a file that is no nnU-Net model.

    Raises:
        UserError: the folder's files are not valid, or do not say which configuration was trained.
    """
    stored = content.get("init_args")
    stored = stored if isinstance(stored, Mapping) else {}
    plans, dataset_json = stored.get("plans"), stored.get("dataset_json")
    configuration = stored.get("configuration")
    if folder is not None:
        plans = read_json(folder / PLANS_FILE)
        if (folder / DATASET_FILE).is_file():
            dataset_json = read_json(folder / DATASET_FILE)
        named = folder.name.rpartition("__")[2]
        if named in plans.get("configurations", {}):
            configuration = named
        own = stored.get("plans")
        if isinstance(own, Mapping) and (different := _difference(plans, own, configuration)):
            warnings.warn(
                f"'{folder / PLANS_FILE}' differs from the plans inside the checkpoint ({different}): those inside, "
                "which were written with the weights, are used.",
                stacklevel=2,
            )
            plans = own
    plans = plans if isinstance(plans, Mapping) else {}
    known = plans.get("configurations")
    if isinstance(known, Mapping) and isinstance(configuration, str) and configuration in known:
        if isinstance(dataset_json, Mapping):
            return ModelDescription(plans, dataset_json, configuration)
        missing = f"no {DATASET_FILE}: copy it from the model's results folder"
    else:
        missing = f"a name that ends in no configuration of its {PLANS_FILE}: call it TRAINER__PLANS__CONFIGURATION"
    if folder is None:
        return None
    raise UserError(f"The nnU-Net model '{folder}' has {missing}.")


def _difference(plans: Mapping[str, Any], own: Mapping[str, Any], configuration: Any) -> str:
    """Which of the entries that decide how weights are read differ between two plans of one model."""
    both = [(p.get("configurations") or {}).get(configuration) or {} for p in (plans, own)]
    texts = [{k: json.dumps(c[k], sort_keys=True, default=str) for k in _DECISIVE if k in c} for c in both]
    return ", ".join(k for k in _DECISIVE if k in texts[0] and k in texts[1] and texts[0][k] != texts[1][k])


def adaptation_plan_of(model: ModelDescription, weights: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """The adaptation plan of a trained nnU-Net model, as nnssl would have written it.

    Raises:
        UserError: a 2D model, a network that is not known, or plans that are not complete.
    """
    try:
        return _adaptation_plan_of(model, weights)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}': the model's plans do not describe its configuration {model.configuration} as nnU-Net's do "
            f"({type(error).__name__}: {error}): copy {PLANS_FILE} from the model's results folder."
        ) from error


def _adaptation_plan_of(model: ModelDescription, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(copy.deepcopy(dict(model.plans)))
    configuration = manager.get_configuration(model.configuration).configuration
    check_three_dimensions(configuration["patch_size"], f"the model ({model.configuration})")
    architecture = configuration["architecture"]
    resampled = configuration.get("resampling_fn_data") != NO_RESAMPLING
    return describe(
        weights,
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        patch_size=configuration["patch_size"],
        spacing=configuration["spacing"] if resampled else None,
        spacing_style=None if resampled else NOT_RESAMPLED,
        configuration={k: configuration.get(k) for k in ("normalization_schemes", "use_mask_for_norm")},
        origin={k: model.plans.get(k) for k in ("dataset_name", "plans_name", "transpose_forward")},
    )
