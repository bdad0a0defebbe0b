"""A model that nnU-Net trained is a checkpoint, in every form that users have one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.checkpoints.reading import SUPERVISED, PretrainedCheckpoint, read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from tests.checkpoints.models import configuration, copy_of_model, edit_plans, trained_weights
from tests.conftest import Model, StockModel


@pytest.fixture(params=["plain_model", "residual_model"])
def stock(request: pytest.FixtureRequest) -> StockModel:
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(plain_model: StockModel, tmp_path: Path) -> Path:
    return copy_of_model(plain_model.folder, tmp_path / plain_model.folder.name)


def read(source: Path) -> PretrainedCheckpoint:
    return read_checkpoint(resolve_checkpoint_source(str(source)))


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(source)
    message = str(caught.value)
    assert source.name in message
    assert "\n" not in message
    return message


def empty_model(folder: Path, *checkpoints: str) -> Path:
    for file in ("plans.json", "dataset.json", *checkpoints):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize("what", [".", "fold_0", "fold_0/checkpoint_final.pth"])
def test_folder_fold_and_checkpoint_mean_the_same_model(stock: StockModel, what: str) -> None:
    found = read(stock.folder / what)
    weights = trained_weights(stock.checkpoint)
    assert found.file.path == stock.checkpoint
    assert found.file.model_folder == stock.folder
    assert found.kind == SUPERVISED
    assert list(found.network_weights) == list(weights)
    assert all(torch.equal(found.network_weights[name], weights[name]) for name in weights)


def test_a_model_is_what_its_plans_say(stock: StockModel) -> None:
    plan, told = read(stock.folder).plan, configuration(stock.folder)
    assert plan.architecture_name == told["architecture"]["network_class_name"].rsplit(".", 1)[1]
    assert plan.architecture_kwargs == told["architecture"]["arch_kwargs"]
    assert plan.pretrain_patch_size == plan.recommended_downstream_patchsize == tuple(told["patch_size"])
    assert plan.spacing == tuple(told["spacing"])
    assert plan.pretrain_num_input_channels == 4
    assert plan.normalization_schemes == tuple(told["normalization_schemes"])
    assert plan.use_mask_for_norm == tuple(told["use_mask_for_norm"])


def test_a_model_names_its_trainer_and_the_dataset_it_knows(stock: StockModel) -> None:
    found = read(stock.folder)
    assert found.trainer_name == "nnUNetTrainerTiny"
    assert found.dataset_json == json.loads((stock.folder / "dataset.json").read_text())
    assert found.plan.raw["pretrain_plan"]["dataset_name"] == stock.workplace.dataset


def test_another_checkpoint_of_the_fold_is_taken_where_it_is_named(plain_model: StockModel) -> None:
    best = plain_model.checkpoint.with_name("checkpoint_best.pth")
    found, weights = read(best), trained_weights(best)
    assert found.file.path == best
    assert all(torch.equal(found.network_weights[name], weights[name]) for name in weights)


def test_a_checkpoint_taken_out_of_its_folder_knows_its_plans(stock: StockModel, tmp_path: Path) -> None:
    alone = Path(shutil.copy(stock.checkpoint, tmp_path / "from a colleague.pth"))
    found, in_folder = read(alone), read(stock.folder)
    assert found.file.model_folder is None
    assert found.kind == SUPERVISED
    assert found.plan == in_folder.plan
    assert found.dataset_json == in_folder.dataset_json


def test_a_renamed_folder_is_the_same_model(model: Path, plain_model: StockModel) -> None:
    assert read(model.rename(model.with_name("liver, 2024"))).plan == read(plain_model.folder).plan


def test_a_link_to_a_folder_is_the_same_model(model: Path) -> None:
    link = model.with_name("link")
    link.symlink_to(model)
    assert read(link).plan == read(model).plan


@pytest.mark.parametrize("name", ["3d_lowres", "3d_cascade_fullres"])
def test_the_folder_s_name_says_which_configuration_was_trained(model: Path, name: str) -> None:
    edit_plans(model, **{name: {"inherits_from": "3d_fullres", "spacing": [2.5, 2.0, 1.5], "patch_size": [16, 32, 48]}})
    plan = read(model.rename(model.with_name(f"nnUNetTrainer__nnUNetPlans__{name}"))).plan
    assert (plan.spacing, plan.pretrain_patch_size) == ((2.5, 2.0, 1.5), (16, 32, 48))
    assert (
        plan.architecture_kwargs
        == configuration(model.parent / f"nnUNetTrainer__nnUNetPlans__{name}")["architecture"]["arch_kwargs"]
    )


def test_the_cascade_s_further_channels_are_counted_in_its_weights(model: Path) -> None:
    edit_plans(model, **{"3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}})
    model = model.rename(model.with_name("nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"))
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    stem = content["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"]
    for name in ("encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.0.convs.0.all_modules.0.weight"):
        content["network_weights"][name] = torch.cat([stem, stem[:, :2]], dim=1)
    checkpoint.unlink()  # a link to the session's model
    torch.save(content, checkpoint)
    assert read(model).plan.pretrain_num_input_channels == 6


def test_a_model_that_did_not_resample_has_no_spacing(model: Path) -> None:
    edit_plans(model, **{"3d_fullres": {**configuration(model), "resampling_fn_data": "no_resampling_hack"}})
    plan = read(model).plan
    assert (plan.spacing, plan.spacing_style) == (None, "noresample")


def test_nnunet_s_older_plans_without_an_architecture_describe_the_same_network(
    stock: StockModel, tmp_path: Path
) -> None:
    folder = copy_of_model(stock.folder, tmp_path / stock.folder.name)
    told = configuration(folder)
    architecture = told.pop("architecture")
    arguments = architecture["arch_kwargs"]
    blocks = "n_conv_per_stage" if "n_conv_per_stage" in arguments else "n_blocks_per_stage"
    told |= {
        "UNet_class_name": architecture["network_class_name"].rsplit(".", 1)[1],
        "UNet_base_num_features": arguments["features_per_stage"][0],
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": arguments[blocks],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [3, 3, 3],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    edit_plans(folder, **{"3d_fullres": told})
    with pytest.warns(UserWarning, match="old nnU-Net plans format"):
        plan = read(folder).plan
    assert plan.architecture_kwargs == arguments
    assert plan.architecture_name == architecture["network_class_name"].rsplit(".", 1)[1]


def test_a_model_that_this_package_fine_tuned_is_a_source_again(resenc_model: Model) -> None:
    found = read(resenc_model.folder)
    assert found.kind == SUPERVISED
    assert found.plan.architecture_name == "ResidualEncoderUNet"
    assert found.plan.pretrain_patch_size == (32, 32, 32)
    weights = trained_weights(resenc_model.fold / "checkpoint_final.pth")
    assert all(torch.equal(found.network_weights[name], weights[name]) for name in weights)


def test_a_transformer_that_this_package_fine_tuned_is_a_source_again(primus_model: Model) -> None:
    plan = read(primus_model.folder).plan
    assert (plan.architecture_name, plan.key_to_encoder, plan.key_to_lpe) == ("Primus", "eva", "eva.pos_embed")


@pytest.mark.parametrize(
    ("checkpoints", "chosen"),
    [
        (["fold_1/checkpoint_final.pth", "fold_0/checkpoint_final.pth"], "fold_0/checkpoint_final.pth"),
        (["fold_10/checkpoint_final.pth", "fold_9/checkpoint_final.pth"], "fold_9/checkpoint_final.pth"),
        (["fold_0/checkpoint_final.pth", "fold_all/checkpoint_final.pth"], "fold_all/checkpoint_final.pth"),
        (["fold_0/checkpoint_latest.pth", "fold_0/checkpoint_best.pth"], "fold_0/checkpoint_best.pth"),
        (["fold_0/checkpoint_best.pth", "fold_0/checkpoint_final.pth"], "fold_0/checkpoint_final.pth"),
        (["fold_3/checkpoint_latest.pth"], "fold_3/checkpoint_latest.pth"),
        (["fold_0/training_log.txt", "fold_2/checkpoint_final.pth"], "fold_2/checkpoint_final.pth"),
        (["fold_x/checkpoint_final.pth", "fold_2/checkpoint_best.pth"], "fold_2/checkpoint_best.pth"),
    ],
)
def test_of_several_checkpoints_the_most_finished_of_the_first_fold_is_taken(
    tmp_path: Path, checkpoints: list[str], chosen: str
) -> None:
    folder = empty_model(tmp_path / "T__P__3d_fullres", *checkpoints)
    assert resolve_checkpoint_source(str(folder)).path == folder / chosen


@pytest.mark.parametrize(
    ("present", "chosen"), [(["best", "latest"], "best"), (["latest"], "latest"), (["latest", "final"], "final")]
)
def test_a_fold_folder_means_its_most_finished_checkpoint(tmp_path: Path, present: list[str], chosen: str) -> None:
    folder = empty_model(tmp_path / "T__P__3d_fullres", *(f"fold_2/checkpoint_{name}.pth" for name in present))
    found = resolve_checkpoint_source(str(folder / "fold_2"))
    assert (found.path.name, found.model_folder) == (f"checkpoint_{chosen}.pth", folder)


def test_a_folder_of_models_is_refused_with_their_names(plain_model: StockModel, residual_model: StockModel) -> None:
    message = refusal(plain_model.folder.parent)
    assert plain_model.folder.name in message
    assert residual_model.folder.name in message


@pytest.mark.parametrize("missing", ["plans.json", "dataset.json"])
def test_a_model_folder_without_its_json_files_is_refused_by_their_name(model: Path, missing: str) -> None:
    (model / missing).unlink()
    assert f"no {missing}" in refusal(model)


@pytest.mark.parametrize("missing", ["plans.json", "dataset.json"])
def test_the_checkpoint_in_a_folder_without_its_json_files_still_knows_itself(
    model: Path, plain_model: StockModel, missing: str
) -> None:
    (model / missing).unlink()
    assert read(model / "fold_0" / "checkpoint_final.pth").plan == read(plain_model.folder).plan


def test_a_model_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = empty_model(tmp_path / "T__P__3d_fullres", "fold_0/training_log.txt")
    assert "no checkpoint in its folds" in refusal(folder)


@pytest.mark.parametrize("moved", [True, False])
def test_a_2d_model_is_refused(model: Path, tmp_path: Path, moved: bool) -> None:
    source = model.rename(model.with_name("nnUNetTrainer__nnUNetPlans__2d"))
    if moved:
        content = torch.load(source / "fold_0" / "checkpoint_final.pth", weights_only=False)
        content["init_args"]["configuration"] = "2d"
        source = tmp_path / "flat.pth"
        torch.save(content, source)
    assert "is 2D (its patch is 32 x 32)" in refusal(source)


def keep_weights_alone(model: Path) -> None:
    """Without the plans that nnU-Net keeps in the checkpoint too, which win where the two differ."""
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    weights = trained_weights(checkpoint)
    checkpoint.unlink()
    torch.save({"network_weights": weights}, checkpoint)


def test_plans_of_another_network_in_the_folder_give_way_to_those_in_the_checkpoint(
    plain_model: StockModel, residual_model: StockModel, model: Path
) -> None:
    shutil.copy(residual_model.folder / "plans.json", model / "plans.json")
    with pytest.warns(UserWarning, match=r"plans\.json' differs from the plans inside the checkpoint \(architecture\)"):
        plan = read(model).plan
    assert plan.architecture_name == "PlainConvUNet"
    assert plan.architecture_kwargs == configuration(plain_model.folder)["architecture"]["arch_kwargs"]


def test_a_folder_whose_configuration_is_told_nowhere_is_refused(model: Path) -> None:
    keep_weights_alone(model)
    assert "TRAINER__PLANS__CONFIGURATION" in refusal(model.rename(model.with_name("liver")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": None}, "3d_fullres"),
        ({"patch_size": 32}, "3d_fullres"),
        ({"spacing": ["a", "b", "c"]}, "3d_fullres"),
        ({"inherits_from": "4d_fullres"}, "4d_fullres"),
        ({"inherits_from": "3d_fullres"}, "3d_fullres"),
        ({"architecture": None}, "3d_fullres"),
        ({"architecture": {}}, "network_class_name"),
        ({"architecture": {"network_class_name": "my.own.Net", "arch_kwargs": {}}}, "my.own.Net"),
        ({"architecture": {"network_class_name": "os.system", "arch_kwargs": {"command": "true"}}}, "os.system"),
    ],
)
def test_plans_that_do_not_describe_the_network_are_refused(model: Path, change: dict[str, Any], said: str) -> None:
    edit_plans(model, **{"3d_fullres": {**configuration(model), **change}})
    keep_weights_alone(model)
    assert said in refusal(model)


@pytest.mark.parametrize("plans", ["{", "[]", '{"configurations": []}', "{}"])
def test_plans_that_are_none_are_refused(model: Path, plans: str) -> None:
    (model / "plans.json").write_text(plans)
    assert "plans.json" in refusal(model)


def test_weights_of_another_network_than_the_plans_say_are_refused(
    plain_model: StockModel, residual_model: StockModel, model: Path
) -> None:
    shutil.copy(residual_model.folder / "plans.json", model / "plans.json")
    keep_weights_alone(model)
    message = refusal(model)
    assert "'encoder.stem'" in message
    assert "encoder.stages" in message


def test_a_model_s_description_is_a_value_that_programs_can_keep(plain_model: StockModel) -> None:
    raw = read(plain_model.folder).plan.raw
    assert json.loads(json.dumps(raw)) == raw
