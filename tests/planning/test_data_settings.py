"""Same settings, same folder; any other settings that shape the data, another folder."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.files import write_json
from nnunetv2_ext.planning.data_settings import choose_data_identifier, settings_file, settings_that_shape_data
from tests.planning.variants import fork_plan

IDENTIFIER = "Spacing__1.00_1.00_1.00___Norm__Z"


@pytest.fixture
def plan(base_plan: dict[str, Any]) -> dict[str, Any]:
    configuration = base_plan["configurations"]["3d_fullres"]
    configuration["data_identifier"] = IDENTIFIER
    return base_plan | {"plans_name": "ptPlans_mine", "configurations": {"3d_fullres": configuration}}


def settings(plan: dict[str, Any]) -> dict[str, Any]:
    return settings_that_shape_data(plan, plan["configurations"]["3d_fullres"])


def choose(folder: Path, plan: dict[str, Any], own_plan: str = "ptPlans_mine") -> str:
    return choose_data_identifier(folder, IDENTIFIER, settings(plan), own_plan)


def changed(plan: dict[str, Any], **changes: Any) -> dict[str, Any]:
    other = copy.deepcopy(plan) | {"plans_name": "ptPlans_other"}
    for key, value in changes.items():
        (other if key in other else other["configurations"]["3d_fullres"])[key] = value
    return other


SHAPING: dict[str, dict[str, Any]] = {
    "transposition": {"transpose_forward": [0, 2, 1]},
    "reader": {"image_reader_writer": "NibabelIO"},
    "spacing in the third decimal": {"spacing": [1.001, 1.0, 1.0]},
    "normalisation": {"normalization_schemes": ["NoNormalization"]},
    "mask": {"use_mask_for_norm": [True]},
    "resampling": {"resampling_fn_data": "resample_torch_fornnunet"},
    "resampling of labels": {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 0}},
    "no resampling": {"resampling_fn_data": "no_resampling_hack", "resampling_fn_data_kwargs": {}},
    "preprocessor": {"preprocessor_name": "AnotherPreprocessor"},
}
SHAPELESS: dict[str, dict[str, Any]] = {
    "batch": {"batch_size": 7},
    "patch": {"patch_size": [64, 64, 64]},
    "network": {"architecture": {"network_class_name": "other"}},
    "probabilities": {"resampling_fn_probabilities": "no_resampling_hack"},
    "intensities that no normalisation reads": {"foreground_intensity_properties_per_channel": {"0": {"mean": 7}}},
}


@pytest.fixture(params=["recorded", "only planned"])
def claim(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    """Take the identifier for a plan: by its settings beside the folder, or by nothing but its plans file."""

    def take(plan: dict[str, Any]) -> None:
        if request.param == "recorded":
            write_json(settings_file(tmp_path, IDENTIFIER), {"settings": settings(plan)})
        else:
            write_json(tmp_path / "ptPlans_other.json", plan)

    return take


def test_an_empty_folder_gives_the_forks_name(plan: dict[str, Any], tmp_path: Path) -> None:
    assert choose(tmp_path, plan) == IDENTIFIER


@pytest.mark.parametrize("change", SHAPELESS.values(), ids=SHAPELESS)
def test_plans_that_differ_in_something_else_share_the_folder(
    change: dict[str, Any], plan: dict[str, Any], claim: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    claim(changed(plan, **change))
    assert choose(tmp_path, plan) == IDENTIFIER


@pytest.mark.parametrize("change", SHAPING.values(), ids=SHAPING)
def test_plans_that_shape_the_data_otherwise_get_folders_of_their_own(
    change: dict[str, Any], plan: dict[str, Any], claim: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    claim(changed(plan, **change))
    own = choose(tmp_path, plan)
    assert re.fullmatch(re.escape(IDENTIFIER) + "___[0-9a-f]{8}", own)
    assert choose(tmp_path, plan) == own
    another = changed(plan, spacing=[9.0, 9.0, 9.0])
    assert choose(tmp_path, another) not in (IDENTIFIER, own)


def test_ct_windows_shape_the_data(plan: dict[str, Any], tmp_path: Path) -> None:
    plan = changed(plan, normalization_schemes=["CTNormalization"])
    other = changed(plan, foreground_intensity_properties_per_channel={"0": {"mean": 7}})
    write_json(tmp_path / "ptPlans_other.json", other)
    assert choose(tmp_path, plan) != IDENTIFIER


def test_the_spacing_does_not_matter_where_nothing_is_resampled(plan: dict[str, Any]) -> None:
    still = changed(plan, resampling_fn_data="no_resampling_hack")
    assert settings(still) == settings(changed(still, spacing=[2.0, 2.0, 2.0]))


def test_the_file_of_the_plan_that_is_written_anew_does_not_count(plan: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "ptPlans_mine.json", changed(plan, spacing=[9.0, 9.0, 9.0]) | {"plans_name": "ptPlans_mine"})
    assert choose(tmp_path, plan) == IDENTIFIER


def test_cases_of_the_plan_that_is_written_anew_do_count(plan: dict[str, Any], tmp_path: Path) -> None:
    """Its cases are there with the old settings: the same plan with other settings must not mix its own with them."""
    write_json(tmp_path / "ptPlans_mine.json", plan)
    write_json(settings_file(tmp_path, IDENTIFIER), {"settings": settings(plan)})
    assert choose(tmp_path, changed(plan, spacing=[9.0, 9.0, 9.0])) != IDENTIFIER


def test_settings_read_back_from_json_are_the_same(plan: dict[str, Any]) -> None:
    assert settings(json.loads(json.dumps(plan))) == settings(plan)
    assert settings(changed(plan, spacing=(1, 1, 1))) == settings(changed(plan, spacing=[1.0, 1.0, 1.0]))


def test_other_files_in_the_folder_are_no_obstacle(plan: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    write_json(tmp_path / "dataset_fingerprint.json", {"spacings": []})
    assert choose(tmp_path, plan) == IDENTIFIER


@pytest.mark.parametrize("spacing", [None, [None, None, None]])
def test_a_plan_of_the_fork_without_a_spacing_has_other_settings(
    spacing: list[None] | None, plan: dict[str, Any], base_plan: dict[str, Any], tmp_path: Path
) -> None:
    theirs = fork_plan(base_plan, "ResEncL", "ptPlans__x", IDENTIFIER)
    theirs["configurations"]["3d_fullres"]["spacing"] = spacing
    write_json(tmp_path / "ptPlans__x.json", theirs)
    assert choose(tmp_path, plan) != IDENTIFIER
