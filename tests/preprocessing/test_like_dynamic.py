"""Planning datasets with their own networks: names, next commands, and cases that nnU-Net has preprocessed already."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.dynamic_plan import DynamicPlanOptions
from nnunetv2_ext.planning.pretrain_info import TransferOptions
from nnunetv2_ext.preprocessing.like_dynamic import plan_dynamic_and_preprocess
from nnunetv2_ext.preprocessing.run_options import RunOptions
from tests.conftest import DATASET, TINY_PRIMUS, TINY_RESENC
from tests.planning.variants import residual_base_plan
from tests.preprocessing.conftest import CASES, ENDINGS, Dataset

OWN_CASES = "nnUNetPlans_3d_fullres"


@pytest.fixture
def small(planned: Dataset) -> Dataset:
    """The dataset's own plan with a small residual network."""
    path = planned.preprocessed / "nnUNetPlans.json"
    path.write_text(json.dumps(residual_base_plan(json.loads(path.read_text()))))
    return planned


def run(
    source: Path = TINY_RESENC, datasets: Sequence[str] = ("999",), name: str = "MAE", preprocess: bool = False,
    num_processes: int = 1, base_plan: str | None = None, **options: Any,
) -> None:  # fmt: skip
    run_options = RunOptions(base_plan, num_processes, preprocess, show_progress=False)
    plan_dynamic_and_preprocess(datasets, str(source), DynamicPlanOptions(name, **options), run_options)


