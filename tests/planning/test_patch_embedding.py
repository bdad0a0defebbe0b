"""A Primus whose patch embedding is 2 x 8 x 8, for images with thick slices, from the plan to its output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from nnunetv2_ext.architectures import PrimusForSegmentation
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.modes import TargetSpacing
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from tests.planning.networks import built, loaded
from tests.planning.variants import pretrained_with

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(base_plan: dict[str, Any], dataset_json: dict[str, Any]) -> Make:
    def plan(checkpoint: PretrainedCheckpoint, **options: Any) -> dict[str, Any]:
        chosen = PlanOptions("thick", **options)
        return make_plan(base_plan, dataset_json, checkpoint, TargetSpacing((3, 1, 1)), chosen, "0" * 64)[0]

    return lambda *a, **k: json.loads(json.dumps(plan(*a, **k)))


@pytest.fixture
def thick(tiny_primus: PretrainedCheckpoint) -> PretrainedCheckpoint:
    torch.manual_seed(0)
    network = PrimusForSegmentation(
        input_channels=1, num_classes=1, embed_dim=96, patch_embed_size=[2, 8, 8], eva_depth=2, eva_numheads=4,
        input_shape=[8, 32, 32], init_values=0.1, scale_attn_inner=True,
    )  # fmt: skip
    kwargs = {"embed_dim": 96, "patch_embed_size": [2, 8, 8], "eva_depth": 2, "eva_numheads": 4}
    changed = pretrained_with(
        tiny_primus,
        {"architecture_plans": {"arch_class_name": "Primus", "arch_kwargs": kwargs},
         "recommended_downstream_patchsize": [8, 32, 32], "pretrain_patch_size": [8, 32, 32]},
    )  # fmt: skip
    return dataclasses.replace(changed, network_weights=network.state_dict())


def test_its_network_gets_every_tensor_of_the_encoder(thick: PretrainedCheckpoint, make: Make) -> None:
    plan = make(thick)
    network = built(plan)
    loaded(network, plan, thick)
    assert network.state_dict()["down_projection.proj.weight"].shape == (96, 1, 2, 8, 8)
    for name, tensor in network.state_dict().items():
        if name.startswith(("eva.", "down_projection.")):
            assert torch.equal(tensor, thick.network_weights[name]), name


def test_another_patch_has_its_token_grid_and_an_output_of_its_size(thick: PretrainedCheckpoint, make: Make) -> None:
    plan = make(thick, patch_size=(6, 16, 48))
    network = built(plan, channels=1)
    loaded(network, plan, thick)
    table = thick.network_weights["eva.pos_embed"][0].double().numpy().reshape(4, 4, 4, 96)
    where = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) * 4 / n - 0.5 for n in (3, 2, 6)], indexing="ij"))
    expected = np.stack([map_coordinates(table[..., c], where, order=1, mode="nearest") for c in range(96)], -1)
    np.testing.assert_allclose(network.eva.pos_embed.detach().numpy()[0], expected.reshape(-1, 96), atol=1e-6)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 6, 16, 48)).shape == (1, 3, 6, 16, 48)


def test_a_patch_that_it_cannot_take_names_those_it_can(thick: PretrainedCheckpoint, make: Make) -> None:
    with pytest.raises(UserError, match=r"multiple of 2 x 8 x 8; .* 8 x 24 x 32 or 8 x 32 x 32"):
        make(thick, patch_size=(8, 30, 32))
