"""Variants of checkpoints and plans for tests, made by changing the dictionaries that nnssl and nnU-Net write."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint


def pretrained_with(checkpoint: PretrainedCheckpoint, top: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The checkpoint with another adaptation plan: `top` at its top level, `changes` in its configuration."""
    raw = copy.deepcopy(checkpoint.adaptation_plan.raw)
    raw.update(top or {})
    (configuration,) = raw["pretrain_plan"]["configurations"].values()
    configuration.update(changes)
    return dataclasses.replace(checkpoint, adaptation_plan=AdaptationPlan.from_dict(raw))


def fork_plan(base_plan: dict[str, Any], architecture: str, stem: str, identifier: str) -> dict[str, Any]:
    """What the nnssl fork writes: the architecture by name, no arguments, no spacing, `__` in the inner name."""
    plan = copy.deepcopy(base_plan)
    configuration = plan["configurations"]["3d_fullres"]
    configuration |= {
        "data_identifier": identifier,
        "spacing": None,
        "patch_size": [64, 96, 32],
        "architecture": {"network_class_name": architecture, "arch_kwargs": None, "_kw_requires_import": None},
    }
    return plan | {
        "plans_name": stem,
        "configurations": {"3d_fullres": configuration},
        "pretrain_info": {
            "checkpoint_path": "/data/checkpoint_final.pth", "checkpoint_name": "MAE",
            "key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem",
            "keys_to_in_proj": ["encoder.stem.convs.0.conv"], "key_to_lpe": None, "pt_num_in_channels": 1,
            "pt_used_patchsize": [160, 160, 160], "pt_recommended_downstream_patchsize": [160, 160, 160],
            "citations": [],
        },
    }  # fmt: skip


def residual_base_plan(base_plan: dict[str, Any], features: tuple[int, ...] = (8, 16, 32)) -> dict[str, Any]:
    """nnU-Net's plan with a small residual encoder: flat kernels and strides at first, as for thick slices."""
    return _with_architecture(
        base_plan,
        "ResidualEncoderUNet",
        {**_stages(features), "n_blocks_per_stage": [1, 2, 3, 4][: len(features)]},
    )


def plain_base_plan(base_plan: dict[str, Any], features: tuple[int, ...] = (32, 64, 128)) -> dict[str, Any]:
    """The same for nnU-Net's default network."""
    return _with_architecture(
        base_plan, "PlainConvUNet", {**_stages(features), "n_conv_per_stage": [2] * len(features)}
    )


OLD_ARCHITECTURE_KEYS = {
    "UNet_class_name", "UNet_base_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder",
    "num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes", "unet_max_num_features",
}  # fmt: skip


def old_plan(base_plan: dict[str, Any]) -> dict[str, Any]:
    """The plan as nnU-Net 2.0 to 2.2 wrote it: the network's numbers one by one, without an `architecture`."""
    plan = copy.deepcopy(base_plan)
    configuration = plan["configurations"]["3d_fullres"]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": arguments["features_per_stage"][0],
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [sum(s[axis] == 2 for s in arguments["strides"]) for axis in range(3)],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    return plan


def _stages(features: tuple[int, ...]) -> dict[str, Any]:
    return {
        "n_stages": len(features),
        "features_per_stage": list(features),
        "kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * (len(features) - 1)],
        "strides": [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * (len(features) - 2)],
        "n_conv_per_stage_decoder": [1] * (len(features) - 1),
    }


def _with_architecture(base_plan: dict[str, Any], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    plan = copy.deepcopy(base_plan)
    configuration = plan["configurations"]["3d_fullres"]
    shared = configuration["architecture"]["arch_kwargs"]
    more = ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin")
    configuration["architecture"] |= {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {**arguments, **{k: shared[k] for k in (*more, "nonlin_kwargs")}},
    }
    configuration["patch_size"] = [16, 32, 32]
    return plan