def test_the_plan_has_both_its_names_and_the_training_command_is_printed(
    small: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(os.listdir(small.preprocessed))
    run()
    assert set(os.listdir(small.preprocessed)) - before == {"ptPlans_dynamic__MAE.json", "ptPlans_dynamic_MAE.json"}
    for name in ("ptPlans_dynamic__MAE.json", "ptPlans_dynamic_MAE.json"):
        assert json.loads((small.preprocessed / name).read_text())["plans_name"] == "ptPlans_dynamic_MAE"
    output = capsys.readouterr().out
    assert "nnUNetv2_train_pretrained -d 999 -c 3d_fullres -f 0 -p ptPlans_dynamic__MAE" in output
    assert "-p ptPlans_dynamic_MAE)" in output
    assert "kernel 3x3x3 to 1x3x3: mean along the axis" in output


def test_cases_that_nnunet_preprocessed_are_used(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = DefaultPreprocessor(verbose=False)
    stock.show_progress_bar = False
    stock.run(DATASET, "3d_fullres", "nnUNetPlans", 1)
    before = {p.name: p.stat().st_ino for p in (small.preprocessed / OWN_CASES).iterdir()}
    assert set(before) == {f"{case}{ending}" for case in CASES for ending in ENDINGS}
    monkeypatch.setattr(DefaultPreprocessor, "run_case", lambda *_: pytest.fail("a case was made again"))
    run(preprocess=True)
    assert "0 cases preprocessed, 3 were there already" in capsys.readouterr().out
    assert {p.name: p.stat().st_ino for p in (small.preprocessed / OWN_CASES).iterdir()} == before
    copies = small.preprocessed / "gt_segmentations"
    assert sorted(os.listdir(copies)) == [f"{case}.nii.gz" for case in CASES]


def test_cases_that_are_missing_are_made_where_nnunet_looks_for_its_own(small: Dataset) -> None:
    run(preprocess=True)
    folder = small.preprocessed / OWN_CASES
    assert {p.name for p in folder.iterdir()} == {f"{case}{ending}" for case in CASES for ending in ENDINGS}
    assert not [p for p in small.preprocessed.iterdir() if p.name.startswith("Spacing__")]


def test_a_plan_whose_own_cases_were_made_with_other_settings_gets_a_folder_of_its_own(
    small: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run(preprocess=True)
    stock = json.loads((small.preprocessed / "nnUNetPlans.json").read_text())
    stock["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    (small.preprocessed / "nnUNetPlans.json").write_text(json.dumps(stock))
    run(name="coarse")
    assert f"Another plan preprocessed {OWN_CASES} with other settings" in capsys.readouterr().out
    plan = json.loads((small.preprocessed / "ptPlans_dynamic__coarse.json").read_text())
    assert plan["configurations"]["3d_fullres"]["data_identifier"].startswith(f"{OWN_CASES}___")


def test_a_base_plan_is_chosen_by_name(small: Dataset) -> None:
    plan = json.loads((small.preprocessed / "nnUNetPlans.json").read_text())
    plan["configurations"]["3d_fullres"]["batch_size"] = 7
    (small.preprocessed / "myPlans.json").write_text(json.dumps({**plan, "plans_name": "myPlans"}))
    run(base_plan="myPlans")
    made = json.loads((small.preprocessed / "ptPlans_dynamic__MAE.json").read_text())
    assert made["configurations"]["3d_fullres"]["batch_size"] == 7


def test_three_datasets_are_planned_by_one_command(small: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    others = [small.preprocessed.with_name(f"Dataset00{n}_Other") for n in (1, 2)]
    for other in others:
        shutil.copytree(small.preprocessed, other)
    run(datasets=("1", "Dataset002_Other", "999"))
    output = capsys.readouterr().out
    for number, folder in zip((1, 2, 999), (*others, small.preprocessed), strict=True):
        assert (folder / "ptPlans_dynamic__MAE.json").is_file()
        assert f"nnUNetv2_train_pretrained -d {number} -c 3d_fullres -f 0 -p ptPlans_dynamic__MAE" in output


def test_a_dataset_given_twice_is_planned_once(small: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    run(datasets=("999", DATASET, "0999"))
    output = capsys.readouterr().out
    assert output.count("nnUNetv2_train_pretrained") == 1
    assert output.count("Plan: ") == 1
    assert "replaces" not in output


def test_if_one_dataset_cannot_be_planned_nothing_is_written_for_any(small: Dataset) -> None:
    other = small.preprocessed.with_name("Dataset001_Other")
    shutil.copytree(small.preprocessed, other)
    path = other / "nnUNetPlans.json"
    plan = json.loads(path.read_text())
    plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [9, 18, 36]
    path.write_text(json.dumps(plan))
    before = {p: p.read_bytes() for p in small.preprocessed.parent.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"Dataset001_Other: .*of another width.*\(no dataset was planned\)"):
        run(datasets=("999", "1"), preprocess=False)
    assert {p: p.read_bytes() for p in small.preprocessed.parent.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a__b"}, r"\(-n\)"),
        ({"num_processes": 0}, "-np must be at least 1, not 0"),
        ({"batch_size": 0}, "-bs must be at least 1, not 0"),
        ({"patch_size": (15, 32, 32)}, r"nearest valid .*\(-ps\)"),
        ({"patch_size": (32, 32)}, "3 positive numbers"),
        ({"normalization": "minmax"}, "-norm takes zscore or default_nnunet"),
        ({"base_plan": "noPlans"}, r"no plan noPlans \(-pl\)"),
        ({"datasets": ("999", "7")}, "no dataset 7"),
        ({"source": TINY_PRIMUS}, "nothing in common"),
        ({"source": Path("nowhere/at/all.pth")}, "nowhere"),
        ({"transfer": TransferOptions(keep_head=True)}, "does not say which labels"),
        ({"transfer": TransferOptions(channel_map=(0, None))}, "-cm has 2 entries and the dataset 1"),
        ({"transfer": TransferOptions(min_coverage=0.99)}, r"99\.0% must \(-min_coverage\): encoder: "),
    ],
)
def test_a_mistake_writes_nothing(options: dict[str, Any], words: str, small: Dataset) -> None:
    before = set(small.preprocessed.rglob("*"))
    with pytest.raises(UserError, match=words):
        run(**{"preprocess": True, **options})
    assert set(small.preprocessed.rglob("*")) == before
