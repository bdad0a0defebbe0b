"""The trainer: nnU-Net's own, started from pre-trained weights."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_ext.architectures.presets import family
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.recipe import Recipe, recipe_for, recipe_from_dict
from nnunetv2_ext.training.checkpoint_files import INFERENCE_TRAINER, save_whole, without_numpy
from nnunetv2_ext.training.fold_records import write_finetuning, write_transfer_report
from nnunetv2_ext.training.optimizers import make_optimizer
from nnunetv2_ext.training.pretrained_weights import load_pretrained_weights
from nnunetv2_ext.training.schedule import EpochSchedule


def trainer_class(name: str) -> type[PretrainedTrainer]:
    """`PretrainedTrainer` under another name: nnU-Net calls the results folder after the class."""
    return PretrainedTrainer if name == PretrainedTrainer.__name__ else type(name, (PretrainedTrainer,), {})


class PretrainedTrainer(nnUNetTrainer):
    """nnU-Net's trainer for a ptPlan.

    What it adds: the encoder and stem of the plan's checkpoint are loaded when the network is built (unless a training
    is continued, or the plan says `from_scratch`), the recipe in the plan (`plans["finetuning"]["recipe"]`) sets
    optimizer and schedule, deep supervision is off unless the recipe sets it, and checkpoints are written whole and
    name the class that stock nnU-Net predicts with.

    Args:
        plans: a ptPlan, with nnU-Net's `continue_training` in it. The parameters are nnU-Net's, which records them by
            name: further settings travel inside the plans.
        configuration: `3d_fullres`.
        fold: a number, or `all`.
        dataset_json: the dataset's description.
        device: where to train.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._best_ema: float | None = None
        self.finetuning: dict[str, Any] = plans.get("finetuning") or {}
        self.from_scratch = bool(self.finetuning.get("from_scratch", False))
        self.architecture_family = family(self.configuration_manager.configuration["architecture"])
        stored = self.finetuning.get("recipe")
        self.recipe: Recipe = (
            recipe_from_dict(stored) if stored else recipe_for(self.architecture_family, from_scratch=self.from_scratch)
        )
        self._apply_recipe()
        self._continues = False

    def _apply_recipe(self) -> None:
        self.num_epochs = self.recipe.num_epochs
        self.num_iterations_per_epoch = self.recipe.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.recipe.num_val_iterations_per_epoch
        self.initial_lr = self.recipe.initial_lr
        self.weight_decay = self.recipe.weight_decay
        self.oversample_foreground_percent = self.recipe.oversample_foreground_percent
        self.enable_deep_supervision = self.recipe.deep_supervision
        self.save_every = self.recipe.save_every

    def initialize(self) -> None:
        """Build everything as nnU-Net does, then load the pre-trained weights and leave the fold's records."""
        super().initialize()
        if self._continues:
            return
        report = None
        if not self.from_scratch:
            report = load_pretrained_weights(self.plain_network, self.plans_manager.plans, self.print_to_log_file)
        if self.local_rank == 0:
            write_transfer_report(Path(self.output_folder), report, self.plain_network)
            self._write_finetuning()

    def _write_finetuning(self) -> None:
        write_finetuning(Path(self.output_folder), self.recipe, self.plans_manager.plans, self.from_scratch)

    def on_train_start(self) -> None:
        """As nnU-Net; a continued training writes down its recipe too, which `--set` may have changed."""
        super().on_train_start()
        if self._continues and self.local_rank == 0:
            self._write_finetuning()

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of DDP and `torch.compile`."""
        network = self.network.module if self.is_ddp and hasattr(self.network, "module") else self.network
        return getattr(network, "_orig_mod", network)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """The recipe's optimizer and schedule.

        Without deep supervision the decoder's lower segmentation layers get no gradient. They are frozen, which
        changes no value and keeps DDP from waiting for them.
        """
        if self.architecture_family == "cnn" and not self.enable_deep_supervision:
            self.plain_network.decoder.seg_layers[:-1].requires_grad_(False)  # type: ignore[union-attr,index]
        optimizer = make_optimizer(self.network.parameters(), self.recipe)
        return optimizer, EpochSchedule(optimizer, self.recipe)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Only ever on if the recipe says so (nnU-Net's validation switches it on at its end); Primus has none."""
        if self.architecture_family == "cnn":
            super().set_deep_supervision_enabled(enabled and self.enable_deep_supervision)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net, with the learning rate in full: its log rounds to five decimals, and 2e-06 is not 0."""
        super().on_train_epoch_start()
        phase = "warm-up" if self.current_epoch < self.recipe.warmup_epochs else "poly decay"
        self.print_to_log_file(
            f"Learning rate {self.optimizer.param_groups[0]['lr']:.3e} "
            f"({phase}, epoch {self.current_epoch + 1} of {self.num_epochs})"
        )

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint that stock nnU-Net predicts from and that is whole or absent.

        The keys are nnU-Net's (a test pins them) and `finetuning`. `trainer_name` is `nnUNetTrainer`: the plan beside
        the fold describes the network completely, and that class builds it from there.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        if Path(filename).name == "checkpoint_latest.pth":
            self._settle_best()
        scaler = self.grad_scaler
        checkpoint = {
            "network_weights": self.plain_network.state_dict(),
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
                "from_scratch": self.from_scratch,
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

        Raises:
            UserError: the checkpoint is not whole or belongs to another network.
        """
        self._continues = True
        if not self.was_initialized:
            self.initialize()
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except (RuntimeError, KeyError, EOFError, ValueError, OSError, UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{filename_or_checkpoint} cannot be continued from: {reason}") from error
