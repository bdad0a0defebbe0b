"""Networks as a plan describes them, with names and shapes but no values, built once."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from nnunetv2_ext.architectures.build import build_on_meta_device
from nnunetv2_ext.architectures.presets import downstream_architecture

PATCH = 64
CHANNELS, CLASSES = 5, 7
"""Numbers that no other dimension of the networks has."""

_STAGES = 5
_PLAIN: dict[str, Any] = {
    "n_stages": _STAGES, "features_per_stage": [4, 8, 16, 32, 64], "kernel_sizes": [[3, 3, 3]] * _STAGES,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * (_STAGES - 1), "n_conv_per_stage": [2] * _STAGES,
    "n_conv_per_stage_decoder": [2] * (_STAGES - 1),
}  # fmt: skip
_REGISTERS: dict[str, Any] = {
    "embed_dim": 96, "patch_embed_size": [8, 8, 8], "eva_depth": 12, "eva_numheads": 4, "num_register_tokens": 3,
}  # fmt: skip
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "ResEncL": ("ResEncL", None),
    "PlainConvUNet": ("PlainConvUNet", _PLAIN),
    "PrimusS": ("PrimusS", None),
    "Primus": ("Primus", _REGISTERS),
}
U_NETS = {"ResEncL": (6, 5), "PlainConvUNet": (_STAGES, _STAGES - 1)}
PRIMUSES = {"PrimusS": (12, 2), "Primus": (12, 2)}
"""How many blocks encoder and decoder have; of the three steps that make up for a patch of 8, the head is the last."""


@cache
def network(name: str) -> nn.Module:
    """One of `U_NETS` or `PRIMUSES`; not to be changed."""
    architecture = downstream_architecture(*_ARCHITECTURES[name], (PATCH, PATCH, PATCH))
    return build_on_meta_device(architecture, CHANNELS, CLASSES)
