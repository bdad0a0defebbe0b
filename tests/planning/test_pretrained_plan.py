"""A ptPlan is a stock nnU-Net plan: everything in it resolves in stock nnU-Net, and says what the user chose."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.modes import TargetSpacing, target_spacing
from nnunetv2_ext.planning.pretrain_info import TransferOptions
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from nnunetv2_ext.recipes.resolving import recipe_for
from tests.conftest import Workplace
from tests.planning.networks import built, configuration_of
from tests.planning.variants import pretrained_with

ONE_MM = TargetSpacing((1.0, 1.0, 1.0))
ROLES = ("data", "seg", "probabilities")
# what the nnssl fork and nnU-Net's development branch read
FORK_KEYS = {
    "checkpoint_path", "checkpoint_name", "key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe",
    "pt_num_in_channels", "pt_used_patchsize", "pt_recommended_downstream_patchsize", "citations",
}  # fmt: skip


class Make:
    """`make_plan` on the stock plan, as it comes back from a plans file."""

    def __init__(self, base_plan: dict[str, Any], dataset_json: dict[str, Any]) -> None:
        self.base_plan = base_plan
        self.dataset_json = dataset_json

    def __call__(
        self, checkpoint: PretrainedCheckpoint, spacing: TargetSpacing = ONE_MM, **options: Any
    ) -> dict[str, Any]:
        chosen = PlanOptions(**{"name": "MAE", **options})
        plan, _ = make_plan(self.base_plan, self.dataset_json, checkpoint, spacing, chosen, "ab" * 32)
        return json.loads(json.dumps(plan))


@pytest.fixture
def make(base_plan: dict[str, Any], dataset_json: dict[str, Any]) -> Make:
    return Make(base_plan, dataset_json)


@pytest.mark.parametrize("checkpoint", ["tiny_resenc", "tiny_primus"])
def test_everything_the_plan_names_resolves_in_stock_nnunet(
    checkpoint: str, make: Make, request: pytest.FixtureRequest
) -> None:
    plan = make(request.getfixturevalue(checkpoint))
    manager = PlansManager(plan)
    configuration = configuration_of(plan)
    assert configuration.preprocessor_class is DefaultPreprocessor
    assert manager.image_reader_writer_class is SimpleITKIO
    assert isinstance(manager.get_label_manager(make.dataset_json), LabelManager)
    image = np.random.default_rng(0).random((1, 6, 7, 8)).astype(np.float32)
    for role in ROLES:
        resampled = getattr(configuration, f"resampling_fn_{role}")(image, (3, 7, 9), [2, 1, 1], [1, 1, 1])
        assert tuple(resampled.shape) == (1, 3, 7, 9)
    assert built(plan)(torch.zeros(1, 1, *configuration.patch_size)).shape == (1, 3, *configuration.patch_size)


def test_there_is_one_configuration_that_inherits_from_none(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    lowres = copy.deepcopy(make.base_plan["configurations"]["3d_fullres"])
    make.base_plan["configurations"]["3d_lowres"] = lowres
    make.base_plan["configurations"]["3d_fullres"] = {"inherits_from": "3d_lowres", "previous_stage": "3d_lowres"}
    plan = make(tiny_resenc)
    assert list(plan["configurations"]) == ["3d_fullres"]
    configuration = plan["configurations"]["3d_fullres"]
    assert not {"inherits_from", "previous_stage", "next_stage"} & set(configuration)
    assert configuration["preprocessor_name"] == lowres["preprocessor_name"]


def test_what_the_dataset_is_stays_as_in_the_stock_plan(
    make: Make, tiny_resenc: PretrainedCheckpoint, stock_plan: dict[str, Any]
) -> None:
    plan = make(tiny_resenc)
    ours = {"plans_name", "configurations", "finetuning", "pretrain_info"}
    assert {k: v for k, v in plan.items() if k not in ours} == {
        k: v for k, v in stock_plan.items() if k not in ("plans_name", "configurations")
    }
    configuration, stock = plan["configurations"]["3d_fullres"], stock_plan["configurations"]["3d_fullres"]
    for role in ROLES:
        for key in (f"resampling_fn_{role}", f"resampling_fn_{role}_kwargs"):
            assert configuration[key] == stock[key]


def test_the_stock_plan_is_not_changed(
    make: Make, tiny_resenc: PretrainedCheckpoint, stock_plan: dict[str, Any]
) -> None:
    make(tiny_resenc, TargetSpacing((1, 1, 1), resample=False))
    assert make.base_plan == stock_plan


@pytest.mark.parametrize(
    ("mode", "override", "spacing", "name"),
    [
        ("like_pretrained", None, [1, 1, 1], "ptPlans_MAE_Spacing_1.00_1.00_1.00_Norm_Z"),
        ("fixed", (2, 1.25, 1), [2, 1.25, 1], "ptPlans_MAE_Spacing_2.00_1.25_1.00_Norm_Z"),
        ("no_resample", None, None, "ptPlans_MAE_Spacing_None_None_None_Norm_Z"),
        ("default_nnunet", None, None, None),
    ],
)
def test_every_mode_gives_its_spacing_and_name(
    mode: str, override: tuple[float, ...] | None, spacing: list[float] | None, name: str | None,
    make: Make, tiny_resenc: PretrainedCheckpoint, stock_plan: dict[str, Any],
) -> None:  # fmt: skip
    own = stock_plan["configurations"]["3d_fullres"]["spacing"]
    plan = make(tiny_resenc, target_spacing(mode, tiny_resenc.adaptation_plan, own, override))
    assert configuration_of(plan).spacing == (spacing or own)
    assert plan["plans_name"] == (name or "ptPlans_MAE_Spacing_" + "_".join(f"{s:.2f}" for s in own) + "_Norm_Z")


def test_without_resampling_all_three_functions_are_stocks_hack_without_arguments(
    make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    plan = make(tiny_resenc, TargetSpacing((1.5, 1.0, 1.1), resample=False))
    configuration = configuration_of(plan)
    image = np.random.default_rng(0).random((1, 6, 7, 8)).astype(np.float32)
    for role in ROLES:
        assert plan["configurations"]["3d_fullres"][f"resampling_fn_{role}_kwargs"] == {}
        function = getattr(configuration, f"resampling_fn_{role}")
        assert getattr(function, "func", function) is no_resampling_hack
        assert function(image, (3, 3, 3), [1, 1, 1], configuration.spacing) is image
    assert configuration.spacing == [1.5, 1.0, 1.1]
    assert configuration.data_identifier == "Spacing__None_None_None___Norm__Z"


def test_the_patch_is_the_recommended_one_unless_the_user_gives_another(
    make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    recommending = pretrained_with(tiny_resenc, {"recommended_downstream_patchsize": [48, 32, 40]})
    plan = make(recommending)
    assert configuration_of(plan).patch_size == [48, 32, 40]
    assert plan["pretrain_info"]["pt_used_patchsize"] == [32, 32, 32]
    other = make(recommending, patch_size=(64, 32, 32), batch_size=3)
    assert configuration_of(other).patch_size == [64, 32, 32]
    assert configuration_of(other).batch_size == 3
    assert other["pretrain_info"]["pt_recommended_downstream_patchsize"] == [64, 32, 32]
    assert configuration_of(plan).batch_size == 2


def test_primus_is_built_for_the_patch_of_the_plan(make: Make, tiny_primus: PretrainedCheckpoint) -> None:
    plan = make(tiny_primus, patch_size=(16, 48, 32))
    assert configuration_of(plan).network_arch_init_kwargs["input_shape"] == [16, 48, 32]
    assert tuple(built(plan).eva.pos_embed.shape) == (1, 2 * 6 * 4, 96)


@pytest.mark.parametrize("patch_size", [(30, 32, 32), (32, 32), (8, 8, 8)])
def test_a_patch_that_the_network_cannot_take_is_refused(
    patch_size: tuple[int, ...], make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    with pytest.raises(UserError, match=r"-ps|3 positive numbers"):
        make(tiny_resenc, patch_size=patch_size)


def test_the_median_size_is_what_stock_nnunet_resamples_to(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    configuration = configuration_of(make(tiny_resenc, TargetSpacing((0.7, 2.0, 1.3))))
    own = configuration_of(make.base_plan)
    expected = compute_new_shape(own.configuration["median_image_size_in_voxels"], own.spacing, (0.7, 2.0, 1.3))
    assert np.round(configuration.configuration["median_image_size_in_voxels"]) == pytest.approx(expected, abs=1)


class TestAxisOrder:
    """The coarsest axis of the dataset is its last; nnU-Net moves it to the front, where the network has its own."""

    SPACING = (3.0, 1.0, 0.8)
    PATCH = (16, 32, 48)

    @pytest.fixture
    def anisotropic(self, tiny_resenc: PretrainedCheckpoint) -> PretrainedCheckpoint:
        patch = list(self.PATCH)
        return pretrained_with(
            tiny_resenc, {"recommended_downstream_patchsize": patch}, spacing=list(self.SPACING), patch_size=patch
        )

    def test_the_dataset_is_transposed(self, stock_plan: dict[str, Any]) -> None:
        assert stock_plan["transpose_forward"] == [2, 0, 1]

    def test_spacing_and_patch_of_the_pre_training_stay_in_network_order(
        self, make: Make, anisotropic: PretrainedCheckpoint
    ) -> None:
        own = make.base_plan["configurations"]["3d_fullres"]["spacing"]
        plan = make(anisotropic, target_spacing("like_pretrained", anisotropic.adaptation_plan, own))
        assert configuration_of(plan).spacing == list(self.SPACING)
        assert configuration_of(plan).patch_size == list(self.PATCH)

    def test_the_users_spacing_and_patch_stay_in_network_order(
        self, make: Make, tiny_resenc: PretrainedCheckpoint
    ) -> None:
        own = make.base_plan["configurations"]["3d_fullres"]["spacing"]
        spacing = target_spacing("fixed", tiny_resenc.adaptation_plan, own, self.SPACING)
        plan = make(tiny_resenc, spacing, patch_size=self.PATCH)
        assert configuration_of(plan).spacing == list(self.SPACING)
        assert configuration_of(plan).patch_size == list(self.PATCH)

    def test_the_scans_coarse_last_axis_becomes_the_networks_coarse_first(
        self, make: Make, anisotropic: PretrainedCheckpoint, workplace: Workplace
    ) -> None:
        own = make.base_plan["configurations"]["3d_fullres"]["spacing"]
        plan = make(anisotropic, target_spacing("like_pretrained", anisotropic.adaptation_plan, own))
        image, label = (workplace.raw / f for f in ("imagesTr/MNI_001_0000.nii.gz", "labelsTr/MNI_001.nii.gz"))
        x, y, z = sitk.ReadImage(image).GetSpacing()
        assert x == max(x, y, z)  # SimpleITK's x is the array's last axis
        data, _, properties = DefaultPreprocessor(verbose=False).run_case(
            [str(image)], str(label), PlansManager(plan), configuration_of(plan), make.dataset_json
        )
        before = properties["shape_after_cropping_and_before_resampling"]
        expected = [round(n * s / t) for n, s, t in zip(before, (x, z, y), self.SPACING, strict=True)]
        assert list(data.shape[1:]) == expected


class TestNormalisation:
    """The stock plan as nnU-Net makes it for two channels, the first of them CT."""

    @pytest.fixture
    def ct(self, make: Make) -> Make:
        stock = make.base_plan["configurations"]["3d_fullres"]
        stock |= {
            "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
            "use_mask_for_norm": [False, True],
        }
        intensities = make.base_plan["foreground_intensity_properties_per_channel"]
        intensities["0"] |= {"percentile_00_5": -100.0, "percentile_99_5": 300.0, "mean": 50.0, "std": 80.0}
        intensities["1"] = dict(intensities["0"])
        return make

    @pytest.fixture
    def image(self) -> np.ndarray:
        return np.random.default_rng(0).normal(0, 500, (2, 24, 24, 24)).astype(np.float32)

    def normalised(self, plan: dict[str, Any], image: np.ndarray, dataset_json: dict[str, Any]) -> np.ndarray:
        label = np.ones((1, *image.shape[1:]), dtype=np.int8)
        properties = {"spacing": [1.0, 1.0, 1.0]}
        return DefaultPreprocessor(verbose=False).run_case_npy(
            image, label, properties, PlansManager(plan), configuration_of(plan), dataset_json
        )[0]

    def test_by_default_every_channel_is_z_scored(
        self, ct: Make, tiny_resenc: PretrainedCheckpoint, image: np.ndarray
    ) -> None:
        plan = ct(tiny_resenc)
        assert configuration_of(plan).data_identifier == "Spacing__1.00_1.00_1.00___Norm__Z_Z"
        data = self.normalised(plan, image, ct.dataset_json)
        np.testing.assert_allclose(data.mean((1, 2, 3)), 0, atol=1e-4)
        np.testing.assert_allclose(data.std((1, 2, 3)), 1, atol=1e-4)

    def test_default_nnunet_keeps_ct_windows(
        self, ct: Make, tiny_resenc: PretrainedCheckpoint, image: np.ndarray
    ) -> None:
        plan = ct(tiny_resenc, normalization="default_nnunet")
        configuration = configuration_of(plan)
        assert configuration.normalization_schemes == ["CTNormalization", "ZScoreNormalization"]
        assert configuration.use_mask_for_norm == [False, True]
        assert configuration.data_identifier == "Spacing__1.00_1.00_1.00___Norm__CT_Z"
        data = self.normalised(plan, image, ct.dataset_json)
        forward = [a + 1 for a in plan["transpose_forward"]]
        np.testing.assert_allclose(data[0], ((image.clip(-100, 300) - 50) / 80).transpose(0, *forward)[0], atol=1e-5)

    @pytest.mark.parametrize(
        ("pretrained", "expected"), [([True], [True, True]), ([False, True], [False, True]), (None, [False, False])]
    )
    def test_z_scores_are_masked_where_the_pre_trainings_were(
        self, pretrained: list[bool] | None, expected: list[bool], ct: Make, tiny_resenc: PretrainedCheckpoint
    ) -> None:
        plan = ct(pretrained_with(tiny_resenc, use_mask_for_norm=pretrained))
        assert configuration_of(plan).use_mask_for_norm == expected

    def test_the_network_takes_both_channels(self, ct: Make, tiny_primus: PretrainedCheckpoint) -> None:
        plan, report = make_plan(ct.base_plan, ct.dataset_json, tiny_primus, ONE_MM, PlanOptions("MAE"), "ab" * 32)
        assert len(plan["configurations"]["3d_fullres"]["normalization_schemes"]) == 2
        (adapted,) = [r for r in report.records if r.action == "adapted"]
        assert adapted.shape == (96, 2, 8, 8, 8)

    def test_another_word_is_refused(self, make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
        with pytest.raises(UserError, match="-norm takes zscore or default_nnunet, not 'minmax'"):
            make(tiny_resenc, normalization="minmax")


def test_pretrain_info_has_what_the_fork_reads_and_says_where_the_weights_are(
    make: Make, tiny_primus: PretrainedCheckpoint
) -> None:
    info = make(tiny_primus)["pretrain_info"]
    assert set(info) >= FORK_KEYS
    raw = tiny_primus.adaptation_plan.raw
    for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe"):
        assert info[key] == (list(raw[key]) if key == "keys_to_in_proj" else raw[key])
    assert info["pt_num_in_channels"] == raw["pretrain_num_input_channels"]
    assert info["checkpoint_path"] == str(tiny_primus.file.path)
    assert info["checkpoint_source"] == tiny_primus.file.source
    assert (info["checkpoint_name"], info["checkpoint_sha256"]) == ("MAE", "ab" * 32)
    assert (info["architecture_name"], info["trainer_name"]) == ("Primus", "TinyEvaMAETrainer")


@pytest.mark.parametrize(("checkpoint", "family"), [("tiny_resenc", "cnn"), ("tiny_primus", "primus")])
def test_the_recipe_of_the_architecture_travels_in_the_plan(
    checkpoint: str, family: str, make: Make, request: pytest.FixtureRequest
) -> None:
    plan = make(request.getfixturevalue(checkpoint))
    assert recipe_for(family, planned=plan["finetuning"]["recipe"]) == recipe_for(family)


def test_weights_that_do_not_fit_are_found_before_preprocessing(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    architecture = copy.deepcopy(tiny_resenc.adaptation_plan.raw["architecture_plans"])
    architecture["arch_kwargs"]["features_per_stage"] = [8, 16, 32, 48]
    with pytest.raises(UserError, match=r"100\.0% must \(-min_coverage\): encoder: 19 tensors of another width"):
        make(pretrained_with(tiny_resenc, {"architecture_plans": architecture}))


def test_the_checkpoints_own_network_takes_all_of_its_encoder_unless_the_user_asks_for_less(
    make: Make, tiny_resenc: PretrainedCheckpoint
) -> None:
    assert make(tiny_resenc)["pretrain_info"]["transfer"]["min_coverage"] == 1.0
    architecture = copy.deepcopy(tiny_resenc.adaptation_plan.raw["architecture_plans"])
    architecture["arch_kwargs"]["features_per_stage"] = [8, 16, 32, 48]
    narrower = pretrained_with(tiny_resenc, {"architecture_plans": architecture})
    assert (
        make(narrower, transfer=TransferOptions(min_coverage=0.3))["pretrain_info"]["transfer"]["min_coverage"] == 0.3
    )


def test_nan_in_a_weight_is_found_before_preprocessing(make: Make, tiny_resenc: PretrainedCheckpoint) -> None:
    name = "encoder.stages.2.blocks.0.conv1.conv.weight"
    damaged = tiny_resenc.network_weights[name].clone()
    damaged[0, 0, 0, 0, 0] = float("nan")
    aliases = {n: damaged for n, t in tiny_resenc.network_weights.items()
               if t.data_ptr() == tiny_resenc.network_weights[name].data_ptr()}  # fmt: skip
    weights = {**tiny_resenc.network_weights, **aliases}
    with pytest.raises(UserError, match=r"encoder\.stages\.2\.blocks\.0\.conv1\S* holds NaN or inf"):
        make(dataclasses.replace(tiny_resenc, network_weights=weights))


def test_labels_decide_the_number_of_outputs_of_the_network_that_is_checked(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], tiny_resenc: PretrainedCheckpoint
) -> None:
    def head(labels: dict[str, Any], **more: Any) -> tuple[int, ...]:
        described = {**dataset_json, "labels": labels, **more}
        _, report = make_plan(base_plan, described, tiny_resenc, ONE_MM, PlanOptions("MAE"), "0" * 64)
        return next(r.shape for r in report.records if r.name == "decoder.seg_layers.2.bias")

    assert head({"background": 0, "a": 1, "b": 2}) == (3,)
    assert head({"background": 0, "a": 1, "ignore": 2}) == (2,)
    assert head({"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2]) == (2,)
