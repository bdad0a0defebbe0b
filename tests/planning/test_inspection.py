"""An inspection says what torch, json and the files themselves say, and what training would do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.inspection import inspect_checkpoint
from nnunetv2_ext.planning.plan_files import write_plan
from tests.conftest import DATASET, TINY_PRIMUS, TINY_RESENC, StockModel, Workplace
from tests.planning.variants import fork_plan, plain_base_plan, residual_base_plan
from tests.planning.weights_files import adaptation_plan_file, plain_file, raw_plan, tensors_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workplace: Workplace) -> Path:
    """A preprocessed folder of the test's own, with nothing but nnU-Net's description and plan."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    place = tmp_path / "nnUNet_preprocessed" / DATASET
    place.mkdir(parents=True)
    for name in ("dataset.json", "nnUNetPlans.json"):
        (place / name).write_bytes((workplace.preprocessed / name).read_bytes())
    return place


def put(folder: Path, name: str, plan: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps({**plan, "plans_name": name}))


def counts(weights: dict[str, torch.Tensor], *prefixes: str) -> tuple[int, int]:
    """Tensors and parameters below prefixes, each storage once."""
    found = {t.data_ptr(): t.numel() for n, t in weights.items() if n.startswith(prefixes)}
    return len(found), sum(found.values())


@pytest.mark.parametrize("source", [TINY_RESENC, TINY_PRIMUS], ids=lambda f: f.name)
def test_facts_are_those_of_the_adaptation_plan(source: Path) -> None:
    facts, raw = inspect_checkpoint(str(source)).facts, raw_plan(source)
    (configuration,) = raw["pretrain_plan"]["configurations"].values()
    assert facts["kind"] == "nnssl checkpoint"
    assert facts["architecture"] == raw["architecture_plans"]["arch_class_name"]
    assert json.loads(json.dumps(facts["architecture_arguments"])) == raw["architecture_plans"]["arch_kwargs"]
    assert (facts["pretrain_spacing"], facts["pretrain_patch_size"]) == (configuration["spacing"], [32, 32, 32])
    assert facts["pretrain_num_input_channels"] == raw["pretrain_num_input_channels"]
    for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe"):
        assert facts[key] == raw[key]
    content = torch.load(source / "checkpoint_final.pth", weights_only=True)
    assert facts["trainer_name"] == content["trainer_name"]
    assert facts["file"] == str(source / "checkpoint_final.pth")


@pytest.mark.parametrize(
    ("source", "stem", "encoder"),
    [(TINY_RESENC, "encoder.stem.", "encoder.stages."), (TINY_PRIMUS, "down_projection.", "eva.")],
    ids=["resenc", "primus"],
)
def test_parts_are_counted_over_the_checkpoints_own_tensors_each_once(source: Path, stem: str, encoder: str) -> None:
    facts, weights = inspect_checkpoint(str(source)).facts, tensors_of(source)
    parts = {row["part"]: (row["tensors"], row["parameters"]) for row in facts["parts"]}
    assert parts["stem"] == counts(weights, stem)
    assert parts["encoder"] == counts(weights, encoder)
    everything = counts(weights, "")
    assert tuple(sum(column) for column in zip(*parts.values(), strict=True)) == everything
    assert facts["dtypes"] == {"float32": everything[0]}
    assert facts["not_finite"] == []


