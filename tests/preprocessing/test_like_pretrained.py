"""Planning several things at once: what is written where, and that a mistake writes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.pretrain_info import TransferOptions
from nnunetv2_ext.planning.pretrained_plan import PlanOptions
from nnunetv2_ext.preprocessing.like_pretrained import plan_and_preprocess
from nnunetv2_ext.preprocessing.run_options import RunOptions
from tests.conftest import DATASET, TINY_PRIMUS, TINY_RESENC, Workplace
from tests.preprocessing.conftest import CASES, ENDINGS, Dataset

ONE_MM = "Spacing__1.00_1.00_1.00___Norm__Z"


RUN_OPTIONS = {field.name for field in dataclasses.fields(RunOptions)}
PLAN_OPTIONS = {field.name for field in dataclasses.fields(PlanOptions)}


def run(name: str = "MAE", source: Path = TINY_RESENC, datasets: Sequence[str] = ("999",), **options: Any) -> None:
    usual = {"mode": "like_pretrained", "num_processes": 1, "preprocess": False, "show_progress": False}
    chosen = {**usual, **options}
    plan_options = PlanOptions(name, **{k: v for k, v in chosen.items() if k in PLAN_OPTIONS})
    run_options = RunOptions(**{k: v for k, v in chosen.items() if k in RUN_OPTIONS})
    rest = {k: v for k, v in chosen.items() if k not in PLAN_OPTIONS | RUN_OPTIONS}
    plan_and_preprocess(datasets, str(source), plan_options, run_options, **rest)


def plan_of(place: Dataset, stem: str) -> dict[str, Any]:
    return json.loads((place.preprocessed / f"{stem}.json").read_text())


def identifier_of(place: Dataset, stem: str) -> str:
    return PlansManager(plan_of(place, stem)).get_configuration("3d_fullres").data_identifier


def test_the_plan_has_both_its_names_and_no_case_is_made(planned: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(os.listdir(planned.preprocessed))
    run()
    assert set(os.listdir(planned.preprocessed)) - before == {
        f"ptPlans__MAE____{ONE_MM}.json", "ptPlans_MAE_Spacing_1.00_1.00_1.00_Norm_Z.json"
    }  # fmt: skip
    output = capsys.readouterr().out
    assert f"nnUNetv2_train_pretrained -d 999 -c 3d_fullres -f 0 -p ptPlans__MAE____{ONE_MM}" in output
    assert "-p ptPlans_MAE_Spacing_1.00_1.00_1.00_Norm_Z" in output


def test_with_preprocessing_the_cases_are_there(planned: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    run(preprocess=True)
    assert {p.name for p in (planned.preprocessed / ONE_MM).iterdir()} == {f"{c}{e}" for c in CASES for e in ENDINGS}
    assert "3 cases preprocessed, 0 were there already" in capsys.readouterr().out
    run(preprocess=True)
    assert "0 cases preprocessed, 3 were there already" in capsys.readouterr().out


def test_two_checkpoints_of_the_same_settings_use_the_same_folder(planned: Dataset) -> None:
    run("MAE")
    run("PRIM", TINY_PRIMUS)
    assert identifier_of(planned, f"ptPlans__MAE____{ONE_MM}") == ONE_MM
    assert identifier_of(planned, f"ptPlans__PRIM____{ONE_MM}") == ONE_MM


def test_other_settings_under_the_same_name_get_a_folder_of_their_own(
    planned: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run("MAE")
    run("near", mode="fixed", override_spacing=(1.001, 1, 1))
    assert "gets a folder of its own" in capsys.readouterr().out
    own = identifier_of(planned, f"ptPlans__near____{ONE_MM}")
    assert re.fullmatch(re.escape(ONE_MM) + "___[0-9a-f]{8}", own)
    assert identifier_of(planned, f"ptPlans__MAE____{ONE_MM}") == ONE_MM


def test_planning_the_same_again_changes_nothing(planned: Dataset) -> None:
    run()
    before = {p.name: p.read_bytes() for p in planned.preprocessed.iterdir()}
    run()
    assert {p.name: p.read_bytes() for p in planned.preprocessed.iterdir()} == before


def test_a_description_that_is_missing_beside_the_plan_is_copied_from_the_raw_data(planned: Dataset) -> None:
    (planned.preprocessed / "dataset.json").unlink()
    run()
    assert (planned.preprocessed / "dataset.json").read_bytes() == (planned.raw / "dataset.json").read_bytes()


def test_planning_alone_does_not_need_the_raw_data(planned: Dataset) -> None:
    shutil.rmtree(planned.raw)
    run()
    assert (planned.preprocessed / f"ptPlans__MAE____{ONE_MM}.json").is_file()


def test_the_fallback_of_like_pretrained_is_said(
    planned: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    content = torch.load(TINY_RESENC / "checkpoint_final.pth", weights_only=True)
    (configuration,) = content["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"].values()
    configuration |= {"spacing": None, "spacing_style": "noresample"}
    torch.save(content, tmp_path / "checkpoint_final.pth")
    run(source=tmp_path / "checkpoint_final.pth")
    assert f"{DATASET}: the pre-training had no target spacing" in capsys.readouterr().out
    own = plan_of(planned, "nnUNetPlans")["configurations"]["3d_fullres"]["spacing"]
    (stem,) = [p.stem for p in planned.preprocessed.glob("ptPlans__*.json")]
    assert plan_of(planned, stem)["configurations"]["3d_fullres"]["spacing"] == own


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a__b"}, r"\(-n\)"),
        ({"num_processes": 0}, "-np must be at least 1, not 0"),
        ({"batch_size": 0}, "-bs must be at least 1, not 0"),
        ({"arch": "ResEncL"}, r"says itself which network it is of: leave -arch out"),
        ({"transfer": TransferOptions(keep_head=True)}, "-keep_head: .* does not say which labels its head is for"),
        ({"transfer": TransferOptions(channel_map=(0, 1))}, r"-cm has 2 entries and the dataset 1 channel\(s\)"),
        ({"transfer": TransferOptions(channel_map=(3,))}, r"-cm names channel 3, and the checkpoint has 1 \(0 to 0\)"),
        ({"transfer": TransferOptions(min_coverage=1.5)}, "-min_coverage is a share from 0 to 1, not 1.5"),
        ({"mode": "fixed"}, "-am fixed needs -os"),
        ({"override_spacing": (1, 1, 1)}, "-os goes with -am fixed"),
        ({"patch_size": (30, 30, 30)}, "-ps"),
        ({"normalization": "minmax"}, "-norm"),
        ({"base_plan": "noPlans"}, "-pl"),
        ({"source": Path("nowhere/at/all.pth")}, "nowhere"),
    ],
)
def test_a_mistake_writes_nothing(options: dict[str, Any], words: str, planned: Dataset) -> None:
    before = set(planned.preprocessed.rglob("*"))
    with pytest.raises(UserError, match=words):
        run(**{"preprocess": True, **options})
    assert set(planned.preprocessed.rglob("*")) == before


def test_an_unknown_dataset_among_known_ones_writes_nothing(planned: Dataset) -> None:
    before = set(planned.preprocessed.rglob("*"))
    with pytest.raises(UserError, match="no dataset 7"):
        run(datasets=("999", "7"))
    assert set(planned.preprocessed.rglob("*")) == before


def test_several_datasets_are_planned_and_all_next_commands_printed(
    planned: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    other = planned.preprocessed.with_name("Dataset998_Other")
    shutil.copytree(planned.preprocessed, other)
    run(datasets=("999", "Dataset998_Other"))
    output = capsys.readouterr().out
    for number, folder in ((999, planned.preprocessed), (998, other)):
        assert f"nnUNetv2_train_pretrained -d {number} " in output
        assert (folder / f"ptPlans__MAE____{ONE_MM}.json").is_file()


def test_the_stock_plan_is_left_alone(planned: Dataset, workplace: Workplace) -> None:
    run()
    assert plan_of(planned, "nnUNetPlans") == copy.deepcopy(workplace.plan("nnUNetPlans"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("labels", {"background": 0, "tissue": [1, 2]}), ("channel_names", {"0": "T2"}), ("file_ending", ".nrrd")],
)
def test_cases_are_not_made_by_one_dataset_json_and_planned_by_another(
    key: str, value: Any, planned: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(os.listdir(planned.preprocessed))
    description = json.loads((planned.raw / "dataset.json").read_text())
    (planned.raw / "dataset.json").write_text(json.dumps({**description, key: value}))
    with pytest.raises(UserError, match=rf"dataset\.json and .*dataset\.json differ in {key}: copy the right one"):
        run()
    assert set(os.listdir(planned.preprocessed)) == before


def test_what_a_dataset_json_says_of_itself_may_differ(planned: Dataset) -> None:
    description = json.loads((planned.raw / "dataset.json").read_text())
    (planned.raw / "dataset.json").write_text(json.dumps({**description, "licence": "none", "numTraining": 7}))
    run()
    assert plan_of(planned, f"ptPlans__MAE____{ONE_MM}")
