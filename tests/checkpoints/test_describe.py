"""The plan made for weights that carry none is the plan that nnssl would have written, and rebuilds their network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_ext.architectures.presets import downstream_architecture
from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.checkpoints.describe import describe
from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from tests.checkpoints.models import configuration, trained_weights
from tests.conftest import TINY_PRIMUS, TINY_RESENC, Model, StockModel
from tests.synthesis import PRIMUS_M, RESENC_L, read_manifest


def loaded(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    return content["network_weights"], content["nnssl_adaptation_plan"]


def described_again(weights: Mapping[str, torch.Tensor], plan: AdaptationPlan, **more: Any) -> AdaptationPlan:
    told: dict[str, Any] = {"patch_size": plan.pretrain_patch_size, "spacing": plan.spacing, **more}
    made = describe(weights, plan.architecture_name, plan.architecture_kwargs, **told)
    return AdaptationPlan.from_dict(json.loads(json.dumps(made)))


def stock_network(architecture: Mapping[str, Any], channels: int, classes: int) -> torch.nn.Module:
    return get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
        channels, classes, allow_init=False, deep_supervision=False,
    )  # fmt: skip


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS], ids=["resenc", "primus"])
def test_the_plan_of_nnssl_s_own_weights_is_the_one_that_nnssl_wrote(folder: Path) -> None:
    weights, raw = loaded(folder)
    theirs = AdaptationPlan.from_dict(raw)
    ours = described_again(weights, theirs)
    for key in ("architecture_name", "architecture_kwargs", "pretrain_num_input_channels", "pretrain_patch_size",
                "key_to_encoder", "key_to_stem", "key_to_lpe", "spacing"):  # fmt: skip
        assert getattr(ours, key) == getattr(theirs, key), key
    assert set(ours.keys_to_in_proj) == set(theirs.keys_to_in_proj)


@pytest.mark.parametrize("manifest", [RESENC_L, PRIMUS_M], ids=["ResEncL", "PrimusM"])
def test_the_keys_of_nnssl_s_full_size_networks_are_those_that_nnssl_wrote(manifest: Path) -> None:
    content = read_manifest(manifest)
    weights = {name: torch.empty(shape, device="meta") for name, (_, shape) in content["network_weights"].items()}
    theirs = AdaptationPlan.from_dict(content["nnssl_adaptation_plan"])
    ours = described_again(weights, theirs)
    assert (ours.key_to_encoder, ours.key_to_stem, ours.key_to_lpe) == (
        theirs.key_to_encoder, theirs.key_to_stem, theirs.key_to_lpe,
    )  # fmt: skip
    assert set(ours.keys_to_in_proj) == set(theirs.keys_to_in_proj)
    assert ours.pretrain_num_input_channels == theirs.pretrain_num_input_channels


@pytest.mark.parametrize("fixture", ["plain_model", "residual_model", "resenc_model", "primus_model"])
def test_the_plan_of_a_trained_model_rebuilds_its_network(fixture: str, request: pytest.FixtureRequest) -> None:
    model: StockModel | Model = request.getfixturevalue(fixture)
    plan = read_checkpoint(resolve_checkpoint_source(str(model.folder))).plan
    again = AdaptationPlan.from_dict(json.loads(json.dumps(plan.raw)))
    weights = trained_weights(model.folder / "fold_0" / "checkpoint_final.pth")
    network = stock_network(
        downstream_architecture(again.architecture_name, again.architecture_kwargs, again.pretrain_patch_size),
        again.pretrain_num_input_channels, 3,
    )  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in weights.items()}
    network.load_state_dict(weights)


@pytest.mark.parametrize(
    ("fixture", "encoder", "stem"),
    [("plain_model", "encoder.stages", "encoder.stages.0"), ("residual_model", "encoder.stages", "encoder.stem")],
)
def test_the_keys_of_a_trained_model_point_at_the_layer_that_sees_the_image(
    fixture: str, encoder: str, stem: str, request: pytest.FixtureRequest
) -> None:
    model: StockModel = request.getfixturevalue(fixture)
    plan = read_checkpoint(resolve_checkpoint_source(str(model.folder))).plan
    weights = trained_weights(model.checkpoint)
    assert (plan.key_to_encoder, plan.key_to_stem, plan.key_to_lpe) == (encoder, stem, None)
    seeing = {name for name, t in weights.items() if name.startswith("encoder.") and t.shape[1:] == (4, 3, 3, 3)}
    assert {f"{key}.weight" for key in plan.keys_to_in_proj if key.startswith("encoder.")} == seeing


def test_the_described_network_computes_what_the_trained_one_does(plain_model: StockModel) -> None:
    told = configuration(plain_model.folder)["architecture"]
    plan = read_checkpoint(resolve_checkpoint_source(str(plain_model.folder))).plan
    ours = downstream_architecture(plan.architecture_name, plan.architecture_kwargs, plan.pretrain_patch_size)
    networks = [stock_network(architecture, 4, 3).eval() for architecture in (told, ours)]
    for network in networks:
        network.load_state_dict(trained_weights(plain_model.checkpoint))
    image = torch.randn(1, 4, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(networks[0](image), networks[1](image))


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_channels_are_counted_in_the_stem_s_weight(channels: int) -> None:
    weights, raw = loaded(TINY_RESENC)
    plan = AdaptationPlan.from_dict(raw)
    stem = {f"{key}.weight" for key in plan.keys_to_in_proj}
    wide = {name: t.repeat(1, channels, 1, 1, 1) if name in stem else t for name, t in weights.items()}
    assert described_again(wide, plan).pretrain_num_input_channels == channels


def test_what_the_user_says_of_channels_and_keys_counts() -> None:
    weights, raw = loaded(TINY_RESENC)
    keys = {"key_to_encoder": "encoder", "keys_to_in_proj": ["encoder.stem"]}
    plan = described_again(weights, AdaptationPlan.from_dict(raw), channels=3, keys=keys)
    assert plan.pretrain_num_input_channels == 3
    assert (plan.key_to_encoder, plan.keys_to_in_proj) == ("encoder", ("encoder.stem",))
    assert plan.key_to_stem == "encoder.stem"


def test_a_spacing_that_is_not_known_is_not_said_to_be_none() -> None:
    weights, raw = loaded(TINY_RESENC)
    plan = described_again(weights, AdaptationPlan.from_dict(raw), spacing=None)
    assert (plan.spacing, plan.spacing_style) == (None, None)


def test_a_positional_embedding_that_was_not_saved_is_not_named() -> None:
    weights, raw = loaded(TINY_PRIMUS)
    plan = AdaptationPlan.from_dict(raw)
    without = {name: tensor for name, tensor in weights.items() if name != "eva.pos_embed"}
    assert described_again(weights, plan).key_to_lpe == "eva.pos_embed"
    assert described_again(without, plan).key_to_lpe is None


def test_an_architecture_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match=r"os\.system"):
        describe({}, "os.system", {"command": "true"}, patch_size=(32, 32, 32), spacing=None)
