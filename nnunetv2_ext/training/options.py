"""What the user chose for a training."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching.fold_queue import parse_gpus
from nnunetv2_ext.training.loggers import check_loggers
from nnunetv2_ext.training.readiness import check_device
from nnunetv2_ext.training.recipe_choice import RecipeOptions

ALL_GPUS = "all"
"""What `-gpus` takes for all that are visible."""


@dataclass(frozen=True)
class TrainingOptions:
    """What the user chose, in the words of `nnUNetv2_train`.

    Attributes:
        device: `cuda`, `cpu` or `mps`.
        num_gpus: processes on this node, one for each GPU (`-device cpu`: on the CPU).
        continue_training: `--c`.
        only_validate: `--val`.
        validate_best: `--val_best`.
        save_probabilities: `--npz`.
        disable_checkpointing: `--disable_checkpointing`.
        recipe: how to train.
        checkpoint: `-overwrite_ckpt_path`, any source.
        loggers: `-logger`.
        parallel_folds: `-parallel_folds`, or None to train folds one after another.
        gpus: `-gpus`, ids of the GPUs to use; none means all that are visible.
        timeout: `-ddp_timeout`, seconds that processes wait for each other.
    """

    device: str = "cuda"
    num_gpus: int = 1
    continue_training: bool = False
    only_validate: bool = False
    validate_best: bool = False
    save_probabilities: bool = False
    disable_checkpointing: bool = False
    recipe: RecipeOptions = RecipeOptions()  # noqa: RUF009  frozen
    checkpoint: str | None = None
    loggers: tuple[str, ...] = ()
    parallel_folds: int | None = None
    gpus: tuple[str, ...] = ()
    timeout: float = 1800.0

    @property
    def resumes(self) -> bool:
        """Whether a fold goes on from its checkpoints, if it has any."""
        return self.continue_training or self.only_validate

    def check(self, *, launched: bool = False) -> None:
        """Refuse combinations that make no sense.

        Args:
            launched: whether torchrun has started this process.

        Raises:
            UserError: names the flags.
        """
        self.recipe.check()
        check_loggers(self.loggers)
        if self.continue_training and self.only_validate:
            raise UserError("--c continues a training and --val only validates a finished one: give one of the two")
        if self.validate_best and self.disable_checkpointing:
            raise UserError("--val_best needs the checkpoints that --disable_checkpointing does not write")
        if not 0 < self.timeout < math.inf:
            raise UserError(f"-ddp_timeout is a number of seconds above 0, not {self.timeout:g}")
        if self.parallel_folds is not None and self.parallel_folds < 1:
            raise UserError(f"-parallel_folds must be at least 1, not {self.parallel_folds}")
        if launched and self.num_gpus > 1:
            raise UserError("torchrun has started the processes already: leave -num_gpus out")
        side_by_side = (self.parallel_folds or 1) > 1
        if launched and (side_by_side or self.gpus):
            raise UserError("-parallel_folds and -gpus start processes of their own: not with torchrun")
        if side_by_side and self.num_gpus > 1:
            raise UserError("-parallel_folds trains each fold on one GPU, -num_gpus one fold on several: give one")
        check_device(self.device, self.num_gpus)


def chosen_gpus(text: str | None, device: str) -> tuple[str, ...]:
    """The GPUs of `-gpus 0,1`, as `CUDA_VISIBLE_DEVICES` wants them; none for `all`.

    Raises:
        UserError: no such GPU, or the device is none.
    """
    if text is None or text == ALL_GPUS:
        return ()
    if device != "cuda":
        raise UserError(f"-gpus chooses among GPUs, and -device is {device}")
    return tuple(parse_gpus(text, visible=os.environ.get("CUDA_VISIBLE_DEVICES"), num_gpus=torch.cuda.device_count()))
