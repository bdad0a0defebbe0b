"""Checks before a training touches anything: device, cases, splits, earlier runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from nnunetv2_ext.architectures.patch_size import check_patch_size
from nnunetv2_ext.architectures.presets import short_name
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import write_json
from nnunetv2_ext.nnunet_folders import CONFIGURATION, nnunet_folder, read_json
from nnunetv2_ext.planning.plan_files import first_lasting_difference
from nnunetv2_ext.preprocessing.cases import is_complete

SPLITS_FILE = "splits_final.json"
_CASE_SUFFIXES = (".b2nd", ".pkl", ".npz", ".npy")
NUM_DEFAULT_FOLDS = 5
"""nnU-Net's cross-validation."""


def check_device(device: str, num_gpus: int) -> None:
    """Raises UserError where the device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("-device cuda, but torch sees no GPU on this machine: use -device cpu, or check the driver")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("-device mps, but torch sees no Apple GPU on this machine: use -device cpu")
    if num_gpus < 1:
        raise UserError(f"-num_gpus must be at least 1, not {num_gpus}")
    if num_gpus > 1 and device == "mps":
        raise UserError(f"-num_gpus {num_gpus} needs -device cuda or -device cpu, not mps")
    if num_gpus > 1 and device == "cuda" and num_gpus > torch.cuda.device_count():
        raise UserError(f"-num_gpus {num_gpus}, but torch sees {torch.cuda.device_count()} GPUs")


def parse_folds(folds: Sequence[str]) -> list[int | str]:
    """Fold numbers, or `all`. Raises UserError for anything else, or a fold given twice."""
    parsed: list[int | str] = []
    for fold in folds:
        if fold != "all" and not fold.isdigit():
            raise UserError(
                f"-f takes fold numbers (0 to 4 for nnU-Net's own split) or all, separated by spaces, not {fold!r}"
            )
        parsed.append(fold if fold == "all" else int(fold))
    if len(set(parsed)) != len(parsed):
        raise UserError(f"-f names a fold twice: {' '.join(folds)}")
    return parsed


def check_cases(
    folder: Path, dataset: str, plan: Mapping[str, Any], dataset_json: Mapping[str, Any], folds: Sequence[int | str]
) -> list[str]:
    """Refuse to train on an incomplete folder of cases, or a fold that the split does not have.

    nnU-Net freezes `splits_final.json` from whatever cases exist at the first training, and makes up a random split
    for a fold that is not in it.

    Args:
        folder: the dataset's preprocessed folder.
        dataset: full name.
        plan: a ptPlan.
        dataset_json: the dataset's description.
        folds: from `parse_folds`.

    Returns:
        The names of all cases.

    Raises:
        UserError: says which cases or folds are missing, and what to run.
    """
    data_folder = folder / plan["configurations"][CONFIGURATION]["data_identifier"]
    cases = _expected_cases(folder, dataset, dataset_json)
    missing = [case for case in cases if not is_complete(data_folder, case)]
    if not cases or missing:
        what = f"{len(missing)} of {len(cases)} cases ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
        raise UserError(
            f"{data_folder} lacks {what if missing else 'its cases'}: run the command that planned them "
            "(nnUNetv2_preprocess_like_nnssl or nnUNetv2_plan_like_dynamic) without --no_pp, which makes those that "
            "are missing"
        )
    if strange := [p.name for p in data_folder.iterdir() if p.is_file() and p.suffix not in _CASE_SUFFIXES]:
        raise UserError(f"{data_folder} holds a file that is no case, which nnU-Net refuses: move {strange[0]} away")
    numbers = [f for f in folds if isinstance(f, int)]
    if not (folder / SPLITS_FILE).is_file():
        if numbers and len(cases) < NUM_DEFAULT_FOLDS:
            raise UserError(
                f"{dataset} has {len(cases)} training cases; nnU-Net's {NUM_DEFAULT_FOLDS}-fold split needs at least "
                f"{NUM_DEFAULT_FOLDS}: use -f all, or write a {SPLITS_FILE} into {folder}"
            )
        splits: list[dict[str, list[str]]] = [{}] * NUM_DEFAULT_FOLDS
    else:
        splits = _read_splits(folder / SPLITS_FILE)
    for fold in numbers:
        if fold >= len(splits):
            raise UserError(f"there is no fold {fold}: the split of {dataset} has folds 0 to {len(splits) - 1}")
        absent = sorted({c for part in splits[fold].values() for c in part if not is_complete(data_folder, c)})
        if absent:
            raise UserError(
                f"{folder / SPLITS_FILE} names cases in fold {fold} that are not in {data_folder}: "
                f"{', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}"
            )
    return cases


def ensure_splits(folder: Path, data_folder: Path, folds: Sequence[int | str]) -> None:
    """Write nnU-Net's split where there is none yet, whole or not at all.

    Its trainer would do the same, at the same moment in each of several folds that begin together.

    Args:
        folder: the dataset's preprocessed folder.
        data_folder: the plan's cases in it.
        folds: from `parse_folds`; `all` needs no split.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    path = folder / SPLITS_FILE
    if not path.is_file() and any(isinstance(fold, int) for fold in folds):
        cases = sorted(infer_dataset_class(str(data_folder)).get_identifiers(str(data_folder)))
        write_json(path, generate_crossval_split(cases))


