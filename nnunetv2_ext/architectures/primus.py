"""Primus as stock nnU-Net can call it."""

from __future__ import annotations

from typing import Any

from dynamic_network_architectures.architectures.primus import Primus


class PrimusForSegmentation(Primus):
    """Primus with the constructor that nnU-Net uses for every network named in a plan.

    nnU-Net builds a plan's network as `cls(input_channels=..., num_classes=..., deep_supervision=..., **arch_kwargs)`;
    `Primus` itself knows no `deep_supervision`. The tensors have the same names and shapes as those of `Primus`.

    Not called `Primus`: where a plan's module cannot be imported, nnU-Net looks for the last part of the name in
    dynamic-network-architectures, would find the other class and fail with a misleading message.

    Args:
        input_channels: image channels.
        num_classes: segmentation heads.
        deep_supervision: must be false; Primus has one output.
        **arch_kwargs: the arguments of `Primus`; `input_shape` (voxels, network axis order) among them.

    Raises:
        ValueError: deep supervision is asked for.
    """

    def __init__(
        self, input_channels: int, num_classes: int, deep_supervision: bool = False, **arch_kwargs: Any
    ) -> None:
        if deep_supervision:
            raise ValueError("Primus has no deep supervision: train this plan with nnUNetv2_train_pretrained")
        super().__init__(input_channels=input_channels, num_classes=num_classes, **arch_kwargs)
