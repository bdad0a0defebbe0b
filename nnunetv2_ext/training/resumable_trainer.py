"""A trainer's checkpoints: what stock nnU-Net predicts from, and what a training goes on from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_ext.recipes.recipe import Recipe
from nnunetv2_ext.training.average import WeightAverage
from nnunetv2_ext.training.checkpoint_files import (
    INFERENCE_TRAINER,
    read_training_checkpoint,
    save_whole,
    without_numpy,
)
from nnunetv2_ext.training.lora import merged_state_dict


class ResumableTrainer(nnUNetTrainer):
    """nnU-Net's trainer with checkpoints of its own, for a network that may have adapters and an average.

    Attributes:
        recipe: stands in every checkpoint.
    """

    recipe: Recipe
    optimizer: torch.optim.Optimizer
    _best_ema: float | None = None
    _average: WeightAverage | None = None
    _continues = False

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of DDP and `torch.compile`."""
        network = self.network.module if self.is_ddp and hasattr(self.network, "module") else self.network
        return getattr(network, "_orig_mod", network)

    def _averaged(self) -> AbstractContextManager[None]:
        """The network with the averaged weights in it, if the recipe has an average."""
        return nullcontext() if self._average is None else self._average.swapped(self.plain_network)

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint that stock nnU-Net predicts from and that is whole or absent.

        The keys are nnU-Net's (a test pins them) and `finetuning`. `trainer_name` is `nnUNetTrainer`: the plan beside
        the fold describes the network completely, and that class builds it from there. `network_weights` are those to
        predict with: averaged, adapters merged. What a training needs besides to go on is in `finetuning`.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        if Path(filename).name == "checkpoint_latest.pth":
            self._settle_best()
        scaler, network = self.grad_scaler, self.plain_network
        with self._averaged():
            checkpoint = {
                "network_weights": merged_state_dict(network),
                "optimizer_state": self.optimizer.state_dict(),
                "grad_scaler_state": None if scaler is None else scaler.state_dict(),
                "logging": self.logger.get_checkpoint(),
                "_best_ema": self._best_ema,
                "current_epoch": self.current_epoch + 1,
                "init_args": self.my_init_kwargs,
                "trainer_name": INFERENCE_TRAINER,
                "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
                "finetuning": {
                    "trainer_name": type(self).__name__,
                    "recipe": self.recipe.as_dict(),
                    "from_scratch": self.recipe.from_scratch,
                    "unmerged_weights": None if self.recipe.lora is None else network.state_dict(),
                    "average": None if self._average is None else self._average.state_dict(),
                },
            }
            save_whole(without_numpy(checkpoint), Path(filename))

    def _settle_best(self) -> None:
        """Write `checkpoint_best` before `checkpoint_latest`.

        nnU-Net writes `checkpoint_latest` before it compares the epoch's score with the best one: a training that is
        continued from there would forget the best score and let a worse model replace `checkpoint_best`.
        """
        scores = self.logger.get_value("ema_fg_dice", step=None)
        if scores and (self._best_ema is None or scores[-1] > self._best_ema):
            self._best_ema = scores[-1]
            self.print_to_log_file(f"New best EMA pseudo Dice: {self._best_ema:.4f}")
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Continue from a checkpoint of this training; the pre-trained weights are then not needed.

        nnU-Net's own method takes the weights to predict with for those in training, and unpickles whatever a file
        holds.

        Raises:
            UserError: the checkpoint is not whole or belongs to another network.
        """
        self._continues = True
        if not self.was_initialized:
            self.initialize()
        with read_training_checkpoint(str(filename_or_checkpoint), self.device) as checkpoint:
            finetuning = checkpoint.get("finetuning") or {}
            self._load_weights(finetuning.get("unmerged_weights") or checkpoint["network_weights"], finetuning)
            self.optimizer.load_state_dict(checkpoint["optimizer_state"])
            if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
                self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
            self.current_epoch = checkpoint["current_epoch"]
            self.logger.load_checkpoint(checkpoint["logging"])
            self._best_ema = checkpoint["_best_ema"]
            self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]

    def _load_weights(self, weights: dict[str, torch.Tensor], finetuning: dict[str, Any]) -> None:
        """The weights of a checkpoint, and those in training where the former are an average."""
        average = finetuning.get("average")
        if self._average is None or average is None:
            self.plain_network.load_state_dict(weights)
            if average is not None:  # no longer averaged: the weights in training go on
                self.plain_network.load_state_dict(average["weights"], strict=False)
            if self._average is not None:
                self._average = WeightAverage(self.plain_network, self._average.decay)
            return
        with self._average.swapped(self.plain_network):
            self.plain_network.load_state_dict(weights)
            self._average.load_state_dict(average)