def check_plan(plan: Mapping[str, Any]) -> None:
    """Refuse a plan that was edited to what its network cannot train with.

    Args:
        plan: a ptPlan.

    Raises:
        UserError: names the entry: batch size, patch size, kernel sizes.
    """
    configuration = plan["configurations"][CONFIGURATION]
    batch_size = configuration.get("batch_size")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size of the plan is {batch_size}, and must be a whole number of at least 1")
    architecture = configuration["architecture"]
    check_patch_size(architecture, configuration["patch_size"], short_name(architecture["network_class_name"]))
    kernels = architecture["arch_kwargs"].get("kernel_sizes") or []
    if even := [k for k in kernels if any(size % 2 == 0 for size in (k if isinstance(k, list) else [k]))]:
        raise UserError(f"kernel_sizes of the plan have {even[0]}: even sizes change the image's size, use odd ones")


def check_shares(batch_size: int, batch_dice: bool, num_processes: int) -> None:
    """Refuse batch Dice with unequal shares, which nnU-Net's loss cannot exchange. Raises UserError.

    Args:
        batch_size: the plan's; where there are more processes, each has one sample.
        batch_dice: the plan's.
        num_processes: that share the batch.
    """
    if batch_dice and batch_size > num_processes and batch_size % num_processes:
        raise UserError(
            f"the plan has batch_dice, which needs equal shares, and its batch of {batch_size} cannot be shared by "
            f"{num_processes} processes: use a number of processes that divides it, or plan with another -bs"
        )


def check_results_folder(
    model_folder: Path, plan: Mapping[str, Any], folds: Sequence[int | str], *, continues: bool
) -> None:
    """Refuse to put folds of two different plans into one results folder, whose `plans.json` all folds share.

    Stock nnU-Net rebuilds every fold's network, and its preprocessing, from that one file.

    Args:
        model_folder: `TRAINER__PLANS__CONFIGURATION`.
        plan: a ptPlan.
        folds: about to be trained; unless they continue, what they hold is set aside and does not count.
        continues: whether these folds go on from their checkpoints.

    Raises:
        UserError: names the difference.
    """
    for fold in folds:
        if (path := model_folder / f"fold_{fold}").exists() and not path.is_dir():
            raise UserError(f"{path} is no folder: move it away, the fold's results go there")
    path = model_folder / "plans.json"
    trained = {p.parent.name for p in model_folder.glob("fold_*/checkpoint_*.pth")}
    if not continues:
        trained -= {f"fold_{fold}" for fold in folds}
    if not trained or not path.is_file():
        return
    if difference := first_lasting_difference(read_json(path), plan):
        raise UserError(
            f"{model_folder} holds {', '.join(sorted(trained))}, trained with another plan of this name: it differs "
            f"in {difference}; plan under another name (-n), or move that folder away"
        )


def set_aside_previous_run(fold_folder: Path) -> Path | None:
    """Rename a fold's folder that holds checkpoints, so that a new training does not overwrite them.

    The new name does not start with `fold_`: stock nnU-Net takes every such folder with a number at its end for a fold.

    Returns:
        Where the earlier run is now, or None if there was none.
    """
    if not any(fold_folder.glob("checkpoint_*.pth")):
        return None
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    previous = fold_folder.with_name(f"previous_{fold_folder.name}_{stamp}")
    fold_folder.rename(previous)
    return previous


def _expected_cases(folder: Path, dataset: str, dataset_json: Mapping[str, Any]) -> list[str]:
    """The dataset's training cases: from the raw data where it is, else from the labels kept for validation."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    try:
        raw = nnunet_folder("nnUNet_raw") / dataset
    except UserError:
        raw = None
    if raw is not None and (raw / "dataset.json").is_file():
        return sorted(get_filenames_of_train_images_and_targets(str(raw), read_json(raw / "dataset.json")))
    ending = dataset_json["file_ending"]
    return sorted(p.name.removesuffix(ending) for p in (folder / "gt_segmentations").glob(f"*{ending}"))


def _read_splits(path: Path) -> list[dict[str, list[str]]]:
    import json

    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        return [{"train": list(s["train"]), "val": list(s["val"])} for s in splits]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a split as nnU-Net writes it (a list of train and val lists)") from error
