"""The dynamic route keeps what the dataset's own nnU-Net plan says, and adds where the weights come from."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.data_settings import settings_that_shape_data
from nnunetv2_ext.planning.dynamic_plan import DynamicPlanOptions, make_dynamic_plan
from nnunetv2_ext.planning.names import dynamic_file_stem
from nnunetv2_ext.planning.pretrain_info import TransferOptions
from nnunetv2_ext.recipes.resolving import recipe_for
from tests.planning.networks import built, configuration_of
from tests.planning.test_pretrained_plan import FORK_KEYS
from tests.planning.variants import OLD_ARCHITECTURE_KEYS, old_plan, residual_base_plan

RESIDUAL = ("features_per_stage", "kernel_sizes", "strides", "n_blocks_per_stage", "n_conv_per_stage_decoder")


@pytest.fixture
def residual(base_plan: dict[str, Any]) -> dict[str, Any]:
    """The dataset's plan with a ResEnc of the widths of `tiny_resenc`, but three stages and flat kernels at first."""
    return residual_base_plan(base_plan)


class Make:
    """`make_dynamic_plan`, as it comes back from a plans file."""

    def __init__(self, base_plan: dict[str, Any], dataset_json: dict[str, Any]) -> None:
        self.base_plan = base_plan
        self.dataset_json = dataset_json

    def __call__(self, checkpoint: PretrainedCheckpoint, **options: Any) -> dict[str, Any]:
        chosen = DynamicPlanOptions(**{"name": "MAE", **options})
        plan, _ = make_dynamic_plan(self.base_plan, self.dataset_json, checkpoint, chosen, "ab" * 32)
        return json.loads(json.dumps(plan))


@pytest.fixture
def make(residual: dict[str, Any], dataset_json: dict[str, Any]) -> Make:
    return Make(residual, dataset_json)


def shapes(network: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]


