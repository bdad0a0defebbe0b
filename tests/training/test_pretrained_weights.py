"""What training loads by a plan, verified tensor by tensor, and the records that it leaves beside the fold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.dynamic_plan import DynamicPlanOptions, make_dynamic_plan
from nnunetv2_ext.planning.pretrain_info import TransferOptions
from nnunetv2_ext.recipes.trainer_names import DYNAMIC_TRAINER, TRAINER
from nnunetv2_ext.training.pretrained_weights import load_pretrained_weights
from nnunetv2_ext.training.trainer import PretrainedTrainer, trainer_class
from nnunetv2_ext.transfer.loading import TransferMismatchError
from tests.conftest import Model, StockModel
from tests.planning.variants import plain_base_plan
from tests.training.conftest import MakeTrainer


def log_of(trainer: nnUNetTrainer) -> str:
    return Path(trainer.log_file).read_text()


def records_of(trainer: nnUNetTrainer) -> dict[str, dict[str, Any]]:
    report = json.loads((Path(trainer.output_folder) / "transfer_report.json").read_text())
    return {record["name"]: record for record in report["tensors"]}


def test_the_report_says_of_every_tensor_what_it_is(planned_resenc: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_resenc)
    trainer.initialize()
    pretrained = torch.load(planned_resenc.checkpoint, weights_only=True)["network_weights"]
    state, records = trainer.network.state_dict(), records_of(trainer)
    assert set(state) == {n for r in records.values() for n in (r["name"], *r.get("aliases", ()))}
    for name, record in records.items():
        assert record["action"] == ("copied" if record["part"] in ("stem", "encoder") else "fresh"), name
        if record["action"] == "copied":
            assert torch.equal(state[name], pretrained[record["source"]]), name


def test_report_and_figure_lie_in_the_fold_and_the_table_in_its_log(
    planned_resenc: Model, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(planned_resenc)
    trainer.initialize()
    folder = Path(trainer.output_folder)
    assert (folder / "transfer_report.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert json.loads((folder / "transfer_report.json").read_text())["coverage"] == 1
    assert "100.0% of encoder and stem arrive" in log_of(trainer)
    assert str(planned_resenc.checkpoint) in log_of(trainer)


def test_from_scratch_the_report_says_that_all_is_fresh(planned_resenc: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_resenc, finetuning={"from_scratch": True})
    trainer.initialize()
    assert {record["action"] for record in records_of(trainer).values()} == {"fresh"}
    assert json.loads((Path(trainer.output_folder) / "transfer_report.json").read_text())["coverage"] == 0


def test_a_network_that_is_not_what_the_report_says_is_an_error(
    planned_resenc: Model, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a library wrote another value: one that `copy_` left as it was."""
    trainer = make_trainer(planned_resenc)
    copy_ = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: self if self.shape == (16,) else copy_(self, other))
    with pytest.raises(TransferMismatchError, match=r"tensors are not what the report says: encoder\.stages\.1\."):
        trainer.initialize()


def test_a_plan_of_the_fork_without_a_request_loads_encoder_and_stem(
    planned_resenc: Model, make_trainer: MakeTrainer
) -> None:
    info = planned_resenc.workplace.plan(planned_resenc.inner_name)["pretrain_info"]
    theirs = {k: v for k, v in info.items() if k != "transfer"}
    trainer = make_trainer(planned_resenc, pretrain_info=theirs)
    trainer.initialize()
    actions = {(r["part"], r["action"]) for r in records_of(trainer).values()}
    assert actions == {("stem", "copied"), ("encoder", "copied"), ("decoder", "fresh"), ("head", "fresh")}


