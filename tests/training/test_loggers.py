"""What the loggers keep, read back from TensorBoard's event files and from the real wandb package's offline run."""

from __future__ import annotations

import json
import os
import struct
import sys
import types
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training.loggers import WANDB_SWITCH, TensorBoardLogger, add_loggers, check_loggers, disable, enable

CONFIG = {"recipe": {"name": "short", "num_epochs": 4}, "fold": 0}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user has it who switches nothing on; what a test sets is undone."""
    monkeypatch.setenv("nnUNet_wandb_enabled", "0")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def wandb() -> Iterator[types.ModuleType]:
    import wandb

    yield wandb
    wandb.teardown()


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value by name, as TensorBoard shows them."""
    events = read_events(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(folder: Path) -> dict[str, list[tuple[int, str]]]:
    events = read_events(folder)
    return {
        tag.removesuffix("/text_summary"): [
            (e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }


def train(logger: MetaLogger, epochs: range, dice: float) -> None:
    """Log epochs as nnU-Net's trainer does."""
    for epoch in epochs:
        logger.log("epoch_start_timestamps", 1.7e9 + 100 * epoch, epoch)
        logger.log("lrs", 0.01 / (epoch + 1), epoch)
        logger.log("train_losses", np.float32(-0.25), epoch)
        logger.log("mean_fg_dice", np.float64(dice), epoch)
        logger.log("dice_per_class_or_region", [dice, np.float64(dice / 2)], epoch)
        logger.log("val_losses", np.nan, epoch)
        logger.log("epoch_end_timestamps", 1.7e9 + 100 * epoch + 12.5 + epoch, epoch)


def with_tensorboard(folder: Path, start_epoch: int = 0) -> MetaLogger:
    logger = MetaLogger(str(folder), resume=start_epoch > 0)
    add_loggers(logger, ["tensorboard"], folder, start_epoch, CONFIG)
    return logger


def test_every_value_is_on_the_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    """The writer is neither closed nor given time: what is read is what a kill would leave."""
    logger = with_tensorboard(tmp_path)
    for epoch in range(2):
        logger.log("lrs", 0.5**epoch, epoch)
        assert scalars(tmp_path)["lrs"] == [(e, 0.5**e) for e in range(epoch + 1)]


def test_tensorboard_shows_what_nnunet_logs(tmp_path: Path) -> None:
    logger = with_tensorboard(tmp_path)
    train(logger, range(3), dice=0.5)
    shown = scalars(tmp_path)
    assert dict(shown["lrs"]) == pytest.approx({e: 0.01 / (e + 1) for e in range(3)}, rel=1e-6)
    assert shown["train_losses"] == [(e, -0.25) for e in range(3)]
    assert shown["mean_fg_dice"] == shown["ema_fg_dice"] == [(e, 0.5) for e in range(3)]
    assert shown["dice_per_class_or_region/class_2"] == [(e, 0.25) for e in range(3)]
    assert np.isnan([value for _, value in shown["val_losses"]]).all()
    assert shown["epoch_seconds"] == [(e, 12.5 + e) for e in range(3)]
    assert not any("timestamps" in name for name in shown)


def test_nnunets_own_log_is_not_changed_by_it(tmp_path: Path) -> None:
    logger, plain = with_tensorboard(tmp_path), MetaLogger(str(tmp_path), resume=False)
    for each in (logger, plain):
        train(each, range(2), dice=0.5)
    assert repr(logger.get_checkpoint()) == repr(plain.get_checkpoint())


def test_a_continued_training_leaves_one_value_for_each_epoch(tmp_path: Path) -> None:
    """Cut off in epoch 5, continued from the checkpoint of epoch 3."""
    train(with_tensorboard(tmp_path), range(5), dice=0.25)
    continued = with_tensorboard(tmp_path, start_epoch=3)
    assert [step for step, _ in scalars(tmp_path)["lrs"]] == [0, 1, 2]
    continued.local_logger.my_fantastic_logging = {k: [0.25] * 3 for k in continued.get_checkpoint()}
    train(continued, range(3, 6), dice=0.75)
    shown = scalars(tmp_path)
    assert shown["mean_fg_dice"] == [(e, 0.25) for e in range(3)] + [(e, 0.75) for e in range(3, 6)]
    assert all([step for step, _ in values] == list(range(6)) for values in shown.values())


def test_the_validations_score_stands_once_even_if_a_finished_training_is_continued(tmp_path: Path) -> None:
    logger = with_tensorboard(tmp_path)
    train(logger, range(4), dice=0.5)
    logger.log_summary("final_val/foreground_dice", 0.5)
    with_tensorboard(tmp_path, start_epoch=4).log_summary("final_val/foreground_dice", np.float64(0.625))
    assert scalars(tmp_path)["final_val/foreground_dice"] == [(4, 0.625)]


def test_recipe_and_configuration_are_texts(tmp_path: Path) -> None:
    with_tensorboard(tmp_path)
    shown = texts(tmp_path)
    assert json.loads(shown["config/recipe"][0][1]) == CONFIG["recipe"]
    assert json.loads(shown["config/fold"][0][1]) == 0


def test_values_that_nnunets_own_log_refuses_go_to_the_added_loggers(tmp_path: Path) -> None:
    logger = with_tensorboard(tmp_path)
    for added in logger.loggers:
        added.log("phase", 1, 0)
        added.log("phase_name", "decoder: poly", 0)
    assert scalars(tmp_path)["phase"] == [(0, 1.0)]
    assert texts(tmp_path)["phase_name"] == [(0, "decoder: poly")]


def test_without_names_nothing_is_added_or_written(tmp_path: Path) -> None:
    logger = MetaLogger(str(tmp_path), resume=False)
    add_loggers(logger, [], tmp_path, 0, CONFIG)
    assert logger.loggers == []
    assert list(tmp_path.iterdir()) == []


def wandb_records(file: Path) -> Iterator[object]:
    """The records of an offline run: a file of LevelDB's log format (32 KiB blocks) with protocol buffers in it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, content = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if not kind:
            break
        content += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(content)
            yield record
            content = b""


def wandb_history(folder: Path) -> dict[str, dict[int, object]]:
    found: dict[str, dict[int, object]] = defaultdict(dict)
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in wandb_records(file):
            if record.HasField("history"):  # type: ignore[attr-defined]
                history = record.history  # type: ignore[attr-defined]
                values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in history.item}
                for key, value in values.items():
                    found[key][int(values["_step"])] = value
    return found


def test_weights_and_biases_gets_what_nnunet_logs_and_both_may_be_on(tmp_path: Path, wandb: types.ModuleType) -> None:
    enable(["wandb", "tensorboard"])
    logger = MetaLogger(str(tmp_path), resume=False)
    add_loggers(logger, ["wandb", "tensorboard"], tmp_path, 0, CONFIG)
    assert [type(added).__name__ for added in logger.loggers] == ["WandbLogger", "TensorBoardLogger"]
    train(logger, range(2), dice=0.5)
    for added in logger.loggers:
        added.log("phase_name", "decoder: poly", 1)
    logger.log_summary("final_val/foreground_dice", 0.5)
    wandb.finish()
    history = wandb_history(tmp_path)
    assert history["lrs"] == pytest.approx({0: 0.01, 1: 0.005})
    assert history["mean_fg_dice"] == {0: 0.5, 1: 0.5}
    assert history["phase_name"] == {1: "decoder: poly"}
    assert scalars(tmp_path)["mean_fg_dice"] == [(0, 0.5), (1, 0.5)]

    # continued: the same run goes on
    first = logger.loggers[0].run.id
    again = MetaLogger(str(tmp_path), resume=True)
    assert again.loggers[0].run.id == first
    wandb.finish()


def test_only_wandb_among_the_names_switches_it_on() -> None:
    enable(["tensorboard"])
    assert os.environ[WANDB_SWITCH] == "0"
    enable(["tensorboard", "wandb"])
    assert os.environ[WANDB_SWITCH] == "1"


def test_a_user_who_has_switched_wandb_on_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WANDB_SWITCH, "True")
    enable([])
    assert os.environ[WANDB_SWITCH] == "True"


def test_disabled_no_run_is_started_and_the_trainings_run_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    (tmp_path / "wandb").mkdir()
    disable()
    assert MetaLogger(str(tmp_path), resume=False).loggers == []
    assert (tmp_path / "wandb").is_dir()


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(UserError, match="-logger takes tensorboard or wandb, not 'mlflow'"):
        check_loggers(["tensorboard", "mlflow"])


@pytest.mark.parametrize(
    ("name", "module", "title"),
    [("tensorboard", "torch.utils.tensorboard", "TensorBoard"), ("wandb", "wandb", "Weights & Biases")],
)
@pytest.mark.parametrize("found", ["nothing", "a folder of that name"])
def test_a_package_that_is_not_installed_is_named_with_the_command(
    name: str, module: str, title: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None if found == "nothing" else types.ModuleType(module))
    with pytest.raises(UserError) as error:
        check_loggers([name])
    assert str(error.value) == f'-logger {name} needs {title}: pip install "nnunetv2-ext[logging]"'


def test_the_methods_are_those_of_nnunets_logger() -> None:
    """nnU-Net's MetaLogger calls these on every logger that it has."""
    from nnunetv2.training.logging.nnunet_logger import WandbLogger

    theirs = {name for name in vars(WandbLogger) if not name.startswith("_")}
    assert theirs <= set(vars(TensorBoardLogger))
