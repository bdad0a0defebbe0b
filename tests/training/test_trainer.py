"""The trainer against the checkpoint's own tensors and against stock nnU-Net's trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training.checkpoint_files import without_numpy
from tests.conftest import Model
from tests.training.conftest import MakeTrainer

PREFIXES = {"planned_resenc": ("encoder.stages.", "encoder.stem."), "planned_primus": ("eva.", "down_projection.")}


@pytest.fixture(params=PREFIXES)
def planned(request: pytest.FixtureRequest) -> tuple[Model, tuple[str, ...]]:
    return request.getfixturevalue(request.param), PREFIXES[request.param]


def test_encoder_and_stem_equal_the_checkpoint_before_the_first_step(
    planned: tuple[Model, tuple[str, ...]], make_trainer: MakeTrainer
) -> None:
    model, prefixes = planned
    trainer = make_trainer(model)
    trainer.initialize()
    pretrained = torch.load(model.checkpoint, weights_only=True)["network_weights"]
    own = trainer.network.state_dict()
    compared = [name for name in pretrained if name.startswith(prefixes)]
    assert len(compared) > 50
    for name in compared:
        assert torch.equal(own[name], pretrained[name]), name


def test_decoder_and_head_are_fresh(planned_resenc: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_resenc)
    trainer.initialize()
    pretrained = torch.load(planned_resenc.checkpoint, weights_only=True)["network_weights"]
    own = trainer.network.state_dict()
    name = "decoder.stages.0.convs.0.conv.weight"
    assert not torch.equal(own[name], pretrained[name])


def test_the_report_is_there_before_data_or_splits_are_touched(
    planned_resenc: Model, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(planned_resenc)
    trainer.initialize()
    assert trainer.dataloader_train is None
    assert {"transfer_report.json", "finetuning.json"} <= {p.name for p in Path(trainer.output_folder).iterdir()}


def test_from_scratch_loads_nothing(planned_resenc: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_resenc, finetuning={"from_scratch": True})
    trainer.initialize()
    pretrained = torch.load(planned_resenc.checkpoint, weights_only=True)["network_weights"]
    name = "encoder.stages.1.blocks.0.conv1.conv.weight"
    assert not torch.equal(trainer.network.state_dict()[name], pretrained[name])
    assert trainer.recipe.initial_lr == 1e-2


def test_checkpoints_hold_what_stock_nnunet_saves(planned_resenc: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_resenc, "num_epochs=1", "warmup_epochs=0")
    trainer.run_training()
    trainer.current_epoch -= 1
    stock_path, own_path = (str(Path(trainer.output_folder) / n) for n in ("stock.pth", "own.pth"))
    nnUNetTrainer.save_checkpoint(trainer, stock_path)
    trainer.save_checkpoint(own_path)
    stock = torch.load(stock_path, weights_only=False)
    own = torch.load(own_path, weights_only=True)  # no numpy scalars: loads as data
    assert set(own) - set(stock) == {"finetuning"}
    assert set(stock) <= set(own), "a key that nnU-Net saves is missing"
    assert (stock.pop("trainer_name"), own["trainer_name"]) == ("PretrainedTrainer", "nnUNetTrainer")
    for name, tensor in stock.pop("network_weights").items():
        assert torch.equal(own["network_weights"][name], tensor)
    for index, state in stock.pop("optimizer_state")["state"].items():
        assert torch.equal(own["optimizer_state"]["state"][index]["momentum_buffer"], state["momentum_buffer"])
    for key, value in stock.items():
        assert own[key] == without_numpy(value), key


def test_stock_predictor_rebuilds_the_network_from_the_model_folder(resenc_model: Model) -> None:
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(resenc_model.folder), (0,), "checkpoint_final.pth")
    saved = torch.load(resenc_model.fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
    for name, tensor in predictor.network.state_dict().items():
        assert torch.equal(tensor, saved[name])


@pytest.mark.parametrize("stop_after", [1, 2])
def test_resuming_restores_epoch_rate_optimizer_and_logs(
    planned_resenc: Model, make_trainer: MakeTrainer, stop_after: int
) -> None:
    settings = ("num_epochs=4", "warmup_epochs=3", "save_every=1")
    trainer = make_trainer(planned_resenc, *settings)
    trainer.on_train_start()
    for _ in range(stop_after):
        train_one_epoch(trainer)
    resumed = make_trainer(planned_resenc, *settings)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == stop_after
    assert resumed.logger.get_value("lrs", step=None) == trainer.logger.get_value("lrs", step=None)
    state, resumed_state = trainer.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert len(state) == len(resumed_state) > 0
    for index, entry in state.items():
        assert torch.equal(entry["momentum_buffer"], resumed_state[index]["momentum_buffer"])
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor)
    resumed.on_train_epoch_start()
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * (stop_after + 1) / 3)


def test_resuming_needs_no_pretrained_checkpoint(planned_resenc: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_resenc, "save_every=1", "num_epochs=2")
    trainer.on_train_start()
    train_one_epoch(trainer)
    info = planned_resenc.workplace.plan(planned_resenc.inner_name)["pretrain_info"]
    resumed = make_trainer(planned_resenc, pretrain_info={**info, "checkpoint_path": "/nowhere.pth"})
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1


def test_latest_knows_the_best_score_so_that_no_worse_model_replaces_the_best(
    planned_resenc: Model, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(planned_resenc, "save_every=1", "num_epochs=3")
    trainer.on_train_start()
    train_one_epoch(trainer)
    folder = Path(trainer.output_folder)
    latest = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    score = float(trainer.logger.get_value("ema_fg_dice", step=-1))
    assert latest["_best_ema"] == pytest.approx(score)
    assert torch.load(folder / "checkpoint_best.pth", weights_only=True)["_best_ema"] == pytest.approx(score)


def test_a_failed_save_leaves_the_last_checkpoint(
    planned_resenc: Model, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned_resenc)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def disk_full(content: object, file: BinaryIO) -> None:
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(UserError, match=r"No space left on device.*checkpoint_final.pth are as they were"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert not [p for p in path.parent.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parametrize("kept", [0, 1_000, 10_000, 2_000_000])
def test_a_truncated_checkpoint_is_one_line(
    kept: int, planned_resenc: Model, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(planned_resenc)
    path = tmp_path / "checkpoint_latest.pth"
    path.write_bytes(planned_resenc.checkpoint.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"checkpoint_latest\.pth is damaged"):
        trainer.load_checkpoint(str(path))


def test_deep_supervision_is_off_unless_set_and_stays_off_after_validation(
    planned_resenc: Model, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(planned_resenc)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)  # as nnU-Net does at the end of its validation
    assert trainer.network.decoder.deep_supervision is False


def test_deep_supervision_trains_every_resolution_when_set(planned_resenc: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_resenc, "deep_supervision=true", "num_epochs=1", "warmup_epochs=0")
    trainer.on_train_start()
    assert trainer.network.decoder.deep_supervision is True
    before = [layer.weight.clone() for layer in trainer.network.decoder.seg_layers]
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    changed = [not torch.equal(a, b.weight) for a, b in zip(before, trainer.network.decoder.seg_layers, strict=True)]
    assert changed == [False, True, True]  # nnU-Net gives the lowest resolution no weight


def test_without_deep_supervision_every_trained_parameter_gets_a_gradient(
    planned: tuple[Model, tuple[str, ...]], make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(planned[0])
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    without = [n for n, p in trainer.network.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "DDP would wait for these for ever"


def test_primus_survives_what_nnunet_does_to_deep_supervision(planned_primus: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_primus)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)


def test_the_constructor_has_nnunets_parameters() -> None:
    import inspect

    from nnunetv2_ext.training.trainer import PretrainedTrainer

    assert list(inspect.signature(PretrainedTrainer).parameters) == list(inspect.signature(nnUNetTrainer).parameters)


def test_numpy_values_become_pythons() -> None:
    value = {"a": [np.float32(1.5), (np.int64(2),)], "b": np.array([1.0, 2.0]), "c": torch.ones(1)}
    plain = without_numpy(value)
    assert json.dumps({k: plain[k] for k in "ab"}) == '{"a": [1.5, [2]], "b": [1.0, 2.0]}'
    assert plain["c"] is value["c"]


def train_one_epoch(trainer: nnUNetTrainer) -> None:
    """nnU-Net's loop for one epoch, by its own hooks."""
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end(
        [trainer.train_step(next(trainer.dataloader_train)) for _ in range(trainer.num_iterations_per_epoch)]
    )
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end(
            [trainer.validation_step(next(trainer.dataloader_val)) for _ in range(trainer.num_val_iterations_per_epoch)]
        )
    trainer.on_epoch_end()


def test_a_recipe_that_changes_on_resuming_is_written_down(planned_resenc: Model, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(planned_resenc, "save_every=1", "num_epochs=2")
    trainer.on_train_start()
    train_one_epoch(trainer)
    resumed = make_trainer(planned_resenc, "save_every=1", "num_epochs=7")
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    resumed.on_train_start()
    recipe = json.loads((Path(trainer.output_folder) / "finetuning.json").read_text())["recipe"]
    assert recipe["num_epochs"] == 7
