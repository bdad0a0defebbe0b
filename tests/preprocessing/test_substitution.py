"""The fast functions stand in for nnU-Net's only where they compute the same; and what of nnU-Net that relies on."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling import default_resampling, no_resampling, resample_torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.preprocessing.resampling import exact_version, resample_images, resample_labels
from tests.conftest import Workplace


def stock(**arguments: Any) -> partial:
    return partial(resample_data_or_seg_to_shape, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        {"is_seg": False, "order": 1, "order_z": 3, "force_separate_z": True},
        {"is_seg": False, "order": 0, "order_z": 1, "separate_z_anisotropy_threshold": 2},
        {"order": 3, "force_separate_z": False},
    ],
)
def test_images_are_resampled_fast_with_the_plans_arguments(arguments: dict[str, Any]) -> None:
    fast = exact_version(stock(**arguments))
    assert isinstance(fast, partial)
    assert fast.func is resample_images
    assert fast.keywords == {k: v for k, v in arguments.items() if k != "is_seg"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"order": 1},
        {"order": 0},
        {"order": 1, "order_z": 0, "force_separate_z": None},
        {"order": 1, "force_separate_z": True, "separate_z_anisotropy_threshold": 2},
    ],
)
def test_labels_are_resampled_fast_with_the_plans_arguments(arguments: dict[str, Any]) -> None:
    fast = exact_version(stock(is_seg=True, **arguments))
    assert isinstance(fast, partial)
    assert fast.func is resample_labels
    assert fast.keywords == {k: v for k, v in arguments.items() if k != "order_z"}


@pytest.mark.parametrize(
    "function",
    [
        no_resampling.no_resampling_hack,
        partial(no_resampling.no_resampling_hack),
        resample_data_or_seg_to_shape,
        default_resampling.resample_data_or_seg_to_spacing,
        partial(default_resampling.resample_data_or_seg_to_spacing, is_seg=False),
        partial(resample_torch.resample_torch_fornnunet, is_seg=False),
        partial(resample_torch.resample_torch_simple, is_seg=True),
        partial(resample_data_or_seg_to_shape, new_shape=(1, 1, 1)),
        partial(resample_data_or_seg_to_shape, None),
        stock(dtype_out=float),
        stock(order=2),
        stock(order=4),
        stock(order=5),
        stock(order=3, order_z=2),
        stock(is_seg=True),  # of order 3
        stock(is_seg=True, order=3),
        stock(is_seg=True, order=1, order_z=1),
        stock(order=3, force_separate_z="yes"),
        lambda *a: a[0],
    ],
    ids=str,
)
def test_any_other_function_or_argument_runs_as_it_is(function: Any) -> None:
    assert exact_version(function) is function


def test_the_functions_of_nnunets_own_plan_are_the_fast_ones(workplace: Workplace) -> None:
    configuration = PlansManager(workplace.plan("nnUNetPlans")).get_configuration("3d_fullres")
    assert exact_version(configuration.resampling_fn_data).func is resample_images
    assert exact_version(configuration.resampling_fn_seg).func is resample_labels


def test_the_functions_that_every_stock_planner_writes_are_the_fast_ones() -> None:
    data, data_arguments, seg, seg_arguments = ExperimentPlanner.determine_resampling(None)
    assert data is seg is resample_data_or_seg_to_shape
    assert exact_version(partial(data, **data_arguments)).func is resample_images
    assert exact_version(partial(seg, **seg_arguments)).func is resample_labels


EMPTY = inspect.Parameter.empty


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (
            resample_data_or_seg_to_shape,
            {
                "data": EMPTY, "new_shape": EMPTY, "current_spacing": EMPTY, "new_spacing": EMPTY, "is_seg": False,
                "order": 3, "order_z": 0, "force_separate_z": False, "separate_z_anisotropy_threshold": 3,
            },
        ),
        (
            determine_do_sep_z_and_axis,
            {
                "force_separate_z": EMPTY, "current_spacing": EMPTY, "new_spacing": EMPTY,
                "separate_z_anisotropy_threshold": 3,
            },
        ),
        (compute_new_shape, dict.fromkeys(["old_shape", "old_spacing", "new_spacing"], EMPTY)),
        (crop_to_nonzero, {"data": EMPTY, "seg": None, "nonzero_label": -1}),
        (resize_segmentation, {"segmentation": EMPTY, "new_shape": EMPTY, "order": 3, "seg_tiebreak": "nearest"}),
        (DefaultPreprocessor.__init__, {"self": EMPTY, "verbose": True}),
        (
            DefaultPreprocessor.run_case_npy,
            dict.fromkeys(
                ["self", "data", "seg", "properties", "plans_manager", "configuration_manager", "dataset_json"], EMPTY
            ),
        ),
        (
            DefaultPreprocessor.run_case,
            dict.fromkeys(
                ["self", "image_files", "seg_file", "plans_manager", "configuration_manager", "dataset_json"], EMPTY
            ),
        ),
        (
            DefaultPreprocessor.run_case_save,
            dict.fromkeys(
                [
                    "self", "output_filename_truncated", "image_files", "seg_file", "plans_manager",
                    "configuration_manager", "dataset_json",
                ],
                EMPTY,
            ),
        ),
        (
            DefaultPreprocessor._sample_foreground_locations,
            {
                "seg": EMPTY, "classes_or_regions": EMPTY, "seed": 1234, "verbose": False, "min_num_samples": 10000,
                "min_percent_coverage": 0.01,
            },
        ),
        (
            DefaultPreprocessor._normalize,
            dict.fromkeys(
                ["self", "data", "seg", "configuration_manager", "foreground_intensity_properties_per_channel"], EMPTY
            ),
        ),
        (
            DefaultPreprocessor.modify_seg_fn,
            dict.fromkeys(["self", "seg", "plans_manager", "dataset_json", "configuration_manager"], EMPTY),
        ),
        (
            comp_blosc2_params,
            {
                "image_size": EMPTY, "patch_size": EMPTY, "bytes_per_pixel": 4, "max_block_nbytes": 128 * 1024,
                "max_chunk_nbytes": 6 * 1024**2, "max_chunk_to_patch_ratio_per_axis": 1.5,
                "grow_singleton_patch_axes": False,
            },
        ),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)  # fmt: skip
def test_nnunets_functions_still_take_what_this_package_was_written_for(
    function: Any, arguments: dict[str, Any]
) -> None:
    """If this fails, a new release of nnU-Net or batchgenerators changed what `preprocessing` stands in for."""
    assert {p.name: p.default for p in inspect.signature(function).parameters.values()} == arguments


def test_nnunet_still_saves_cases_with_the_codec_and_filters_that_it_is_given() -> None:
    assert {"codec", "filters", "filters_seg", "chunks", "blocks", "chunks_seg", "blocks_seg"} <= set(
        inspect.signature(nnUNetDatasetBlosc2.save_case).parameters
    )
