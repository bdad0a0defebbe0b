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
