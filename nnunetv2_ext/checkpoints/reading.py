"""What planning and training need of a checkpoint: its adaptation plan, its citations and its (unread) weights."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.checkpoints.citations import format_citations
from nnunetv2_ext.checkpoints.contents import find_weights
from nnunetv2_ext.checkpoints.loading import load_as_data
from nnunetv2_ext.checkpoints.nnunet_models import adaptation_plan_of, model_description
from nnunetv2_ext.checkpoints.sources import CheckpointFile
from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    import torch

PLAN_KEY = "nnssl_adaptation_plan"
SELF_SUPERVISED, SUPERVISED, WEIGHTS = "nnssl checkpoint", "nnU-Net model", "weights"
"""Kinds of sources: with an adaptation plan; trained by nnU-Net, with its plans; nothing but tensors."""

NEAREST = 5
"""How many of the checkpoint's names are shown where a key fits none."""

__all__ = ["PretrainedCheckpoint", "format_citations", "read_checkpoint", "read_network_weights", "read_without_plan"]


@dataclass
class PretrainedCheckpoint:
    """A pre-trained network.

    Attributes:
        file: Where it lies and came from.
        adaptation_plan: How it was pre-trained and which tensors are whose; None where the file does not say.
        trainer_name: The class that trained it, where recorded.
        citations: What to cite, as in the file (see `format_citations`); empty where it has none.
        network_weights: Tensors by name, on the CPU, memory-mapped where the file's format allows.
        kind: `SELF_SUPERVISED`, `SUPERVISED` or `WEIGHTS`.
        dataset_json: Of an nnU-Net model, the description of the dataset that it was trained on.
    """

    file: CheckpointFile
    adaptation_plan: AdaptationPlan | None
    trainer_name: str | None
    citations: list[dict[str, Any]]
    network_weights: Mapping[str, torch.Tensor]
    kind: str = SELF_SUPERVISED
    dataset_json: Mapping[str, Any] | None = None

    @property
    def plan(self) -> AdaptationPlan:
        """The adaptation plan. Raises UserError where there is none."""
        if self.adaptation_plan is None:
            raise UserError(
                f"'{self.file.path}' carries no '{PLAN_KEY}' and no adaptation_plan.json lies beside it: say which "
                "network it is with -arch (a name or a plan.json), keep the dataset's own with "
                "nnUNetv2_plan_like_dynamic, or write a whole checkpoint with nnUNetv2_convert_pretrained_checkpoint."
            )
        return self.adaptation_plan


def read_checkpoint(file: CheckpointFile) -> PretrainedCheckpoint:
    """Open a checkpoint of any kind and check that what it says of itself fits its weights.

    An adaptation plan comes from the checkpoint itself, else from the `adaptation_plan.json` beside it. Where both
    exist and differ, the checkpoint's own is taken, with a warning: the training wrote it together with the weights,
    while the file beside it may have been edited, or belong to another checkpoint of the same folder. An nnU-Net
    model's plan is made from its `plans.json`, or from the plans in its checkpoint.

    Raises:
        UserError: The file is missing, not a checkpoint, damaged, or would execute code; its plan is incomplete, or
            points at tensors that are not there; an nnU-Net model is 2D.
    """
    content = _load(file)
    weights = find_weights(content, file.path)
    if PLAN_KEY in content or file.adaptation_plan_path is not None:
        plan = _adaptation_plan(content, file)
        check_keys(plan, weights, file.path)
        return _checkpoint(file, content, weights, plan, SELF_SUPERVISED)
    model = model_description(content, file.model_folder)
    if model is None:
        return _checkpoint(file, content, weights, None, WEIGHTS)
    plan = _parse(adaptation_plan_of(model, weights, file.path), file.path)
    check_keys(plan, weights, file.path)
    return _checkpoint(file, content, weights, plan, SUPERVISED, model.dataset_json)


def read_without_plan(file: CheckpointFile) -> tuple[PretrainedCheckpoint, Mapping[str, Any]]:
    """Open a checkpoint whose plan may be incomplete, or is to be replaced.

    Returns:
        The checkpoint without its plan, and the plan as it stands in the file (empty where there is none).

    Raises:
        UserError: The file is missing, not a checkpoint, damaged, or would execute code.
    """
    content = _load(file)
    raw = content.get(PLAN_KEY) if isinstance(content, Mapping) else None
    if raw is None:
        raw = _plan_beside(file)
    checkpoint = _checkpoint(file, content, find_weights(content, file.path), None, WEIGHTS)
    return checkpoint, raw if isinstance(raw, Mapping) else {}


