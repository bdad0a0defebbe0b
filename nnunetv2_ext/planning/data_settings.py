"""Same settings, same folder: which folder of preprocessed cases a plan uses.

The fork's data identifier has two decimals of the spacing and one letter for a normalisation. Plans that differ in
anything else that shapes the data must not share a folder, or one would redo the data under the other's training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import NO_RESAMPLING, read_json

_PLAN_KEYS = ("transpose_forward", "image_reader_writer")
_CONFIGURATION_KEYS = (
    "preprocessor_name", "normalization_schemes", "use_mask_for_norm",
    "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
)  # fmt: skip


def settings_that_shape_data(plan: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a plan that decides what a preprocessed case looks like, in JSON's types."""
    settings = {k: plan.get(k) for k in _PLAN_KEYS} | {k: configuration.get(k) for k in _CONFIGURATION_KEYS}
    if configuration.get("resampling_fn_data") != NO_RESAMPLING:
        # plans of the fork have None for no resampling
        settings["spacing"] = [None if s is None else float(s) for s in configuration.get("spacing") or []]
    if "CTNormalization" in (configuration.get("normalization_schemes") or []):
        settings["foreground_intensity_properties"] = plan.get("foreground_intensity_properties_per_channel")
    return dict(json.loads(json.dumps(settings, sort_keys=True)))


def settings_file(folder: Path, identifier: str) -> Path:
    """The bookkeeping of a folder of cases; it lies beside the folder, since nnU-Net rejects strange files in it."""
    return folder / f"{identifier}.settings.json"


def choose_data_identifier(folder: Path, identifier: str, settings: Mapping[str, Any], own_plan: str) -> str:
    """The identifier itself, or with `___` and eight hex digits where other settings have it already.

    Args:
        folder: the dataset's preprocessed folder.
        identifier: from `names.data_identifier`.
        settings: from `settings_that_shape_data`.
        own_plan: the plan's `plans_name`; files of the plan that is being written do not count.
    """
    if all(other == settings for other in _settings_in_use(folder, identifier, own_plan)):
        return identifier
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{identifier}___{digest[:8]}"


def _settings_in_use(folder: Path, identifier: str, own_plan: str) -> Iterator[dict[str, Any]]:
    recorded = settings_file(folder, identifier)
    if recorded.is_file():
        yield read_json(recorded)["settings"]
        return
    for path in sorted(folder.glob("*.json")):
        try:
            plan = read_json(path)
        except UserError:
            continue
        if "configurations" not in plan or plan.get("plans_name") == own_plan:
            continue
        for configuration in plan["configurations"].values():
            if configuration.get("data_identifier") == identifier:
                yield settings_that_shape_data(plan, configuration)
