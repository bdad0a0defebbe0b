"""Weights that do not say which network they are of, with what the user says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.given_architecture import read_with_architecture
from nnunetv2_ext.planning.modes import TargetSpacing
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from tests.conftest import TINY_PRIMUS, TINY_RESENC, StockModel
from tests.planning.networks import built, loaded
from tests.planning.variants import residual_base_plan
from tests.planning.weights_files import adaptation_plan_file, plain_file, raw_plan, spark_file, tensors_of


def read(
    source: Path, arch: str | Path | None = None, patch_size: tuple[int, ...] | None = None
) -> PretrainedCheckpoint:
    return read_with_architecture(
        resolve_checkpoint_source(str(source)), None if arch is None else str(arch), patch_size
    )


def nnunet_plan_file(path: Path, folder: Path, **changes: Any) -> Path:
    """An nnU-Net plan with the network of one of the tiny checkpoints."""
    configuration = {
        "patch_size": [32, 32, 32], "spacing": [1.0, 0.5, 0.5], "resampling_fn_data": "resample_data_or_seg_to_shape",
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
            "arch_kwargs": raw_plan(folder)["architecture_plans"]["arch_kwargs"], "_kw_requires_import": [],
        }, **changes,
    }  # fmt: skip
    path.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}))
    return path


def test_an_adaptation_plan_file_gives_all_that_it_says(tmp_path: Path) -> None:
    arch = adaptation_plan_file(tmp_path / "plan.json", recommended_downstream_patchsize=[48, 32, 32])
    plan = read(plain_file(tmp_path / "w.pth"), arch).plan
    raw = raw_plan(TINY_RESENC)
    assert plan.architecture_name == raw["architecture_plans"]["arch_class_name"]
    assert plan.architecture_kwargs == raw["architecture_plans"]["arch_kwargs"]
    assert (plan.key_to_encoder, plan.key_to_stem) == (raw["key_to_encoder"], raw["key_to_stem"])
    assert (plan.pretrain_patch_size, plan.recommended_downstream_patchsize) == ((32, 32, 32), (48, 32, 32))
    assert (plan.spacing, plan.pretrain_num_input_channels) == ((1.0, 1.0, 1.0), 1)
    assert plan.normalization_schemes == ("ZScoreNormalization",)


def test_an_nnunet_plan_file_gives_architecture_patch_spacing_and_normalisation(tmp_path: Path) -> None:
    arch = nnunet_plan_file(tmp_path / "plans.json", TINY_RESENC)
    plan = read(plain_file(tmp_path / "w.pth"), arch).plan
    assert plan.architecture_name == "ResidualEncoderUNet"
    assert (plan.pretrain_patch_size, plan.spacing) == ((32, 32, 32), (1.0, 0.5, 0.5))
    assert plan.normalization_schemes == ("CTNormalization",)
    assert (plan.key_to_encoder, plan.key_to_stem) == ("encoder.stages", "encoder.stem")


def test_an_nnunet_plan_that_did_not_resample_has_no_spacing(tmp_path: Path) -> None:
    arch = nnunet_plan_file(tmp_path / "plans.json", TINY_RESENC, resampling_fn_data="no_resampling_hack")
    assert read(plain_file(tmp_path / "w.pth"), arch).plan.spacing is None


@pytest.mark.parametrize("root", ["module.", "model._orig_mod."])
def test_names_below_wrappers_are_found_with_the_architectures_keys(root: str, tmp_path: Path) -> None:
    weights = plain_file(tmp_path / "w.pth", root=root)
    keys = {k: v for k, v in raw_plan(TINY_RESENC).items() if not k.startswith("key")}
    (tmp_path / "plan.json").write_text(json.dumps(keys))
    plan = read(weights, tmp_path / "plan.json").plan
    assert (plan.key_to_encoder, plan.key_to_stem) == (f"{root}encoder.stages", f"{root}encoder.stem")
    assert all(key.startswith(f"{root}encoder.stem.") for key in plan.keys_to_in_proj)


@pytest.mark.parametrize("root", ["module.", "model._orig_mod."])
def test_keys_of_an_adaptation_plan_file_are_found_below_wrappers_too(root: str, tmp_path: Path) -> None:
    plan = read(plain_file(tmp_path / "w.pth", root=root), str(TINY_RESENC / "adaptation_plan.json")).plan
    own = raw_plan(TINY_RESENC)
    assert plan.key_to_encoder == root + own["key_to_encoder"]
    assert list(plan.keys_to_in_proj) == [root + key for key in own["keys_to_in_proj"]]


def test_the_channels_are_those_of_the_stems_weight(tmp_path: Path) -> None:
    weights = tensors_of(TINY_RESENC)
    three = weights["encoder.stem.convs.0.conv.weight"].repeat(1, 3, 1, 1, 1)
    torch.save({n: three if t.shape == (8, 1, 3, 3, 3) else t for n, t in weights.items()}, tmp_path / "w.pth")
    arch = nnunet_plan_file(tmp_path / "plans.json", TINY_RESENC)
    assert read(tmp_path / "w.pth", arch).plan.pretrain_num_input_channels == 3


def test_of_aliases_that_disagree_what_the_forward_pass_used_arrives(
    tmp_path: Path, base_plan: dict[str, Any], dataset_json: dict[str, Any]
) -> None:
    arch = adaptation_plan_file(tmp_path / "plan.json")
    checkpoint = read(spark_file(tmp_path / "spark.pth"), arch)
    plan, rehearsed = make_plan(
        base_plan, dataset_json, checkpoint, TargetSpacing((1, 1, 1)), PlanOptions("spark"), "0" * 64
    )
    network = built(json.loads(json.dumps(plan)))
    loaded(network, plan, checkpoint)
    truth = tensors_of(TINY_RESENC)
    compared = [n for n in network.state_dict() if n.startswith("encoder.")]
    assert len(compared) > 50
    for name in compared:
        assert torch.equal(network.state_dict()[name], truth[name]), name
    assert any("disagree" in remark for remark in rehearsed.remarks())


class TestThePatchOfAPrimus:
    """Its positional embedding was trained for one patch, which the file may not say."""

    @pytest.fixture
    def arch(self, tmp_path: Path) -> Path:
        """Without a patch."""
        raw = raw_plan(TINY_PRIMUS)
        said = {"architecture_plans": raw["architecture_plans"], "key_to_lpe": raw["key_to_lpe"]}
        (tmp_path / "plan.json").write_text(json.dumps(said))
        return tmp_path / "plan.json"

    def test_is_a_cube_where_the_tokens_are(self, arch: Path, tmp_path: Path) -> None:
        assert tensors_of(TINY_PRIMUS)["eva.pos_embed"].shape[1] == 4**3
        assert read(plain_file(tmp_path / "w.pth", TINY_PRIMUS), arch).plan.pretrain_patch_size == (32, 32, 32)

    def test_is_not_the_one_that_the_user_fine_tunes_with(
        self, arch: Path, tmp_path: Path, base_plan: dict[str, Any], dataset_json: dict[str, Any]
    ) -> None:
        checkpoint = read(plain_file(tmp_path / "w.pth", TINY_PRIMUS), arch, (48, 32, 16))
        assert checkpoint.plan.pretrain_patch_size == (32, 32, 32)
        options = PlanOptions("prim", patch_size=(48, 32, 16))
        plan, report = make_plan(base_plan, dataset_json, checkpoint, TargetSpacing((1, 1, 1)), options, "0" * 64)
        assert built(json.loads(json.dumps(plan))).eva.pos_embed.shape == (1, 6 * 4 * 2, 96)
        (adapted,) = [r.how for r in report.records if r.action == "adapted"]
        assert "4x4x4 to 6x4x2" in str(adapted)

    def test_is_not_the_one_that_the_user_fine_tunes_with_where_a_file_says_another(self, tmp_path: Path) -> None:
        arch = adaptation_plan_file(tmp_path / "plan.json", TINY_PRIMUS)
        checkpoint = read(plain_file(tmp_path / "w.pth", TINY_PRIMUS), arch, (64, 64, 64))
        assert checkpoint.plan.pretrain_patch_size == (32, 32, 32)

    def test_has_the_shape_of_the_patch_embedding(self, arch: Path, tmp_path: Path) -> None:
        raw = json.loads(arch.read_text())
        raw["architecture_plans"]["arch_kwargs"]["patch_embed_size"] = [2, 8, 8]
        arch.write_text(json.dumps(raw))
        assert read(plain_file(tmp_path / "w.pth", TINY_PRIMUS), arch).plan.pretrain_patch_size == (8, 32, 32)

    def test_is_asked_for_where_the_tokens_form_no_cube(self, arch: Path, tmp_path: Path) -> None:
        weights = tensors_of(TINY_PRIMUS)
        weights["eva.pos_embed"] = weights["eva.pos_embed"][:, :48]
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"does not say with which patch it was trained: give -ps Z Y X"):
            read(tmp_path / "w.pth", arch)
        assert read(tmp_path / "w.pth", arch, (24, 32, 32)).plan.pretrain_patch_size == (24, 32, 32)


def test_the_patch_of_a_cnn_is_asked_for_and_may_be_that_of_the_fine_tuning(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"architecture_plans": raw_plan(TINY_RESENC)["architecture_plans"]}))
    weights = plain_file(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"give -ps Z Y X \(voxels\)"):
        read(weights, tmp_path / "plan.json")
    assert read(weights, tmp_path / "plan.json", (48, 32, 32)).plan.recommended_downstream_patchsize == (48, 32, 32)


def test_without_the_flag_a_checkpoint_is_read_as_it_is(tmp_path: Path) -> None:
    said = json.loads(json.dumps(read(TINY_RESENC).plan.raw))
    assert said == {k: v for k, v in raw_plan(TINY_RESENC).items() if k in said}
    with pytest.raises(UserError, match=r"say which network it is with -arch .*nnUNetv2_plan_like_dynamic"):
        _ = read(plain_file(tmp_path / "w.pth")).plan


def test_a_checkpoint_that_says_itself_what_it_is_takes_no_other_word(plain_model: StockModel, tmp_path: Path) -> None:
    alone = tmp_path / "model.pth"
    alone.symlink_to(plain_model.checkpoint)  # its plans are in it too
    for source in (TINY_RESENC, plain_model.folder, plain_model.checkpoint, alone):
        with pytest.raises(UserError, match="says itself which network it is of: leave -arch out"):
            read(source, "ResEncL", (64, 64, 64))


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("ResEnc", r"'ResEnc' is not known; did you mean ResEncL\?"),
        ("SwinUNETR", r"'SwinUNETR' is not known .*ResEncL.*PrimusM"),
        ("plan.json", r"there is no file plan\.json \(-arch\): give a plan's JSON file, or one of ResEncL"),
        ("no/such/plan", r"there is no file no/such/plan \(-arch\)"),
        ("ResidualEncoderUNet", r"lack n_stages"),
    ],
)
def test_a_name_or_file_that_is_none_is_refused(arch: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read(plain_file(tmp_path / "w.pth"), arch, (32, 32, 32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds a list where nnU-Net has a JSON object"),
        ('{"a": 1}', r"neither an adaptation plan \(with architecture_plans\) nor an nnU-Net plan \(with 3d_fullres\)"),
        ('{"configurations": {"2d": {}}}', "neither an adaptation plan .* nor an nnU-Net plan"),
        ('{"configurations": {"3d_fullres": {"patch_size": [8, 8, 8]}}}', r"nnU-Net cannot read 3d_fullres of .*-arch"),
        ('{"architecture_plans": {"arch_kwargs": {}}}', r"arch_class_name"),
        ('{"architecture_plans": "ResEncL", "pretrain_patch_size": [8]}', "'pretrain_patch_size' is .8. where three"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read(plain_file(tmp_path / "w.pth"), tmp_path / "plan.json", (32, 32, 32))


def test_a_2d_plan_is_refused(tmp_path: Path, base_plan: dict[str, Any]) -> None:
    (tmp_path / "2d.json").write_text(json.dumps({"configurations": {"2d": base_plan["configurations"]["2d"]}}))
    with pytest.raises(UserError, match=r"nor an nnU-Net plan \(with 3d_fullres\)"):
        read(plain_file(tmp_path / "w.pth"), tmp_path / "2d.json")
    flat = base_plan["configurations"]["2d"]
    (tmp_path / "flat.json").write_text(json.dumps({"configurations": {"3d_fullres": flat}}))
    with pytest.raises(UserError, match=r"flat\.json is 2D \(its patch is \d+ x \d+\).*3D networks only"):
        read(plain_file(tmp_path / "w.pth"), tmp_path / "flat.json")


def test_weights_of_another_network_are_found_out_when_planning(
    tmp_path: Path, base_plan: dict[str, Any], dataset_json: dict[str, Any]
) -> None:
    (tmp_path / "plans.json").write_text(json.dumps(residual_base_plan(base_plan, (8, 16, 32, 48))))
    checkpoint = read(plain_file(tmp_path / "w.pth"), tmp_path / "plans.json")
    with pytest.raises(UserError, match=r"100\.0% must \(-min_coverage\).*of another width"):
        make_plan(base_plan, dataset_json, checkpoint, TargetSpacing((1, 1, 1)), PlanOptions("x"), "0" * 64)
