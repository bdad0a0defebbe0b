"""Two names, one plan: writing, finding and checking the two files of a ptPlan."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_ext.architectures.presets import downstream_architecture
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import write_json
from nnunetv2_ext.nnunet_folders import CONFIGURATION, read_json
from nnunetv2_ext.planning.modes import no_resampling_functions
from nnunetv2_ext.planning.names import inner_plans_name


def write_plan(folder: Path, stem: str, plan: Mapping[str, Any]) -> list[Path]:
    """Write the plan under its inner name and, last, under its long name `stem`. Each file is whole or absent."""
    paths = [folder / f"{inner_plans_name(stem)}.json", folder / f"{stem}.json"]
    for path in dict.fromkeys(paths):
        write_json(path, plan)
    return paths


def read_plan(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """Read a plan by either of its names, as stock nnU-Net can use it.

    Plans of the nnssl fork (long name only, an architecture by name, a spacing of None) are completed in memory.

    Args:
        folder: the dataset's preprocessed folder.
        name: with or without `.json`; the long name or the inner one.

    Returns:
        The plan, its `plans_name` being the inner name, and the long name (the inner one where there is no other).

    Raises:
        UserError: no such plan; it is no ptPlan; its two files differ (someone edited one of them).
    """
    stem = Path(name).name.removesuffix(".json")
    inner = inner_plans_name(stem)
    twins = sorted(p for p in folder.glob("ptPlans*.json") if inner_plans_name(p.stem) == inner)
    if not twins:
        if (folder / f"{stem}.json").is_file():
            raise UserError(
                f"{stem} (-p) is nnU-Net's own plan: nnUNetv2_preprocess_like_nnssl or "
                "nnUNetv2_plan_like_dynamic makes one from it"
            )
        there = sorted(p.stem for p in folder.glob("ptPlans*__*.json"))
        hint = f"; there are {', '.join(there)}" if there else "; nnUNetv2_preprocess_like_nnssl makes one"
        raise UserError(f"there is no plan {stem} (-p) in {folder}{hint}")
    plans = {path: completed(_read_pt_plan(path)) for path in twins}
    (path, plan), *others = plans.items()
    for other_path, other in others:
        if difference := first_difference(plan, other):
            raise UserError(
                f"{path.name} and {other_path.name} are two names of one plan but differ in {difference}: "
                f"copy the one that you edited over the other (both in {folder})"
            )
    long = next((p.stem for p in twins if p.stem != inner), inner)
    return plan, long


def _read_pt_plan(path: Path) -> dict[str, Any]:
    plan = read_json(path)
    if "pretrain_info" not in plan:
        raise UserError(f"{path} has no pretrain_info: it was not made for a pre-trained checkpoint")
    if CONFIGURATION not in plan.get("configurations", {}):
        raise UserError(f"{path} has no configuration {CONFIGURATION}")
    return plan


def completed(plan_as_read: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with an inner name without `__`, a full class path for its network, and a numeric spacing.

    Networks are looked up like those of checkpoints: stock nnU-Net would import whatever class a plan names. A Primus
    gets the configuration's patch size for its input shape, so that one number is enough to edit.

    Raises:
        UserError: a network that is not known.
    """
    plan: dict[str, Any] = copy.deepcopy(dict(plan_as_read))
    plan["plans_name"] = inner_plans_name(str(plan.get("plans_name", "")))
    for configuration in plan.get("configurations", {}).values():
        architecture = configuration.get("architecture", {})
        if "network_class_name" in architecture:
            configuration["architecture"] = downstream_architecture(
                architecture["network_class_name"], architecture.get("arch_kwargs"), configuration["patch_size"]
            )
        spacing = configuration.get("spacing")
        if "patch_size" in configuration and (spacing is None or None in spacing):
            configuration["spacing"] = list(plan["original_median_spacing_after_transp"])
            configuration |= no_resampling_functions()
    return plan


def first_difference(a: Any, b: Any) -> str | None:
    """Where two JSON values differ first, as `configurations.3d_fullres.batch_size (2 and 4)`; None if nowhere."""
    return next(_differences(a, b), None)


def first_lasting_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """As `first_difference`, for what a trained network depends on: its architecture and how images reach it."""
    keys = ("configurations", "transpose_forward", "image_reader_writer")
    return first_difference({k: a.get(k) for k in keys}, {k: b.get(k) for k in keys})


def _differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            yield from _differences(a.get(key), b.get(key), f"{where}.{key}" if where else str(key))
    elif a != b:
        short = [str(v) if len(str(v)) < 60 else f"{str(v)[:57]}..." for v in (a, b)]
        yield f"{where} ({short[0]} and {short[1]})"