def read_network_weights(file: CheckpointFile) -> Mapping[str, torch.Tensor]:
    """The tensors alone, by name, memory-mapped where the format allows: training has the rest from its plan.

    Raises:
        UserError: The file is missing, not a checkpoint, damaged, or would execute code.
    """
    return find_weights(_load(file), file.path)


def _load(file: CheckpointFile) -> Any:
    """The file's content; a fault names what the user gave too, where that is a zip and the file lies in the cache."""
    try:
        return load_as_data(file.path)
    except UserError as error:
        if file.source.endswith(".zip") and file.source not in str(error):
            raise UserError(f"'{file.source}', unpacked: {error}") from error
        raise


def _checkpoint(
    file: CheckpointFile,
    content: Mapping[Any, Any],
    weights: Mapping[str, torch.Tensor],
    plan: AdaptationPlan | None,
    kind: str,
    dataset_json: Mapping[str, Any] | None = None,
) -> PretrainedCheckpoint:
    trainer_name = content.get("trainer_name") or (plan.raw.get("trainer_name") if plan else None)
    citations = content.get("citations")
    entries = citations if isinstance(citations, (list, tuple)) else ()
    return PretrainedCheckpoint(
        file=file,
        adaptation_plan=plan,
        trainer_name=trainer_name if isinstance(trainer_name, str) else None,
        citations=[dict(entry) for entry in entries if isinstance(entry, Mapping)],
        network_weights=weights,
        kind=kind,
        dataset_json=dataset_json,
    )


def _adaptation_plan(content: Mapping[Any, Any], file: CheckpointFile) -> AdaptationPlan:
    embedded = content.get(PLAN_KEY)
    beside = _plan_beside(file)
    if embedded is None:
        return _parse(beside, file.adaptation_plan_path)
    plan = _parse(embedded, file.path)
    if beside is not None:
        _warn_if_different(plan, beside, file)
    return plan


def _plan_beside(file: CheckpointFile) -> Any:
    path = file.adaptation_plan_path
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}): make it readable, or remove it.") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON: download it again, or remove it.") from error


def _parse(raw: Any, path: Path | None) -> AdaptationPlan:
    try:
        return AdaptationPlan.from_dict(raw)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error


def _warn_if_different(plan: AdaptationPlan, beside: Any, file: CheckpointFile) -> None:
    try:
        other = AdaptationPlan.from_dict(beside)
    except UserError:
        different = ["what it says"]
    else:
        names = [entry.name for entry in fields(AdaptationPlan) if entry.name != "raw"]
        different = [name for name in names if getattr(plan, name) != getattr(other, name)]
    if different:
        warnings.warn(
            f"'{file.adaptation_plan_path}' differs from the plan inside the checkpoint ({', '.join(different)}): the "
            "one inside is used.",
            stacklevel=4,
        )


def check_keys(plan: AdaptationPlan, weights: Iterable[str], path: Path) -> None:
    """Each key must be a tensor's name or the beginning of one (`encoder.stem` of `encoder.stem.convs...`)."""
    prefixes = {name[:end] for name in weights for end in [*_dots(name), len(name)]}
    keys = [("key_to_encoder", plan.key_to_encoder), ("key_to_stem", plan.key_to_stem)]
    keys += [("keys_to_in_proj", key) for key in plan.keys_to_in_proj]
    keys += [("key_to_lpe", plan.key_to_lpe)] if plan.key_to_lpe is not None else []
    for key, value in keys:
        if value in prefixes:
            continue
        near = ", ".join(f"'{name}'" for name in _nearest(value, prefixes))
        raise UserError(
            f"'{path}': '{key}' is '{value}', but no tensor's name begins so (nearest are {near}): take another "
            "checkpoint or architecture, or give the right key to nnUNetv2_convert_pretrained_checkpoint."
        )


def _dots(name: str) -> list[int]:
    return [index for index, character in enumerate(name) if character == "."]


def _nearest(value: str, prefixes: Iterable[str]) -> list[str]:
    """The same name under another parent (`encoder.eva` for `eva`), sisters of it, and those that are spelt alike."""
    candidates = sorted(prefixes, key=lambda prefix: (prefix.count("."), len(prefix), prefix))
    parent = value.rpartition(".")[0]
    moved = [prefix for prefix in candidates if prefix.endswith(f".{value}") or value.endswith(f".{prefix}")]
    sisters = [prefix for prefix in candidates if parent and prefix.rpartition(".")[0] == parent]
    alike = (difflib.get_close_matches(value, names, n=NEAREST, cutoff=0.0) for names in (sisters, candidates))
    return list(dict.fromkeys([*moved, *(name for names in alike for name in names)]))[:NEAREST]
