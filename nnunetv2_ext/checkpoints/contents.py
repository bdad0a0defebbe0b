"""Where the weights are in what a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    import torch

WEIGHTS_KEY = "network_weights"
CONTAINERS = (WEIGHTS_KEY, "state_dict", "model_state_dict", "model", "teacher")
"""Under which key training frameworks keep a state dict, in order of preference: nnU-Net and nnssl; Lightning; plain
PyTorch; MAE; self-distillation. A file may also be the state dict itself."""


def find_weights(content: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors by name in a loaded file.

    Raises:
        UserError: there are none, or something else stands among nnU-Net's or nnssl's weights.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"'{path}' holds a {type(content).__name__}, no checkpoint: give a file of weights by name.")
    for key in CONTAINERS:
        found = content.get(key)
        if isinstance(found, Mapping) and found:
            return _strict(found, path) if key == WEIGHTS_KEY else _tensors(found, key, path)
    if any(_is_tensor(value) for value in content.values()):
        return _tensors(content, None, path)
    keys = ", ".join(sorted(map(str, content))[:8]) or "nothing"
    raise UserError(
        f"'{path}' has no weights under {', '.join(CONTAINERS)}, nor at its top level (it has: {keys}): give a "
        "checkpoint of a network."
    )


def _strict(weights: Mapping[Any, Any], path: Path) -> Mapping[str, torch.Tensor]:
    for name, tensor in weights.items():
        if not isinstance(name, str) or not _is_tensor(tensor):
            raise UserError(
                f"'{path}' has a {type(tensor).__name__} under '{name}' in '{WEIGHTS_KEY}' where a tensor is needed: "
                "give a checkpoint written by nnssl or nnU-Net."
            )
    return weights


def _tensors(content: Mapping[Any, Any], key: str | None, path: Path) -> Mapping[str, torch.Tensor]:
    """State dicts of other frameworks hold counters and extra states beside the tensors."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and _is_tensor(value)}
    if not tensors:
        raise UserError(f"'{path}' has no tensors under '{key}': give a checkpoint of a network.")
    return tensors


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
