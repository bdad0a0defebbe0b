"""A network on the meta device is the network that nnU-Net builds, and bad arguments are a line for the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

import nnunetv2_ext
from nnunetv2_ext.architectures.build import build_on_meta_device
from nnunetv2_ext.architectures.presets import downstream_architecture
from nnunetv2_ext.errors import UserError
from tests.synthesis import DATA

TINY_RESENC = Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc"
TINY_PRIMUS = DATA / "tiny_primus"


def architecture_of(folder: Path, **changes: Any) -> dict[str, Any]:
    plan = json.loads((folder / "adaptation_plan.json").read_text())["architecture_plans"]
    return downstream_architecture(plan["arch_class_name"], {**plan["arch_kwargs"], **changes}, (32, 32, 32))


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS], ids=lambda f: f.name)
def test_has_the_tensors_of_the_network_that_nnunet_builds(folder: Path) -> None:
    entry = architecture_of(folder)
    ours = build_on_meta_device(entry, 2, 3)
    stock = get_network_from_plans(
        entry["network_class_name"], entry["arch_kwargs"], entry["_kw_requires_import"], 2, 3, deep_supervision=False
    )
    assert [(n, t.shape) for n, t in ours.state_dict().items()] == [(n, t.shape) for n, t in stock.state_dict().items()]


def test_takes_no_memory_for_the_weights_of_a_large_network() -> None:
    network = build_on_meta_device(downstream_architecture("PrimusL", None, (160, 160, 160)), 1, 3)
    assert {p.device for p in network.parameters()} == {torch.device("meta")}


@pytest.mark.parametrize(
    ("folder", "changes"),
    [
        (TINY_RESENC, {"n_blocks_per_stage": [1, 2]}),
        (TINY_RESENC, {"features_per_stage": [8, -16, 32, 64]}),
        (TINY_RESENC, {"strides": [[1, 1, 1], [2, 2, 2]]}),
        (TINY_RESENC, {"conv_op": None}),
        (TINY_RESENC, {"norm_op_kwargs": {"sharpness": 3}}),
        (TINY_RESENC, {"features_per_stage": "many"}),
        (TINY_RESENC, {"n_conv_per_stage_decoder": [1, 1, 1, 1, 1]}),
        (TINY_PRIMUS, {"encoder_eva_numheads": 5}),
        (TINY_PRIMUS, {"encoder_eva_numheads": 0}),
        (TINY_PRIMUS, {"patch_embed_size": [7, 7, 7]}),
        (TINY_PRIMUS, {"embed_dim": -96}),
        (TINY_PRIMUS, {"rope_kwargs": {"sharpness": 3}}),
    ],
)
def test_arguments_that_make_no_network_are_a_line_for_the_user(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"cannot be built with the arguments in the plan \("):
        build_on_meta_device(architecture_of(folder, **changes), 1, 3)
