"""Networks and checkpoints for the tests of transfer, made without this package's own planning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

import nnunetv2_ext
from nnunetv2_ext.transfer.loading import load_and_verify
from nnunetv2_ext.transfer.matching import PartKeys
from nnunetv2_ext.transfer.pretrained import Transfer, plan_transfer
from nnunetv2_ext.transfer.report import TensorRecord, TransferReport
from nnunetv2_ext.transfer.request import TransferRequest
from tests.synthesis import DATA

FOLDERS = {
    "tiny_resenc": Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc",
    "tiny_primus": DATA / "tiny_primus",
}
PATCH = (32, 32, 32)
RESENC_KEYS = PartKeys("encoder.stages", "encoder.stem", ("encoder.stem.convs.0.conv",))
PLAIN_KEYS = PartKeys("encoder.stages", "encoder.stages.0", ("encoder.stages.0.0.convs.0.conv",))
PRIMUS_KEYS = PartKeys("eva", "down_projection", ("down_projection.proj",), "eva.pos_embed")
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


def resenc(
    channels: int = 1,
    classes: int = 3,
    features: Sequence[int] = (8, 16, 32, 64),
    blocks: Sequence[int] | None = None,
) -> ResidualEncoderUNet:
    """By default the network that `tiny_resenc` was pre-trained for."""
    num_stages = len(features)
    return ResidualEncoderUNet(
        input_channels=channels, num_classes=classes, n_stages=num_stages, features_per_stage=list(features),
        kernel_sizes=[[3, 3, 3]] * num_stages, strides=[[1, 1, 1]] + [[2, 2, 2]] * (num_stages - 1),
        n_blocks_per_stage=list(blocks or [1, *[2] * (num_stages - 1)]),
        n_conv_per_stage_decoder=[1] * (num_stages - 1), **_CONV,
    )  # fmt: skip


def plain_unet(
    channels: int = 1,
    classes: int = 3,
    features: Sequence[int] = (4, 8, 16),
    kernels: Sequence[Sequence[int]] | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    convs: int = 2,
) -> PlainConvUNet:
    """A U-Net whose stem is the first stage of its encoder."""
    num_stages = len(features)
    return PlainConvUNet(
        input_channels=channels, num_classes=classes, n_stages=num_stages, features_per_stage=list(features),
        kernel_sizes=[list(k) for k in kernels or [(3, 3, 3)] * num_stages],
        strides=[list(s) for s in strides or [(1, 1, 1)] + [(2, 2, 2)] * (num_stages - 1)],
        n_conv_per_stage=[convs] * num_stages, n_conv_per_stage_decoder=[1] * (num_stages - 1), **_CONV,
    )  # fmt: skip


def anisotropic_unet(channels: int = 1, classes: int = 3, features: Sequence[int] = (4, 8, 16)) -> PlainConvUNet:
    """As nnU-Net plans for thick slices: in the plane only at first."""
    depth = len(features)
    kernels = [(1, 3, 3)] + [(3, 3, 3)] * (depth - 1)
    strides = [(1, 1, 1), (1, 2, 2)] + [(2, 2, 2)] * (depth - 2)
    return plain_unet(channels, classes, features, kernels, strides)


def primus(
    channels: int = 1,
    classes: int = 3,
    patch_size: Sequence[int] = PATCH,
    registers: int = 0,
    token_size: Sequence[int] = (8, 8, 8),
    depth: int = 3,
) -> Primus:
    """By default the network that `tiny_primus` was pre-trained for."""
    return Primus(
        input_channels=channels, num_classes=classes, embed_dim=96, patch_embed_size=tuple(token_size),
        eva_depth=depth, eva_numheads=4, input_shape=tuple(patch_size), init_values=0.1, scale_attn_inner=True,
        num_register_tokens=registers,
    )  # fmt: skip


NETWORKS = {"tiny_resenc": resenc, "tiny_primus": primus}


def plan_into(
    network: nn.Module,
    weights: Mapping[str, torch.Tensor],
    keys: PartKeys,
    *,
    patch_size: Sequence[int] = PATCH,
    pretrain_patch_size: Sequence[int] | None = PATCH,
    **request: Any,
) -> Transfer:
    """`plan_transfer` with the fields of a `TransferRequest`."""
    return plan_transfer(
        network, weights, keys, pretrain_patch_size=pretrain_patch_size, patch_size=patch_size,
        request=TransferRequest(**request),
    )  # fmt: skip


def transfer_into(
    network: nn.Module, weights: Mapping[str, torch.Tensor], keys: PartKeys, **options: Any
) -> TransferReport:
    """Plan, load and verify."""
    transfer = plan_into(network, weights, keys, **options)
    load_and_verify(network, transfer)
    return transfer.report


def records_by_name(report: TransferReport) -> dict[str, TensorRecord]:
    """Records under every name that their tensor has."""
    return {name: record for record in report.records for name in (record.name, *record.aliases)}


def of_encoder(name: str) -> bool:
    """Whether a state dict's name belongs to the encoder or the stem, for all three networks."""
    return name.removeprefix("decoder.").startswith(("encoder.", "eva.", "down_projection."))


def copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Values as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def random_values(network: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with every tensor drawn at random, biases and norms too; its aliases share storage as they do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return dict(network.state_dict())