def test_a_model_of_nnunet_is_described_by_its_plans_and_labels(plain_model: StockModel) -> None:
    facts = inspect_checkpoint(str(plain_model.folder)).facts
    own = json.loads((plain_model.folder / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert (facts["kind"], facts["architecture"]) == ("nnU-Net model", "PlainConvUNet")
    assert (facts["pretrain_spacing"], facts["pretrain_patch_size"]) == (own["spacing"], own["patch_size"])
    assert facts["pretrain_num_input_channels"] == 4
    assert facts["labels"] == json.loads((plain_model.folder / "dataset.json").read_text())["labels"]
    assert facts["trainer_name"] == "nnUNetTrainerTiny"


def test_bare_weights_say_their_tensors_alone_until_an_architecture_is_given(tmp_path: Path) -> None:
    source = plain_file(tmp_path / "w.pth", root="module.")
    facts = inspect_checkpoint(str(source)).facts
    assert (facts["kind"], facts["architecture"], facts["pretrain_patch_size"]) == ("weights", None, None)
    assert [row["part"] for row in facts["parts"]] == ["module"]
    arch = adaptation_plan_file(tmp_path / "plan.json")
    said = inspect_checkpoint(str(plain_file(tmp_path / "w.pth")), arch=str(arch)).facts
    assert said["architecture"] == "ResidualEncoderUNet"
    assert "encoder" in [row["part"] for row in said["parts"]]


def test_nan_is_named_and_half_precision_counted(tmp_path: Path) -> None:
    weights = {n: t.half() for n, t in tensors_of(TINY_RESENC).items()}
    weights["decoder.seg_layers.2.bias"][0] = math.nan
    torch.save(weights, tmp_path / "w.pth")
    facts = inspect_checkpoint(str(tmp_path / "w.pth")).facts
    assert facts["not_finite"] == ["decoder.seg_layers.2.bias"]
    assert set(facts["dtypes"]) == {"float16"}


@pytest.mark.parametrize("source", ["tiny_resenc", "plain_model", "weights"])
def test_everything_is_plain_json(
    source: str, folder: Path, tmp_path: Path, base_plan: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    path = {"tiny_resenc": lambda: TINY_RESENC, "weights": lambda: plain_file(tmp_path / "w.pth"),
            "plain_model": lambda: request.getfixturevalue("plain_model").folder}[source]()  # fmt: skip
    plans = plain_base_plan(base_plan) if source == "plain_model" else residual_base_plan(base_plan)
    put(folder, "smallPlans", plans)
    inspection = inspect_checkpoint(str(path), "999", "smallPlans")
    found = json.loads(json.dumps(inspection.as_dict(), allow_nan=False))
    assert {k: v for k, v in found.items() if k != "transfer"} == inspection.facts
    assert found["transfer"]["coverage"] > 0.5
    assert {r["name"] for r in found["transfer"]["tensors"]} >= {"decoder.seg_layers.0.bias"}


def numpy_coverage(network_shapes: dict[str, tuple[int, ...]], arrived: set[str]) -> float:
    return sum(int(np.prod(network_shapes[n])) for n in arrived) / sum(int(np.prod(s)) for s in network_shapes.values())


class TestTransfer:
    """Into a ptPlan, and into one of nnU-Net's own plans."""

    def test_into_nnunets_own_plan_is_what_the_dynamic_route_would_do(
        self, folder: Path, base_plan: dict[str, Any]
    ) -> None:
        put(folder, "smallPlans", residual_base_plan(base_plan, (8, 16, 40)))
        report = inspect_checkpoint(str(TINY_RESENC), "999", "smallPlans").report
        assert report is not None
        mine = {r.name: r for r in report.records if r.part in ("stem", "encoder")}
        fresh = {n for n, r in mine.items() if r.action == "fresh"}
        assert fresh
        assert all(name.startswith("encoder.stages.2.") for name in fresh)
        shapes = {n: r.shape for n, r in mine.items()}
        assert report.coverage == pytest.approx(numpy_coverage(shapes, set(mine) - fresh))
        assert report.coverage < 0.5  # which planning would refuse

    def test_into_a_ptplan_is_what_training_would_do(
        self, folder: Path, base_plan: dict[str, Any], plan_of: Any
    ) -> None:
        write_plan(folder, "ptPlans__MAE____x", plan_of(TINY_RESENC))
        for name in ("ptPlans__MAE____x", "ptPlans_MAE_x", "ptPlans__MAE____x.json"):
            report = inspect_checkpoint(str(TINY_RESENC), DATASET, name).report
            assert report is not None
            assert report.coverage == 1
            assert {r.action for r in report.records if r.part == "decoder"} == {"fresh"}

    def test_into_a_ptplan_brings_what_the_plan_asks_for(
        self, folder: Path, base_plan: dict[str, Any], plain_model: StockModel, plan_of: Any
    ) -> None:
        labels = json.loads((plain_model.folder / "dataset.json").read_text())["labels"]
        description = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**description, "labels": labels}))
        write_plan(folder, "ptPlans__SEG____x", plan_of(plain_model.folder, keep_head=True, labels=labels))
        report = inspect_checkpoint(str(plain_model.folder), "999", "ptPlans_SEG_x").report
        assert report is not None
        assert {r.action for r in report.records if r.part in ("decoder", "head")} == {"copied"}

    def test_of_another_source_into_a_ptplan_takes_that_sources_keys(
        self, folder: Path, tmp_path: Path, plan_of: Any
    ) -> None:
        write_plan(folder, "ptPlans__MAE____x", plan_of(TINY_RESENC))
        other = plain_file(tmp_path / "w.pth", root="module.")
        report = inspect_checkpoint(str(other), "999", "ptPlans_MAE_x").report
        assert report is not None
        assert report.coverage == 1
        assert all(r.source.startswith("module.") for r in report.records if r.source)

    def test_into_a_plan_of_the_fork(self, folder: Path, base_plan: dict[str, Any]) -> None:
        theirs = fork_plan(base_plan, "ResEncL", "ptPlans__x____y", "y")
        (folder / "ptPlans__x____y.json").write_text(json.dumps(theirs))
        with pytest.raises(UserError, match=r"nothing in common.*of another width"):
            inspect_checkpoint(str(TINY_RESENC), "999", "ptPlans__x____y")

    def test_writes_nothing(self, folder: Path, base_plan: dict[str, Any]) -> None:
        put(folder, "smallPlans", residual_base_plan(base_plan))
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        inspect_checkpoint(str(TINY_RESENC), "999", "smallPlans")
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("dataset", "plans", "words"),
    [
        ("999", None, "-d and -p go together"),
        (None, "nnUNetPlans", "-d and -p go together"),
        ("7", "nnUNetPlans", "no dataset 7"),
        ("999", "noPlans", r"no plan noPlans \(-p\)"),
        ("999", "flatPlans", "flatPlans has no configuration 3d_fullres"),
    ],
)
def test_a_mistake_is_a_line_for_the_user(
    dataset: str | None, plans: str | None, words: str, folder: Path, base_plan: dict[str, Any]
) -> None:
    put(folder, "flatPlans", {**base_plan, "configurations": {"2d": base_plan["configurations"]["2d"]}})
    with pytest.raises(UserError, match=words):
        inspect_checkpoint(str(TINY_RESENC), dataset, plans)
