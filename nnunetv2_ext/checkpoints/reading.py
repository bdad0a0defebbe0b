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
from nnunetv2_ext.checkpoints.loading import load_as_data
from nnunetv2_ext.checkpoints.sources import CheckpointFile
from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    import torch

PLAN_KEY = "nnssl_adaptation_plan"
WEIGHTS_KEY = "network_weights"

__all__ = ["PretrainedCheckpoint", "format_citations", "read_checkpoint", "read_network_weights"]


@dataclass
class PretrainedCheckpoint:
    """A checkpoint as nnssl writes it.

    Attributes:
        file: Where it lies and came from.
        adaptation_plan: How it was pre-trained and which tensors are whose.
        trainer_name: nnssl's class that trained it, where recorded.
        citations: What to cite, as in the file (see `format_citations`); empty where it has none.
        network_weights: Tensors by name, on the CPU, memory-mapped where the file's format allows.
    """

    file: CheckpointFile
    adaptation_plan: AdaptationPlan
    trainer_name: str | None
    citations: list[dict[str, Any]]
    network_weights: Mapping[str, torch.Tensor]


def read_checkpoint(file: CheckpointFile) -> PretrainedCheckpoint:
    """Open a checkpoint and check that its adaptation plan fits its weights.

    The plan comes from the checkpoint itself, else from the `adaptation_plan.json` beside it. Where both exist and
    differ, the checkpoint's own is taken, with a warning: the training wrote it together with the weights, while the
    file beside it may have been edited, or belong to another checkpoint of the same folder.

    Raises:
        UserError: The file is missing, not a checkpoint, damaged, or would execute code; there is no plan, or one that
            points at tensors that are not there.
    """
    content = _load_mapping(file.path)
    weights = _network_weights(content, file.path)
    plan = _adaptation_plan(content, file)
    _check_keys(plan, weights, file.path)

    trainer_name = content.get("trainer_name") or plan.raw.get("trainer_name")
    citations = content.get("citations")
    entries = citations if isinstance(citations, (list, tuple)) else ()
    return PretrainedCheckpoint(
        file=file,
        adaptation_plan=plan,
        trainer_name=trainer_name if isinstance(trainer_name, str) else None,
        citations=[dict(entry) for entry in entries if isinstance(entry, Mapping)],
        network_weights=weights,
    )


def read_network_weights(file: CheckpointFile) -> Mapping[str, torch.Tensor]:
    """The tensors alone, by name, memory-mapped where the format allows: training has the rest from its plan.

    Raises:
        UserError: The file is missing, not a checkpoint, damaged, or would execute code.
    """
    return _network_weights(_load_mapping(file.path), file.path)


def _load_mapping(path: Path) -> Mapping[Any, Any]:
    content = load_as_data(path)
    if not isinstance(content, Mapping):
        raise UserError(f"'{path}' holds a {type(content).__name__}, no checkpoint: give a file written by nnssl.")
    return content


def _network_weights(content: Mapping[Any, Any], path: Path) -> Mapping[str, torch.Tensor]:
    import torch

    weights = content.get(WEIGHTS_KEY)
    if not isinstance(weights, Mapping) or not weights:
        keys = ", ".join(sorted(map(str, content))[:8]) or "nothing"
        raise UserError(f"'{path}' has no '{WEIGHTS_KEY}' (it has: {keys}): give a checkpoint written by nnssl.")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"'{path}' has a {type(tensor).__name__} under '{name}' in '{WEIGHTS_KEY}' where a tensor is needed: "
                "give a checkpoint written by nnssl."
            )
    return weights


def _adaptation_plan(content: Mapping[Any, Any], file: CheckpointFile) -> AdaptationPlan:
    embedded = content.get(PLAN_KEY)
    beside = _plan_beside(file)
    if embedded is None and beside is None:
        spark = " (SparkMAE checkpoints never do)" if "spark_weights" in content else ""
        raise UserError(
            f"'{file.path}' carries no '{PLAN_KEY}'{spark} and no adaptation_plan.json lies beside it: put one there "
            "that describes its network, or take a checkpoint that has it."
        )
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


def _check_keys(plan: AdaptationPlan, weights: Iterable[str], path: Path) -> None:
    """Each key must be a tensor's name or the beginning of one (`encoder.stem` of `encoder.stem.convs...`)."""
    prefixes = {name[:end] for name in weights for end in [*_dots(name), len(name)]}
    keys = [("key_to_encoder", plan.key_to_encoder), ("key_to_stem", plan.key_to_stem)]
    keys += [("keys_to_in_proj", key) for key in plan.keys_to_in_proj]
    keys += [("key_to_lpe", plan.key_to_lpe)] if plan.key_to_lpe is not None else []
    for key, value in keys:
        if value in prefixes:
            continue
        near = _nearest(value, prefixes)
        raise UserError(
            f"'{path}': '{key}' of its adaptation plan is '{value}', but no tensor in '{WEIGHTS_KEY}' begins so"
            f"{f' (there is {near!r})' if near else ''}: correct the plan, or take another checkpoint."
        )


def _dots(name: str) -> list[int]:
    return [index for index, character in enumerate(name) if character == "."]


def _nearest(value: str, prefixes: Iterable[str]) -> str | None:
    """The same name under another parent (`encoder.eva` for `eva`), a sister of it, or one that is spelt alike."""
    candidates = sorted(prefixes, key=lambda prefix: (prefix.count("."), len(prefix), prefix))
    for prefix in candidates:
        if prefix.endswith(f".{value}") or value.endswith(f".{prefix}"):
            return prefix
    parent = value.rpartition(".")[0]
    sisters = [prefix for prefix in candidates if parent and prefix.rpartition(".")[0] == parent]
    if sisters:
        return difflib.get_close_matches(value, sisters, n=1, cutoff=0.0)[0]
    return next(iter(difflib.get_close_matches(value, candidates, n=1, cutoff=0.6)), None)
