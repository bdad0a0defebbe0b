"""The dataset's own plan: found in the stated order, made by stock nnU-Net where there is none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.base_plan import find_base_plan
from tests.conftest import DATASET, Workplace


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty preprocessed folder of the dataset in nnU-Net folders of the test's own."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    place = tmp_path / "nnUNet_preprocessed" / DATASET
    place.mkdir()
    return place


def find(name: str | None = None) -> dict[str, Any]:
    return find_base_plan(DATASET, name, num_processes=1, show_progress=False)


def put(folder: Path, plan: dict[str, Any], *names: str) -> None:
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(plan | {"plans_name": name}))


def test_where_there_is_none_stock_nnunet_plans_with_single_process_augmentation_set_too(
    workplace: Workplace, folder: Path, stock_plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    raw = folder.parent.parent / "nnUNet_raw" / DATASET
    shutil.copytree(workplace.raw, raw)
    assert find() == stock_plan
    assert "has no nnU-Net plan yet" in capsys.readouterr().out
    assert json.loads((folder / "nnUNetPlans.json").read_text()) == stock_plan
    assert (folder / "dataset_fingerprint.json").is_file()
    assert os.environ["nnUNet_n_proc_DA"] == "0"  # noqa: SIM112


def test_without_a_plan_and_without_raw_data_the_raw_data_is_asked_for(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset\.json: the raw dataset is needed"):
        find()
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["nnUNetResEncUNetLPlans", "nnUNetPlans"], "nnUNetPlans"),
        (["nnUNetResEncUNetXLPlans", "nnUNetResEncUNetMPlans", "nnUNetResEncUNetLPlans"], "nnUNetResEncUNetMPlans"),
        (["nnUNetResEncUNetPlans", "nnUNetResEncUNetMPlans"], "nnUNetResEncUNetPlans"),
        (["nnUNetResEncUNetXLPlans", "ptPlans_x", "myPlans"], "nnUNetResEncUNetXLPlans"),
    ],
)
def test_the_first_that_exists_is_taken(
    there: list[str], expected: str, folder: Path, stock_plan: dict[str, Any]
) -> None:
    put(folder, stock_plan, *there)
    assert find()["plans_name"] == expected


def test_the_one_that_the_user_names_is_taken(folder: Path, stock_plan: dict[str, Any]) -> None:
    put(folder, stock_plan, "nnUNetPlans", "myPlans")
    assert find("myPlans")["plans_name"] == "myPlans"


def test_one_that_is_not_there_lists_those_that_are(folder: Path, stock_plan: dict[str, Any]) -> None:
    put(folder, stock_plan, "nnUNetPlans", "myPlans")
    with pytest.raises(UserError, match=r"no plan yourPlans \(-pl\).*there are myPlans, nnUNetPlans"):
        find("yourPlans")


def test_a_2d_dataset_is_refused(folder: Path, base_plan: dict[str, Any]) -> None:
    del base_plan["configurations"]["3d_fullres"]
    assert list(base_plan["configurations"]) == ["2d"]
    put(folder, base_plan, "nnUNetPlans")
    with pytest.raises(UserError, match=r"no 3d_fullres.*2D dataset.*3D images"):
        find()


def test_a_plan_that_is_cut_off_is_refused(folder: Path, stock_plan: dict[str, Any]) -> None:
    (folder / "nnUNetPlans.json").write_text(json.dumps(stock_plan)[:-40])
    with pytest.raises(UserError, match=r"nnUNetPlans\.json is not valid JSON"):
        find()
