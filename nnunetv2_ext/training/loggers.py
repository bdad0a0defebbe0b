"""Loggers beside nnU-Net's own log: TensorBoard, and nnU-Net's Weights & Biases switched on for one training."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

TENSORBOARD, WANDB = "tensorboard", "wandb"
LOGGERS = (TENSORBOARD, WANDB)
"""What `-logger` takes."""
WANDB_SWITCH = "nnUNet_wandb_enabled"
"""nnU-Net's environment variable, read when a trainer is built."""
FOLDER = "tensorboard"
"""In a fold's folder."""
_NEEDED = {
    TENSORBOARD: ("TensorBoard", "torch.utils.tensorboard", "SummaryWriter"),
    WANDB: ("Weights & Biases", "wandb", "init"),
}
_START, _END = "epoch_start_timestamps", "epoch_end_timestamps"


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers that there are not, and those whose package is not installed. Raises UserError."""
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"-logger takes {' or '.join(LOGGERS)}, not {name!r}")
        title, module, attribute = _NEEDED[name]
        try:
            # the attribute too: a folder `wandb` of an earlier run, in the working directory, can be imported
            getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f'-logger {name} needs {title}: pip install "nnunetv2-ext[logging]"') from error


def enable(names: Sequence[str]) -> None:
    """Before a trainer is built: have nnU-Net log to Weights & Biases if that is among the names.

    Otherwise its environment variable stays as the user has set it.
    """
    if WANDB in names:
        os.environ[WANDB_SWITCH] = "1"


def disable() -> None:
    """Before a trainer is built that is to log nowhere, whatever the user has set.

    That is one of every rank but the first, each of which would start a run of its own, and one that only validates:
    nnU-Net's logger then deletes the training's run.
    """
    os.environ[WANDB_SWITCH] = "0"


def add_loggers(
    meta_logger: MetaLogger,
    names: Sequence[str],
    output_folder: Path,
    start_epoch: int,
    config: Mapping[str, Any],
) -> None:
    """Give nnU-Net's logger the ones that it has not itself, when a training starts; on the first rank alone.

    Args:
        meta_logger: the trainer's.
        names: of `LOGGERS`; Weights & Biases is nnU-Net's own (see `enable`).
        output_folder: the fold's.
        start_epoch: the first epoch to come; values of this and later ones, of a run that was cut off, are dropped.
        config: what the training was started with, by name: recipe, plans, configuration, fold.
    """
    if TENSORBOARD in names:
        logger = TensorBoardLogger(output_folder, start_epoch)
        logger.update_config(dict(config))
        meta_logger.loggers.append(logger)


class TensorBoardLogger:
    """Writes `tensorboard/` in the fold's folder, with the methods of nnU-Net's `WandbLogger`.

    Every value is on the disk when `log` returns: a training that is killed loses none.

    Args:
        output_folder: the fold's.
        start_epoch: TensorBoard forgets what an earlier run has logged for this epoch and later ones.
    """

    def __init__(self, output_folder: Path, start_epoch: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(output_folder) / FOLDER), purge_step=start_epoch)
        self._num_epochs = start_epoch
        self._epoch_start: float | None = None

    def update_config(self, config: dict[str, Any]) -> None:
        """Write settings as texts, one for every name."""
        for name, value in config.items():
            content = json.dumps(value, indent=4, default=str)
            code = "\n".join(f"    {line}" for line in content.splitlines())  # as Markdown, which TensorBoard shows
            self._writer.add_text(f"config/{name}", code, self._num_epochs)
        self._writer.flush()

    def log(self, key: str, value: Any, step: int) -> None:
        """Write an epoch's value: a number as a scalar, a string as a text.

        An epoch's two times, in seconds since 1970, become its duration: as the 32-bit numbers that TensorBoard keeps,
        they would be minutes off.
        """
        self._num_epochs = max(self._num_epochs, step + 1)
        if key == _START:
            self._epoch_start = float(value)
            return
        if key == _END:
            if self._epoch_start is None:
                return
            key, value = "epoch_seconds", float(value) - self._epoch_start
        if isinstance(value, str):
            self._writer.add_text(key, value, step)
        else:
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def log_summary(self, key: str, value: Any) -> None:
        """Write a value of the whole training, such as the validation's Dice, one step after its last epoch."""
        self._writer.add_scalar(key, value, self._num_epochs)
        self._writer.flush()
