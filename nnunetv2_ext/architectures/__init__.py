"""Architectures: from the name in a checkpoint to a class and arguments that stock nnU-Net can build.

`PrimusForSegmentation` is imported on first use, so that planning a convolutional network does not import timm.
Plans name it by this short path (`nnunetv2_ext.architectures.PrimusForSegmentation`).
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "PrimusForSegmentation":
        from nnunetv2_ext.architectures.primus import PrimusForSegmentation

        return PrimusForSegmentation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
