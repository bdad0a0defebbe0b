"""The dataset's own nnU-Net plan, which a ptPlans file starts from."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION, dataset_id, preprocessed_folder, raw_folder, read_json

_NUM_WORKERS = "nnUNet_n_proc_DA"

BASE_PLANS = (
    "nnUNetPlans",
    "nnUNetResEncUNetPlans",
    "nnUNetResEncUNetMPlans",
    "nnUNetResEncUNetLPlans",
    "nnUNetResEncUNetXLPlans",
)
"""Base plans in order of preference. Only preprocessing and dataset properties are taken from them."""


def has_base_plan(dataset: str) -> bool:
    """Whether the dataset has any of `BASE_PLANS`."""
    return any((preprocessed_folder(dataset) / f"{name}.json").is_file() for name in BASE_PLANS)


def find_base_plan(dataset: str, name: str | None = None, *, num_processes: int, show_progress: bool) -> dict[str, Any]:
    """Read the dataset's plan; where there is none, run nnU-Net's fingerprint extraction and planner first.

    Args:
        dataset: full name.
        name: `-pl`; None for the first of `BASE_PLANS` that exists.
        num_processes: for the fingerprint.
        show_progress: show nnU-Net's progress bar.

    Raises:
        UserError: the named plan does not exist, is a ptPlan, or has no `3d_fullres` (a 2D dataset); nnU-Net could not
            plan the dataset.
    """
    folder = preprocessed_folder(dataset)
    if name is not None and not (folder / f"{name}.json").is_file():
        there = sorted(p.stem for p in folder.glob("*Plans*.json") if not p.name.startswith("ptPlans"))
        there = [stem for stem in there if not stem.endswith(".settings")]
        raise UserError(
            f"there is no plan {name} (-pl) in {folder}" + (f"; there are {', '.join(there)}" if there else "")
        )
    found = name or next((n for n in BASE_PLANS if (folder / f"{n}.json").is_file()), None)
    if found is None:
        raw_folder(dataset)
        print(f"{dataset} has no nnU-Net plan yet: extracting its fingerprint and planning first")
        _plan_with_nnunet(dataset, num_processes, show_progress)
        found = BASE_PLANS[0]
    plan = read_json(folder / f"{found}.json")
    if "pretrain_info" in plan:
        raise UserError(
            f"{found} (-pl) was made for a pre-trained checkpoint, with a spacing and resampling of its own: "
            "start from one of nnU-Net's own plans"
        )
    if CONFIGURATION not in plan.get("configurations", {}):
        raise UserError(
            f"{dataset} has no {CONFIGURATION} configuration in {folder / f'{found}.json'} (a 2D dataset?): "
            "pre-trained 3D networks need 3D images"
        )
    return plan


def _plan_with_nnunet(dataset: str, num_processes: int, show_progress: bool) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    folder = Path(preprocessed_folder(dataset))
    identifier = dataset_id(dataset)
    bar = show_progress and sys.stderr.isatty()
    with _single_process_augmentation_hidden():
        fresh = not (folder / "dataset_fingerprint.json").is_file()
        try:
            extract_fingerprints(
                [identifier], num_processes=num_processes, clean=fresh, verbose=False, show_progress_bar=bar
            )
            plan_experiments([identifier])
        except Exception as error:  # of many kinds, for images that nnU-Net cannot read or does not like
            raise UserError(f"nnU-Net could not plan {dataset}: {type(error).__name__}: {error}") from error


@contextmanager
def _single_process_augmentation_hidden() -> Iterator[None]:
    """nnU-Net's planner takes `nnUNet_n_proc_DA` for a number of threads and crashes on 0, a valid training setting."""
    value = os.environ.get(_NUM_WORKERS)
    if value == "0":
        os.environ[_NUM_WORKERS] = "1"
    try:
        yield
    finally:
        if value is not None:
            os.environ[_NUM_WORKERS] = value
