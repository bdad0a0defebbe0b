"""A transformer with patches of 2 x 8 x 8 voxels, as for thick slices, from bare weights to a stock prediction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus

from tests.commands import run_command
from tests.conftest import Model, Workplace, predict, preprocess, train
from tests.end_to_end.truth import (
    NO_CHANGE,
    assert_segments,
    logits_in_one_window,
    network_of,
    read,
    unchanged,
    weights_of,
)

CASE = "MNI_005"
ARGUMENTS = {"embed_dim": 96, "patch_embed_size": [2, 8, 8], "eva_depth": 2, "eva_numheads": 4}
PATCH = (16, 48, 48)


@pytest.fixture(scope="module")
def converted(target: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under `model`, made a checkpoint by our command."""
    folder = tmp_path_factory.mktemp("primus")
    torch.manual_seed(3)
    network = Primus(2, num_classes=1, input_shape=PATCH, init_values=0.1, scale_attn_inner=True, **ARGUMENTS)
    network.eva.pos_embed.data.normal_()
    torch.save({"model": network.state_dict()}, folder / "weights.pth")
    plan = {
        "architecture_plans": {
            "arch_class_name": "Primus",
            "arch_kwargs": {**ARGUMENTS, "init_values": 0.1, "scale_attn_inner": True},
        }
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    run_command(
        "nnUNetv2_convert_pretrained_checkpoint", "-pc", folder / "weights.pth", "-o", folder / "converted",
        "-arch", folder / "plan.json", "-patch_size", *PATCH, "-spacing", 4, 1, 1, env=target.env,
    )  # fmt: skip
    return folder / "converted"


@pytest.fixture(scope="module")
def model(converted: Path, target: Workplace) -> Model:
    preprocess(target, "tokens", converted, "-am", "like_pretrained")
    stem = "ptPlans__tokens____Spacing__4.00_1.00_1.00___Norm__Z_Z"
    train(target, stem, *NO_CHANGE)
    return Model(target, converted, stem, "ptPlans_tokens_Spacing_4.00_1.00_1.00_Norm_Z_Z")


def test_the_converted_checkpoint_keeps_every_weight(converted: Path) -> None:
    before = torch.load(converted.parent / "weights.pth", weights_only=True)["model"]
    after = torch.load(converted / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_plan_has_the_patch_embedding_of_the_checkpoint(model: Model) -> None:
    configuration = model.workplace.plan(model.inner_name)["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"]["patch_embed_size"] == [2, 8, 8]
    assert configuration["patch_size"] == list(PATCH)


def test_every_token_and_block_starts_from_the_checkpoint(model: Model, converted: Path) -> None:
    source = weights_of(converted / "checkpoint_final.pth")
    started = weights_of(model.fold / "checkpoint_final.pth")
    names = [name for name in started if name.startswith(("eva.", "down_projection."))]
    assert started["eva.pos_embed"].shape == (1, 8 * 6 * 6, 96)
    assert len(names) > 20
    for name in names:
        assert unchanged(started[name], source[name]), name


def test_stock_predict_gives_what_the_network_computes(model: Model, tmp_path: Path) -> None:
    folder = predict(model, tmp_path, "--disable_tta")
    images = [read(model.workplace.raw / "imagesTs" / f"{CASE}_000{channel}.nii.gz") for channel in (0, 1)]
    assert_segments(read(folder / f"{CASE}.nii.gz"), logits_in_one_window(network_of(model.folder, 2, 2), images))


def test_another_patch_is_planned_with_its_own_token_grid(converted: Path, target: Workplace) -> None:
    output = preprocess(target, "grid", converted, "-ps", 8, 64, 32, "--no_pp")
    assert "token grid 8x6x6 to 4x8x4: trilinear" in output
