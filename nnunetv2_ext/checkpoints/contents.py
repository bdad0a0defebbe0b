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
    weights = content.get(WEIGHTS_KEY)
    if isinstance(weights, Mapping) and weights:
        return _strict(weights, path)
    for candidate in (*(content.get(key) for key in CONTAINERS), content):
        if isinstance(candidate, Mapping) and (tensors := _usable_tensors(candidate)):
            return tensors
    keys = ", ".join(sorted(map(str, content))[:8]) or "nothing"
    raise UserError(
        f"'{path}' has no weights under {', '.join(CONTAINERS)}, nor at its top level (it has: {keys}): give a "
        "checkpoint of a network."
    )


def _strict(weights: Mapping[Any, Any], path: Path) -> Mapping[str, torch.Tensor]:
    tensors = _usable_tensors(weights)
    for name, value in weights.items():
        if name not in tensors:
            raise UserError(
                f"'{path}' has a {_kind(value)} under '{name}' in '{WEIGHTS_KEY}' where a tensor of numbers is needed: "
                "give a checkpoint written by nnssl or nnU-Net."
            )
    return tensors


def _usable_tensors(content: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """State dicts of other frameworks hold counters, extra states and unusual tensors beside the weights."""
    return {name: value.detach() for name, value in content.items() if isinstance(name, str) and _is_usable(value)}


def _is_usable(value: Any) -> bool:
    """Whether a value is a tensor of plain numbers that lie in memory or in the file."""
    import torch

    numbers = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8)
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in (*numbers, torch.int16, torch.int32, torch.int64)
        and value.layout == torch.strided
        and not value.is_meta
    )


def _kind(value: Any) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"tensor without values ({value.dtype})" if value.is_meta else f"{value.dtype} {value.layout} tensor"
