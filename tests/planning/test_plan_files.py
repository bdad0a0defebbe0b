"""Two names, one plan: either is found, an edited one is refused, plans of the fork are completed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.modes import TargetSpacing
from nnunetv2_ext.planning.plan_files import read_plan, write_plan
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from tests.planning.variants import fork_plan

STEM = "ptPlans__MAE____Spacing__1.00_1.00_1.00___Norm__Z"
INNER = "ptPlans_MAE_Spacing_1.00_1.00_1.00_Norm_Z"
FORK_IDENTIFIER = "Spacing__None_None_None___Norm__Z"
FORK_STEM = f"ptPlans__MAE____{FORK_IDENTIFIER}"


@pytest.fixture
def plan(base_plan: dict[str, Any], dataset_json: dict[str, Any], tiny_resenc: PretrainedCheckpoint) -> dict[str, Any]:
    return make_plan(base_plan, dataset_json, tiny_resenc, TargetSpacing((1, 1, 1)), PlanOptions("MAE"), "0" * 64)[0]


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content["configurations"]["3d_fullres"].update(changes)
    path.write_text(json.dumps(content))


def test_both_files_hold_the_same_plan_and_the_inner_name(plan: dict[str, Any], tmp_path: Path) -> None:
    paths = write_plan(tmp_path, STEM, plan)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert {p.name for p in paths} == {f"{STEM}.json", f"{INNER}.json"}
    for path in paths:
        assert json.loads(path.read_text()) == json.loads(json.dumps(plan))
        assert PlansManager(str(path)).plans_name == INNER


@pytest.mark.parametrize("name", [STEM, INNER, f"{STEM}.json", f"{INNER}.json", f"somewhere/else/{STEM}.json"])
def test_either_name_finds_the_plan(name: str, plan: dict[str, Any], tmp_path: Path) -> None:
    write_plan(tmp_path, STEM, plan)
    found, long_name = read_plan(tmp_path, name)
    assert found == json.loads(json.dumps(plan))
    assert long_name == STEM


@pytest.mark.parametrize(("kept", "long_name"), [(STEM, STEM), (INNER, INNER)])
@pytest.mark.parametrize("name", [STEM, INNER])
def test_one_of_the_files_is_enough(kept: str, long_name: str, name: str, plan: dict[str, Any], tmp_path: Path) -> None:
    for path in write_plan(tmp_path, STEM, plan):
        if path.stem != kept:
            path.unlink()
    assert read_plan(tmp_path, name) == (json.loads(json.dumps(plan)), long_name)


@pytest.mark.parametrize("edited", [STEM, INNER])
@pytest.mark.parametrize("name", [STEM, INNER])
def test_an_edit_of_one_file_is_refused_and_the_difference_named(
    edited: str, name: str, plan: dict[str, Any], tmp_path: Path
) -> None:
    write_plan(tmp_path, STEM, plan)
    edit(tmp_path / f"{edited}.json", batch_size=4)
    with pytest.raises(UserError, match=r"differ in configurations\.3d_fullres\.batch_size \((2 and 4|4 and 2)\)") as e:
        read_plan(tmp_path, name)
    assert STEM in str(e.value)
    assert INNER in str(e.value)


def test_the_same_edit_in_both_files_counts(plan: dict[str, Any], tmp_path: Path) -> None:
    for path in write_plan(tmp_path, STEM, plan):
        edit(path, batch_size=4)
    assert read_plan(tmp_path, STEM)[0]["configurations"]["3d_fullres"]["batch_size"] == 4


def test_a_plan_that_is_not_there_lists_those_that_are(plan: dict[str, Any], tmp_path: Path) -> None:
    write_plan(tmp_path, STEM, plan)
    with pytest.raises(UserError, match=rf"no plan ptPlans__VoCo \(-p\).*there are {STEM}"):
        read_plan(tmp_path, "ptPlans__VoCo")


def test_where_there_are_none_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nnUNetv2_preprocess_like_nnssl makes one"):
        read_plan(tmp_path, STEM)


def test_a_plan_without_pretrain_info_is_refused(base_plan: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ptPlans_x.json").write_text(json.dumps(base_plan))
    with pytest.raises(UserError, match="no pretrain_info"):
        read_plan(tmp_path, "ptPlans_x")


def test_a_plan_without_3d_fullres_is_refused(plan: dict[str, Any], tmp_path: Path) -> None:
    write_plan(tmp_path, STEM, plan | {"configurations": {}})
    with pytest.raises(UserError, match="no configuration 3d_fullres"):
        read_plan(tmp_path, STEM)


def test_a_file_that_is_cut_off_is_refused(plan: dict[str, Any], tmp_path: Path) -> None:
    path = write_plan(tmp_path, STEM, plan)[0]
    path.write_text(path.read_text()[:200])
    with pytest.raises(UserError, match="not valid JSON"):
        read_plan(tmp_path, STEM)


@pytest.mark.parametrize("spacing", [None, [None, None, None]])
@pytest.mark.parametrize(
    ("name", "network"), [("ResEncL", "ResidualEncoderUNet"), ("PrimusS", "PrimusForSegmentation")]
)
def test_a_plan_of_the_fork_is_completed_and_builds_in_stock_nnunet(
    name: str, network: str, spacing: list[None] | None, base_plan: dict[str, Any], tmp_path: Path
) -> None:
    theirs = fork_plan(base_plan, name, FORK_STEM, FORK_IDENTIFIER)
    theirs["configurations"]["3d_fullres"]["spacing"] = spacing
    path = tmp_path / f"{FORK_STEM}.json"
    path.write_text(json.dumps(theirs))
    before = path.read_bytes()

    plan, long_name = read_plan(tmp_path, FORK_STEM)
    assert long_name == FORK_STEM
    manager = PlansManager(plan)
    assert "__" not in manager.plans_name
    configuration = manager.get_configuration("3d_fullres")
    assert configuration.spacing == base_plan["original_median_spacing_after_transp"]
    with torch.device("meta"):
        built = get_network_from_plans(
            configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import, 1, 3, allow_init=False, deep_supervision=False,
        )  # fmt: skip
    assert type(built).__name__ == network
    image = torch.zeros(1, 8, 9, 10).numpy()
    for function in (
        configuration.resampling_fn_data, configuration.resampling_fn_seg, configuration.resampling_fn_probabilities
    ):  # fmt: skip
        assert function(image, (8, 9, 10), [1, 1, 1], configuration.spacing).shape == (1, 8, 9, 10)
    assert path.read_bytes() == before


def test_a_plan_of_the_fork_with_a_spacing_keeps_it_and_its_resampling(
    base_plan: dict[str, Any], tmp_path: Path
) -> None:
    theirs = fork_plan(base_plan, "ResEncL", STEM, "Spacing__1.00_1.00_1.00___Norm__Z")
    theirs["configurations"]["3d_fullres"]["spacing"] = [1, 1, 1]
    (tmp_path / f"{STEM}.json").write_text(json.dumps(theirs))
    configuration = read_plan(tmp_path, INNER)[0]["configurations"]["3d_fullres"]
    stock = base_plan["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [1, 1, 1]
    assert configuration["resampling_fn_data"] == stock["resampling_fn_data"] != "no_resampling_hack"


def test_a_network_that_is_not_in_the_table_is_refused(base_plan: dict[str, Any], tmp_path: Path) -> None:
    plan = fork_plan(base_plan, "os.system", "ptPlans__x____y", "y")
    (tmp_path / "ptPlans__x____y.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"'os\.system' is not known"):
        read_plan(tmp_path, "ptPlans__x____y")