def test_another_file_under_the_recorded_path_is_refused(
    planned_resenc: Model, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    content = torch.load(planned_resenc.checkpoint, weights_only=True)
    torch.save({**content, "trainer_name": "Another"}, tmp_path / "checkpoint_final.pth")
    info = planned_resenc.workplace.plan(planned_resenc.inner_name)["pretrain_info"]
    moved = {**info, "checkpoint_path": str(tmp_path / "checkpoint_final.pth")}
    trainer = make_trainer(planned_resenc, pretrain_info=moved)
    with pytest.raises(UserError, match="is not the checkpoint that this plan was made with"):
        trainer.initialize()


@pytest.mark.parametrize("name", [TRAINER, DYNAMIC_TRAINER, "PretrainedTrainer_150ep"])
def test_the_results_folder_has_the_trainers_name_and_checkpoints_name_nnunets(
    name: str, planned_resenc: Model, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(planned_resenc, trainer=name)
    trainer.initialize()
    folder = Path(trainer.output_folder)
    assert folder.parent.name == f"{name}__{planned_resenc.inner_name}__3d_fullres"
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    saved = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert saved["trainer_name"] == "nnUNetTrainer"
    assert saved["finetuning"]["trainer_name"] == name


def test_both_names_are_the_same_trainer() -> None:
    assert [trainer_class(name).__name__ for name in (TRAINER, DYNAMIC_TRAINER)] == [
        TRAINER,
        "DynamicPretrainedTrainer",
    ]
    assert all(issubclass(trainer_class(name), PretrainedTrainer) for name in (TRAINER, DYNAMIC_TRAINER))


class TestDynamicPlan:
    """A supervised model with four channels and labels of its own, in the dataset's own network."""

    @pytest.fixture
    def plan(self, planned_resenc: Model, plain_model: StockModel) -> dict[str, Any]:
        checkpoint = read_checkpoint(resolve_checkpoint_source(str(plain_model.folder)))
        place = planned_resenc.workplace
        base = plain_base_plan(place.plan("nnUNetPlans"))
        description = json.loads((place.preprocessed / "dataset.json").read_text())
        plan, _ = make_dynamic_plan(base, description, checkpoint, DynamicPlanOptions("SEG"), "")
        own = place.plan(planned_resenc.inner_name)["configurations"]["3d_fullres"]
        plan["configurations"]["3d_fullres"]["data_identifier"] = own["data_identifier"]  # the cases that there are
        return json.loads(json.dumps(plan))

    def test_is_loaded_as_numpy_says(
        self, plan: dict[str, Any], planned_resenc: Model, plain_model: StockModel, make_trainer: MakeTrainer
    ) -> None:
        trainer = make_trainer(planned_resenc, trainer="DynamicPretrainedTrainer", **without_recipe(plan))
        trainer.initialize()
        theirs = torch.load(plain_model.checkpoint, weights_only=False)["network_weights"]
        ours = {name: tensor.numpy() for name, tensor in trainer.network.state_dict().items()}
        stem = "encoder.stages.0.0.convs.0.conv.weight"
        expected = theirs[stem].double().numpy().mean(2, keepdims=True).sum(1, keepdims=True)
        np.testing.assert_allclose(ours[stem], expected, rtol=1e-5, atol=1e-7)
        deeper = [n for n in ours if n.startswith(("encoder.stages.1.", "encoder.stages.2."))]
        assert len(deeper) > 20
        for name in deeper:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)

    def test_trains_an_epoch_and_is_continued(
        self, plan: dict[str, Any], planned_resenc: Model, make_trainer: MakeTrainer
    ) -> None:
        settings = ("num_epochs=1", "warmup_epochs=0", "num_iterations_per_epoch=1")
        trainer = make_trainer(planned_resenc, *settings, **without_recipe(plan))
        trainer.run_training()
        folder = Path(trainer.output_folder)
        assert folder.parent.name == "PretrainedTrainer__ptPlans_dynamic_SEG__3d_fullres"
        before = (folder / "transfer_report.json").stat().st_mtime_ns
        resumed = make_trainer(planned_resenc, *settings, **without_recipe(plan))
        resumed.load_checkpoint(str(folder / "checkpoint_final.pth"))
        assert resumed.current_epoch == 1
        for name, tensor in trainer.network.state_dict().items():
            assert torch.equal(resumed.network.state_dict()[name], tensor), name
        assert (folder / "transfer_report.json").stat().st_mtime_ns == before

    def test_below_the_coverage_training_does_not_start(
        self, plan: dict[str, Any], planned_resenc: Model, make_trainer: MakeTrainer
    ) -> None:
        plan["pretrain_info"]["transfer"]["min_coverage"] = 1.0
        plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [32, 64, 96]
        trainer = make_trainer(planned_resenc, **without_recipe(plan))
        with pytest.raises(UserError, match=r"100\.0% must \(-min_coverage\): encoder: \d+ tensors of another width"):
            trainer.initialize()


def without_recipe(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan's entries, for a trainer whose recipe is a tiny one."""
    return {k: v for k, v in copy.deepcopy(plan).items() if k != "finetuning"}


def test_the_lines_for_the_user_name_file_coverage_and_what_is_left_over(
    planned_resenc: Model, plain_model: StockModel
) -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    checkpoint = read_checkpoint(resolve_checkpoint_source(str(plain_model.folder)))
    place = planned_resenc.workplace
    description = json.loads((place.preprocessed / "dataset.json").read_text())
    options = DynamicPlanOptions("SEG", transfer=TransferOptions(load="encoder"))
    plan, _ = make_dynamic_plan(plain_base_plan(place.plan("nnUNetPlans")), description, checkpoint, options, "")
    architecture = plan["configurations"]["3d_fullres"]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 3
    )
    lines: list[str] = []
    load_pretrained_weights(network, plan, lines.append)
    said = "\n".join(lines)
    assert str(plain_model.checkpoint) in said
    assert "100.0% of encoder and stem arrive" in said
    assert "4 input channels to 1" in said
    assert "the checkpoint has more than the network: encoder.stages.3" in said