def test_the_file_and_the_plan_in_it_are_called_as_the_issue_says(
    make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    assert dynamic_file_stem("MAE_2") == "ptPlans_dynamic__MAE_2"
    assert make(tiny_resenc, name="MAE_2")["plans_name"] == "ptPlans_dynamic_MAE_2"


def test_all_of_the_datasets_own_plan_is_kept(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    plan = make(tiny_resenc)
    ours = {"plans_name", "configurations", "finetuning", "pretrain_info"}
    assert {k: v for k, v in plan.items() if k not in ours} == {
        k: v for k, v in make.base_plan.items() if k not in ours
    }
    assert set(plan) - set(make.base_plan) == {"finetuning", "pretrain_info"}
    assert list(plan["configurations"]) == ["3d_fullres"]
    own = make.base_plan["configurations"]["3d_fullres"]
    configuration = plan["configurations"]["3d_fullres"]
    assert {k: v for k, v in configuration.items() if k != "architecture"} == {
        k: v for k, v in own.items() if k != "architecture"
    }


def test_stock_nnunet_builds_the_network_that_it_builds_from_the_base_plan(
    make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    ours, stock = built(make(tiny_resenc)), built(make.base_plan)
    assert type(ours) is type(stock)
    assert shapes(ours) == shapes(stock)
    ours.load_state_dict(stock.state_dict())
    image = torch.randn(1, 1, *configuration_of(make.base_plan).patch_size, generator=torch.manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(image), stock(image))


def test_stock_nnunets_own_plain_network_stays_too(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], plain_checkpoint: PretrainedCheckpoint
) -> None:
    plan = Make(base_plan, dataset_json)(plain_checkpoint)
    assert shapes(built(plan)) == shapes(built(base_plan))
    assert configuration_of(plan).network_arch_class_name == configuration_of(base_plan).network_arch_class_name


def test_cases_that_stock_nnunet_preprocesses_for_its_own_plan_are_the_same(
    make: Make, tiny_resenc: PretrainedCheckpoint, stock_plan: dict[str, Any]
) -> None:
    plan, own = make(tiny_resenc), stock_plan["configurations"]["3d_fullres"]
    configuration = plan["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == own["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert settings_that_shape_data(plan, configuration) == settings_that_shape_data(stock_plan, own)


def test_another_normalisation_shapes_other_data(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    make.base_plan["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    plan = make(tiny_resenc, normalization="zscore")
    configuration = plan["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"]
    own = "_".join(f"{s:.2f}" for s in configuration["spacing"])
    assert configuration["data_identifier"] == f"Spacing__{own}___Norm__Z"
    assert configuration["spacing"] == make.base_plan["configurations"]["3d_fullres"]["spacing"]


def test_z_scores_where_nnunet_takes_them_anyway_change_nothing(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    assert make(tiny_resenc, normalization="zscore") == make(tiny_resenc)


def test_the_users_patch_and_batch_win(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    plan = make(tiny_resenc, patch_size=(16, 48, 32), batch_size=5)
    configuration = configuration_of(plan)
    assert (configuration.patch_size, configuration.batch_size) == ([16, 48, 32], 5)
    assert plan["pretrain_info"]["pt_recommended_downstream_patchsize"] == [16, 48, 32]
    assert configuration.data_identifier == "nnUNetPlans_3d_fullres"
    with torch.no_grad():
        assert built(plan)(torch.zeros(1, 1, 16, 48, 32)).shape == (1, 3, 16, 48, 32)


def test_a_patch_that_the_datasets_network_cannot_take_is_refused(
    make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    with pytest.raises(UserError, match=r"multiple of 2 x 4 x 4; the nearest valid .*\(-ps\)"):
        make(tiny_resenc, patch_size=(16, 30, 32))


def test_half_of_encoder_and_stem_must_arrive_unless_the_user_asks_for_more(
    make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    assert make(tiny_resenc)["pretrain_info"]["transfer"]["min_coverage"] == 0.5
    stages = make.base_plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    stages["features_per_stage"] = [8, 16, 40]
    with pytest.raises(UserError, match=r"and 50\.0% must \(-min_coverage\): encoder: \d+ tensors of another width"):
        make(tiny_resenc)
    plan = make(tiny_resenc, transfer=TransferOptions(min_coverage=0.0))
    assert plan["pretrain_info"]["transfer"]["min_coverage"] == 0.0


def test_nothing_in_common_is_refused_whatever_the_coverage(make: Make, tiny_primus: PretrainedCheckpoint) -> None:
    with pytest.raises(UserError, match=r"nothing in common.*names nearest to encoder\.\S+ are "):
        make(tiny_primus, transfer=TransferOptions(min_coverage=0.0))


def test_a_checkpoint_of_another_class_of_networks_comes_with_the_way_out(
    make: Make, base_plan: dict[str, Any], tiny_resenc: PretrainedCheckpoint, tiny_primus: PretrainedCheckpoint
) -> None:
    with pytest.raises(
        UserError, match=r"It is a Primus, .* a ResidualEncoderUNet: plan the checkpoint.s own network"
    ) as caught:
        make(tiny_primus)
    assert "nnUNetv2_preprocess_like_nnssl" in str(caught.value)
    make.base_plan = base_plan
    with pytest.raises(UserError, match=r"It is a ResidualEncoderUNet, .* a PlainConvUNet: give a plan") as caught:
        make(tiny_resenc)
    assert "-pl nnUNetPlannerResEncM" in str(caught.value)


def test_pretrain_info_has_what_the_fork_reads_and_the_patch_of_both_networks(
    make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    info = make(tiny_resenc)["pretrain_info"]
    assert set(info) >= FORK_KEYS
    assert (info["key_to_encoder"], info["key_to_stem"]) == ("encoder.stages", "encoder.stem")
    assert info["pt_used_patchsize"] == [32, 32, 32]
    assert (info["checkpoint_name"], info["checkpoint_sha256"]) == ("MAE", "ab" * 32)


def test_the_recipe_of_the_datasets_network_travels_in_the_plan(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    assert recipe_for("cnn", planned=make(tiny_resenc)["finetuning"]["recipe"]) == recipe_for("cnn")


def test_the_base_plan_is_not_changed(make: Make, tiny_resenc: PretrainedCheckpoint, residual: dict[str, Any]) -> None:
    before = copy.deepcopy(residual)
    make(tiny_resenc, patch_size=(16, 16, 16), normalization="zscore")
    assert make.base_plan == before


def test_a_configuration_that_inherits_is_resolved(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    expected = make(tiny_resenc)
    configurations = make.base_plan["configurations"]
    configurations["3d_lowres"] = configurations["3d_fullres"]
    configurations["3d_fullres"] = {"inherits_from": "3d_lowres", "previous_stage": "3d_lowres"}
    assert make(tiny_resenc) == expected


def test_plans_from_before_architectures_were_named_build_the_same_network(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], plain_checkpoint: PretrainedCheckpoint
) -> None:
    expected = Make(base_plan, dataset_json)(plain_checkpoint)
    old = old_plan(base_plan)
    assert "architecture" not in old["configurations"]["3d_fullres"]
    plan = Make(old, dataset_json)(plain_checkpoint)
    assert not OLD_ARCHITECTURE_KEYS & set(plan["configurations"]["3d_fullres"])
    assert shapes(built(plan)) == shapes(built(expected))
    assert (
        plan["configurations"]["3d_fullres"]["architecture"] == expected["configurations"]["3d_fullres"]["architecture"]
    )


def test_an_old_plan_whose_network_nnunet_no_longer_knows_is_a_line_for_the_user(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], tiny_resenc: PretrainedCheckpoint
) -> None:
    old = old_plan(base_plan)
    old["configurations"]["3d_fullres"]["UNet_class_name"] = "MyUNet"
    with pytest.raises(UserError, match=r"nnU-Net cannot read 3d_fullres of nnUNetPlans.*MyUNet"):
        Make(old, dataset_json)(tiny_resenc)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network_class_name": "my_lab.networks.UNet"}, r"'my_lab\.networks\.UNet' is not known"),
        ({"network_class_name": "dynamic_network_architectures.architectures.unet.UNetDecoder"}, "is not known"),
        ({"arch_kwargs": {}}, "lack n_stages"),
        (
            {"arch_kwargs": {"n_stages": 1, **{k: [1] for k in RESIDUAL}, "gates": 1}},
            "takes no argument gates",
        ),
    ],
)
def test_a_network_that_is_not_nnunets_own_names_the_plan_and_the_way_out(
    changes: dict[str, Any], words: str, make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    make.base_plan["configurations"]["3d_fullres"]["architecture"] |= changes
    with pytest.raises(UserError, match=rf"the dataset's own plan nnUNetPlans is not one.*({words}).*\(-pl\)"):
        make(tiny_resenc)


def test_a_2d_dataset_is_refused(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    del make.base_plan["configurations"]["3d_fullres"]
    with pytest.raises(UserError, match=r"nnUNetPlans has no configuration 3d_fullres: .* 3D images"):
        make(tiny_resenc)


def test_stock_nnunet_reads_the_plan(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    manager = PlansManager(make(tiny_resenc))
    assert manager.plans_name == "ptPlans_dynamic_MAE"
    assert manager.get_label_manager(make.dataset_json).num_segmentation_heads == 3
    assert manager.get_configuration("3d_fullres").preprocessor_class.__name__ == "DefaultPreprocessor"
