"""Networks and checkpoints for the tests of transfer, made without this package's own planning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

import nnunetv2_ext
from nnunetv2_ext.transfer.matching import PartKeys
from tests.synthesis import DATA

FOLDERS = {
    "tiny_resenc": Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc",
    "tiny_primus": DATA / "tiny_primus",
}
PATCH = (32, 32, 32)
_CONV: dict[str, Any] = {
    "conv_op": nn.Conv3d, "conv_bias": True, "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
}  # fmt: skip


def weights_of(name: str) -> dict[str, torch.Tensor]:
    """The checkpoint's own tensors, read by torch alone."""
    content = torch.load(FOLDERS[name] / "checkpoint_final.pth", weights_only=True)
    return dict(content["network_weights"])


def keys_of(name: str) -> PartKeys:
    """The keys in the checkpoint's adaptation plan."""
    plan = json.loads((FOLDERS[name] / "adaptation_plan.json").read_text())
    return PartKeys(plan["key_to_encoder"], plan["key_to_stem"], tuple(plan["keys_to_in_proj"]), plan["key_to_lpe"])


def resenc(channels: int = 1, classes: int = 3, features: tuple[int, ...] = (8, 16, 32, 64)) -> ResidualEncoderUNet:
    """The network that `tiny_resenc` was pre-trained for."""
    return ResidualEncoderUNet(
        input_channels=channels, num_classes=classes, n_stages=4, features_per_stage=features,
        kernel_sizes=[[3, 3, 3]] * 4, strides=[[1, 1, 1]] + [[2, 2, 2]] * 3, n_blocks_per_stage=[1, 2, 2, 2],
        n_conv_per_stage_decoder=[1, 1, 1], **_CONV,
    )  # fmt: skip


def plain_unet(channels: int = 1, classes: int = 3) -> PlainConvUNet:
    """A U-Net whose stem is the first stage of its encoder."""
    return PlainConvUNet(
        input_channels=channels, num_classes=classes, n_stages=3, features_per_stage=(4, 8, 16),
        kernel_sizes=[[3, 3, 3]] * 3, strides=[[1, 1, 1]] + [[2, 2, 2]] * 2, n_conv_per_stage=[2, 2, 2],
        n_conv_per_stage_decoder=[1, 1], **_CONV,
    )  # fmt: skip


def primus(channels: int = 1, classes: int = 3, patch_size: tuple[int, ...] = PATCH, registers: int = 0) -> Primus:
    """The network that `tiny_primus` was pre-trained for."""
    return Primus(
        input_channels=channels, num_classes=classes, embed_dim=96, patch_embed_size=(8, 8, 8), eva_depth=3,
        eva_numheads=4, input_shape=patch_size, init_values=0.1, scale_attn_inner=True, num_register_tokens=registers,
    )  # fmt: skip


NETWORKS = {"tiny_resenc": resenc, "tiny_primus": primus}


def of_encoder(name: str) -> bool:
    """Whether a state dict's name belongs to the encoder or the stem, for all three networks."""
    return name.removeprefix("decoder.").startswith(("encoder.", "eva.", "down_projection."))


def copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Values as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
