"""ResEnc-L and Primus-M of full size, with random weights of real names and shapes, through plan and transfer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.planning.modes import target_spacing
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from tests.planning.networks import loaded
from tests.synthesis import PRIMUS_M, RESENC_L, read_manifest, synthesise

ENCODER = ("encoder.", "eva.", "down_projection.")


@pytest.mark.parametrize(("manifest", "patch_size"), [(RESENC_L, (64, 64, 64)), (PRIMUS_M, (64, 96, 64))])
def test_a_checkpoint_of_full_size_is_planned_and_its_encoder_transferred(
    manifest: Path, patch_size: tuple[int, ...], base_plan: dict[str, Any], dataset_json: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(
        resolve_checkpoint_source(str(synthesise(manifest, tmp_path / "checkpoint_final.pth")))
    )
    pretraining = checkpoint.adaptation_plan
    spacing = target_spacing("like_pretrained", pretraining, (1, 1, 1))
    options = PlanOptions("full", patch_size=patch_size)
    plan = json.loads(json.dumps(make_plan(base_plan, dataset_json, checkpoint, spacing, options, "0" * 64)[0]))

    architecture = plan["configurations"]["3d_fullres"]["architecture"]
    with torch.device("meta"):
        network = get_network_from_plans(
            architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
            1, 3, allow_init=False, deep_supervision=False,
        )  # fmt: skip
    network.to_empty(device="cpu")
    report = loaded(network, plan, checkpoint)
    state = network.state_dict()
    names = [n for n in read_manifest(manifest)["network_weights"] if n.startswith(ENCODER)]
    adapted = {"eva.pos_embed"} if manifest is PRIMUS_M else set()
    assert len(names) > 200
    assert {r.name for r in report.records if r.action == "adapted"} == adapted
    for name in set(names) - adapted:
        assert torch.equal(state[name], checkpoint.network_weights[name]), name
    (tmp_path / "checkpoint_final.pth").unlink()
