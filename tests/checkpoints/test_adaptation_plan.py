"""What an adaptation plan may look like, and what is refused with which words."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.errors import UserError
from tests.synthesis import DATA, PRIMUS_M, RESENC_L, read_manifest


@pytest.fixture
def raw() -> dict[str, Any]:
    return json.loads((DATA / "tiny_primus" / "adaptation_plan.json").read_text())


def the_configuration(raw: dict[str, Any]) -> dict[str, Any]:
    (configuration,) = raw["pretrain_plan"]["configurations"].values()
    return configuration


def test_reads_every_field_of_a_plan_written_by_nnssl(raw: dict[str, Any]) -> None:
    plan = AdaptationPlan.from_dict(raw)
    assert plan.architecture_name == "Primus"
    assert plan.architecture_kwargs == raw["architecture_plans"]["arch_kwargs"]
    assert plan.architecture_kwargs_requiring_import == ()
    assert plan.pretrain_num_input_channels == 1
    assert plan.pretrain_patch_size == plan.recommended_downstream_patchsize == (32, 32, 32)
    assert (plan.key_to_encoder, plan.key_to_stem) == ("eva", "down_projection")
    assert plan.keys_to_in_proj == ("down_projection.proj",)
    assert plan.key_to_lpe == "eva.pos_embed"
    assert (plan.spacing, plan.spacing_style) == ((1.0, 1.0, 1.0), "onemmiso")
    assert plan.normalization_schemes == ("ZScoreNormalization",)
    assert plan.use_mask_for_norm == (False,)
    assert plan.raw == raw


@pytest.mark.parametrize(("manifest", "name"), [(RESENC_L, "ResEncL"), (PRIMUS_M, "PrimusM")])
def test_named_sizes_have_no_arguments(manifest: Path, name: str) -> None:
    plan = AdaptationPlan.from_dict(read_manifest(manifest)["nnssl_adaptation_plan"])
    assert plan.architecture_name == name
    assert plan.architecture_kwargs is None
    assert plan.architecture_kwargs_requiring_import == ()


def test_lists_and_tuples_mean_the_same(raw: dict[str, Any]) -> None:
    other = copy.deepcopy(raw)
    other["recommended_downstream_patchsize"] = tuple(raw["recommended_downstream_patchsize"])
    other["keys_to_in_proj"] = tuple(raw["keys_to_in_proj"])
    the_configuration(other)["patch_size"] = (32, 32, 32)
    assert vars(AdaptationPlan.from_dict(other)) | {"raw": None} == vars(AdaptationPlan.from_dict(raw)) | {"raw": None}


def test_whole_floats_become_integers(raw: dict[str, Any]) -> None:
    raw["pretrain_num_input_channels"] = 1.0
    raw["recommended_downstream_patchsize"] = [32.0, 32.0, 64.0]
    plan = AdaptationPlan.from_dict(raw)
    assert plan.recommended_downstream_patchsize == (32, 32, 64)
    assert all(isinstance(size, int) for size in (*plan.recommended_downstream_patchsize, 1))
    assert isinstance(plan.pretrain_num_input_channels, int)


@pytest.mark.parametrize("absent", [True, False])
def test_cnns_have_no_positional_embedding(raw: dict[str, Any], absent: bool) -> None:
    raw["key_to_lpe"] = None
    if absent:
        del raw["key_to_lpe"]
    assert AdaptationPlan.from_dict(raw).key_to_lpe is None


def test_only_the_name_of_the_architecture_is_enough(raw: dict[str, Any]) -> None:
    raw["architecture_plans"] = {"arch_class_name": "ResEncL"}
    plan = AdaptationPlan.from_dict(raw)
    assert (plan.architecture_name, plan.architecture_kwargs) == ("ResEncL", None)


@pytest.mark.parametrize("name", ["median", "noresample", "3d_fullres", "anything"])
def test_the_one_configuration_may_have_any_name(raw: dict[str, Any], name: str) -> None:
    raw["pretrain_plan"]["configurations"] = {name: {"spacing": [2, 1.5, 1], "patch_size": [64, 96, 128]}}
    plan = AdaptationPlan.from_dict(raw)
    assert plan.pretrain_patch_size == (64, 96, 128)
    assert plan.spacing == (2.0, 1.5, 1.0)
    assert plan.normalization_schemes is None
    assert plan.use_mask_for_norm is None


def test_a_converter_may_write_spacing_and_patch_alone(raw: dict[str, Any]) -> None:
    raw["pretrain_plan"] = {"spacing": [1, 1, 1], "patch_size": [96, 96, 96]}
    plan = AdaptationPlan.from_dict(raw)
    assert (plan.spacing, plan.pretrain_patch_size) == ((1.0, 1.0, 1.0), (96, 96, 96))


@pytest.mark.parametrize("spacing", [None, [None, None, None], [1, 1, 1]])
def test_no_resampling_means_no_spacing(raw: dict[str, Any], spacing: Any) -> None:
    the_configuration(raw).update(spacing=spacing, spacing_style="noresample")
    plan = AdaptationPlan.from_dict(raw)
    assert (plan.spacing, plan.spacing_style) == (None, "noresample")


def test_the_patch_of_the_pretraining_overrides_that_of_its_configuration(raw: dict[str, Any]) -> None:
    raw["pretrain_patch_size"] = [64, 64, 64]
    assert AdaptationPlan.from_dict(raw).pretrain_patch_size == (64, 64, 64)


def test_without_a_recommended_patch_the_pretraining_s_is_recommended(raw: dict[str, Any]) -> None:
    del raw["recommended_downstream_patchsize"]
    the_configuration(raw)["patch_size"] = [64, 96, 96]
    assert AdaptationPlan.from_dict(raw).recommended_downstream_patchsize == (64, 96, 96)


def test_of_several_configurations_the_usual_one_counts(raw: dict[str, Any]) -> None:
    configurations = raw["pretrain_plan"]["configurations"]
    configurations["median"] = {"spacing": [3, 3, 3], "patch_size": [16, 16, 16]}
    assert AdaptationPlan.from_dict(raw).pretrain_patch_size == (32, 32, 32)


def test_several_unusual_configurations_are_refused(raw: dict[str, Any]) -> None:
    one = the_configuration(raw)
    raw["pretrain_plan"]["configurations"] = {"median": one, "noresample": one}
    with pytest.raises(UserError, match="median, noresample"):
        AdaptationPlan.from_dict(raw)


@pytest.mark.parametrize(
    "key", ["architecture_plans", "pretrain_num_input_channels", "key_to_encoder", "key_to_stem", "keys_to_in_proj"]
)
@pytest.mark.parametrize("null", [True, False])
def test_a_missing_required_key_is_named(raw: dict[str, Any], key: str, null: bool) -> None:
    raw[key] = None
    if not null:
        del raw[key]
    with pytest.raises(UserError, match=f"no '{key}"):
        AdaptationPlan.from_dict(raw)


def test_a_missing_patch_is_named(raw: dict[str, Any]) -> None:
    del the_configuration(raw)["patch_size"]
    with pytest.raises(UserError, match="patch_size"):
        AdaptationPlan.from_dict(raw)
    del raw["pretrain_plan"]
    with pytest.raises(UserError, match="patch_size"):
        AdaptationPlan.from_dict(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture_plans", {"arch_class_name": 3}),
        ("architecture_plans", {"arch_class_name": "Primus", "arch_kwargs": [1]}),
        ("architecture_plans", 7),
        ("pretrain_plan", "onemmiso"),
        ("pretrain_num_input_channels", "one"),
        ("pretrain_num_input_channels", 0),
        ("pretrain_num_input_channels", 1.5),
        ("pretrain_num_input_channels", True),
        ("recommended_downstream_patchsize", [32, 32]),
        ("recommended_downstream_patchsize", [32, 32, -32]),
        ("recommended_downstream_patchsize", [32, 32, 32.5]),
        ("recommended_downstream_patchsize", "32x32x32"),
        ("pretrain_patch_size", 32),
        ("key_to_encoder", 5),
        ("key_to_encoder", ""),
        ("key_to_stem", ["a"]),
        ("keys_to_in_proj", [1]),
        ("keys_to_in_proj", {"a": 1}),
        ("key_to_lpe", 1),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key_in_one_line(raw: dict[str, Any], key: str, value: Any) -> None:
    raw[key] = value
    with pytest.raises(UserError, match=key) as caught:
        AdaptationPlan.from_dict(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spacing", [[1, 1], [1, 1, 0], [1, 1, float("nan")], "1", [1, 1, "1"]])
def test_an_impossible_spacing_is_refused(raw: dict[str, Any], spacing: Any) -> None:
    the_configuration(raw)["spacing"] = spacing
    with pytest.raises(UserError, match="spacing"):
        AdaptationPlan.from_dict(raw)


def test_something_that_is_no_dictionary_is_refused() -> None:
    with pytest.raises(UserError, match="dictionary"):
        AdaptationPlan.from_dict([1, 2])  # type: ignore[arg-type]


def test_names_in_a_plan_are_never_imported(raw: dict[str, Any]) -> None:
    raw["architecture_plans"] = {
        "arch_class_name": "this.Zen",
        "arch_kwargs": {"conv_op": "antigravity.fly"},
        "arch_kwargs_requiring_import": ["conv_op"],
    }
    assert AdaptationPlan.from_dict(raw).architecture_name == "this.Zen"
    assert not {"this", "antigravity"} & set(sys.modules)
