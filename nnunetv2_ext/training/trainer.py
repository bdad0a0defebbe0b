"""The trainer: nnU-Net's own, started from pre-trained weights and walked through a recipe."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunetv2_ext.architectures.presets import family
from nnunetv2_ext.launching.fold_progress import report
from nnunetv2_ext.launching.stopping import deferred
from nnunetv2_ext.recipes.recipe import Loss, Precision, Recipe
from nnunetv2_ext.recipes.resolving import as_yaml, recipe_for, recipe_from_dict
from nnunetv2_ext.training import seeds
from nnunetv2_ext.training.average import WeightAverage
from nnunetv2_ext.training.checkpoint_files import FINAL
from nnunetv2_ext.training.fold_records import ADAPTER_FOLDER, write_finetuning, write_transfer_report
from nnunetv2_ext.training.gradients import backward, backward_as_one_batch, take_step
from nnunetv2_ext.training.lora import save_adapter
from nnunetv2_ext.training.losses import is_mean_over_samples, make_loss
from nnunetv2_ext.training.marginal import read_merged_classes, tell_cases
from nnunetv2_ext.training.network_setup import set_up, unused_parameters
from nnunetv2_ext.training.optimizers import make_optimizer
from nnunetv2_ext.training.parts import train_only
from nnunetv2_ext.training.phase_walk import PhaseWalk, phase_lines
from nnunetv2_ext.training.plateau import Plateau, has_plateaued
from nnunetv2_ext.training.pretrained_weights import load_pretrained_weights
from nnunetv2_ext.training.progress_figure import add_phases
from nnunetv2_ext.training.resumable_trainer import ResumableTrainer
from nnunetv2_ext.training.schedule import EpochSchedule
from nnunetv2_ext.transfer.report import TransferReport


def trainer_class(name: str) -> type[PretrainedTrainer]:
    """`PretrainedTrainer` under another name: nnU-Net calls the results folder after the class."""
    return PretrainedTrainer if name == PretrainedTrainer.__name__ else type(name, (PretrainedTrainer,), {})


class PretrainedTrainer(ResumableTrainer):
    """nnU-Net's trainer for a ptPlan.

    What it adds: the encoder and stem of the plan's checkpoint are loaded when the network is built (unless a training
    is continued, or the recipe says `from_scratch`), the recipe in the plan (`plans["finetuning"]["recipe"]`) decides
    what is trained when and how, deep supervision is off unless the recipe sets it, and checkpoints are written whole
    and name the class that stock nnU-Net predicts with.

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
        finetuning = plans.get("finetuning") or {}
        self.architecture_family = family(self.configuration_manager.configuration["architecture"])
        stored, from_scratch = finetuning.get("recipe"), bool(finetuning.get("from_scratch", False))
        self.recipe: Recipe = (
            recipe_from_dict(stored) if stored else recipe_for(self.architecture_family, from_scratch=from_scratch)
        )
        self.recipe.from_scratch |= from_scratch
        self._apply_recipe()
        self._report: TransferReport | None = None
        self._validation = ExitStack()

    def _apply_recipe(self) -> None:
        recipe = self.recipe
        self.num_epochs = recipe.num_epochs
        self.num_iterations_per_epoch = recipe.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = recipe.num_val_iterations_per_epoch
        self.initial_lr = recipe.initial_lr
        self.weight_decay = recipe.weight_decay
        self.oversample_foreground_percent = recipe.oversample_foreground_percent
        self.enable_deep_supervision = recipe.deep_supervision
        self.save_every = recipe.save_every
        if recipe.precision is not Precision.fp16:
            self.grad_scaler = None
        if recipe.precision is Precision.bf16 and self.device.type == "cuda":
            torch.set_autocast_dtype("cuda", torch.bfloat16)  # of nnU-Net's own validation and inference

    def initialize(self) -> None:
        """Build everything as nnU-Net does, with the recipe's network, and leave the fold's records."""
        if self.recipe.seed is not None:
            seeds.seed_all(self.recipe.seed)
        super().initialize()
        if self.ranks.is_first and not self._continues:
            write_transfer_report(Path(self.output_folder), self._report, self.plain_network)
            self._write_finetuning()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """The recipe's optimizer and schedule.

        nnU-Net calls this between building the network and wrapping it for DDP: the weights are loaded here, and the
        network gets what the recipe adds to it.
        """
        network = self.plain_network
        if not self._continues and not self.recipe.from_scratch and self.ranks.is_first:
            self._report = load_pretrained_weights(network, self.plans_manager.plans, self.print_to_log_file)
        set_up(network, self.recipe)
        self.share_weights(network)  # with what the recipe adds, which every rank has drawn for itself
        pretrained_channels = self.plans_manager.plans["pretrain_info"].get("pt_num_in_channels")
        self._walk = PhaseWalk(
            network,
            self.recipe,
            adapted_input=pretrained_channels not in (None, self.num_input_channels),
            never=unused_parameters(network, deep_supervision=self.enable_deep_supervision),
        )
        train_only(network, self._walk.ever_trained)
        optimizer = make_optimizer(network, self.recipe)
        self._walk.let_train(self.current_epoch)  # DDP, which comes next, wants to know
        if self.recipe.ema is not None:
            self._average = WeightAverage(network, self.recipe.ema)
        return optimizer, EpochSchedule(optimizer, self.recipe, self._effective_batch)

    @property
    def _effective_batch(self) -> int:
        """Samples for one update, over all processes."""
        return self.global_batch_size * self.recipe.accumulation

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss, or the one of the recipe."""
        merged = None
        if self.recipe.loss is Loss.marginal:
            merged = read_merged_classes(self.dataset_json, self.label_manager)
        return make_loss(
            self.recipe.loss.value, super()._build_loss(), self.label_manager,
            batch_dice=self.configuration_manager.batch_dice, is_ddp=self.is_ddp, merged_classes=merged,
        )  # fmt: skip

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """As nnU-Net; without mirroring, if the recipe says so, in training and in inference."""
        rotation, dummy_2d, initial_patch_size, axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.recipe.mirroring:
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, axes

    def get_dataloaders(self) -> tuple[Any, Any]:
        """As nnU-Net; with a seed, loaders that can be repeated."""
        loaders: tuple[Any, Any] = super().get_dataloaders()
        if self.recipe.seed is not None:
            repeatable = [seeds.make_repeatable(loader) for loader in loaders]
            if not all(repeatable) or self.device.type != "cpu":
                self.print_to_log_file(
                    f"Seed {self.recipe.seed}: runs start alike, but will differ by a little; they repeat to the bit "
                    "with -device cpu and nnUNet_n_proc_DA=0 alone"
                )
        return loaders

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Only ever on if the recipe says so (nnU-Net's validation switches it on at its end); Primus has none."""
        if self.architecture_family == "cnn":
            super().set_deep_supervision_enabled(enabled and self.enable_deep_supervision)

    def run_training(self) -> None:
        """As nnU-Net, or until the recipe's plateau, or until a signal, between two iterations.

        Raises:
            Stopped: a signal has come.
        """
        with deferred(), self.keeping_the_epoch_start():
            try:
                if self._continues and self._has_plateaued():
                    self.print_to_log_file("The training had reached its plateau: nothing is left to train")
                    if not (Path(self.output_folder) / FINAL).is_file():  # stopped in between
                        self.on_train_end()
                    return
                super().run_training()
            except Plateau as plateau:
                self.print_to_log_file(str(plateau))
                self.on_train_end()

    def on_train_start(self) -> None:
        """As nnU-Net, with the recipe in the log and, as `--set` may have changed it on continuing, in its file."""
        super().on_train_start()
        self.print_to_log_file("Recipe:\n" + as_yaml(self.recipe) + "Phases:\n" + "\n".join(phase_lines(self.recipe)))
        if self._continues and self.ranks.is_first:
            self._write_finetuning()

    def _write_finetuning(self) -> None:
        plans = self.plans_manager.plans
        write_finetuning(Path(self.output_folder), self.recipe, plans, self._walk.most_trained)

    def on_epoch_start(self) -> None:
        """As nnU-Net; with a seed every epoch begins with random numbers of its own, stopped and continued or not."""
        super().on_epoch_start()
        if self.recipe.seed is not None:
            # ranks draw different batches; no epoch of one has the numbers of another's
            seeds.seed_all(self.recipe.seed + 1 + self.current_epoch + self.ranks.rank * self.num_epochs)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net, in the epoch's phase; the learning rate in full: nnU-Net's log rounds 2e-06 to 0."""
        span = self._walk.enter(self.current_epoch, self.optimizer, self.print_to_log_file)
        self._wrap()
        super().on_train_epoch_start()
        self.print_to_log_file(
            f"Learning rate {self.optimizer.param_groups[0]['lr']:.3e} "
            f"({span.label}, epoch {self.current_epoch + 1} of {self.num_epochs})"
        )
        for logger in self.logger.loggers:
            logger.log("phase", span.index, self.current_epoch)
        self._report_progress("training")

    def _report_progress(self, state: str) -> None:
        if self.ranks.is_first:
            scores = self.logger.get_value("ema_fg_dice", step=None)
            report(self.current_epoch, self.num_epochs, scores[-1] if scores else None, state)

    def train_step(self, batch: dict) -> dict:
        """One update, from `accumulation` batches; with one batch and nnU-Net's precision it is nnU-Net's own."""
        self.stop_if_asked()
        batches = [batch, *(next(self.dataloader_train) for _ in range(self.recipe.accumulation - 1))]
        coupled = len(batches) > 1 and not is_mean_over_samples(
            self.recipe.loss.value, self.label_manager, self.configuration_manager.batch_dice
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss = (backward_as_one_batch if coupled else backward)(
            self.network, self._loss_of_cases, batches, device=self.device, precision=self.recipe.precision.value,
            scaler=self.grad_scaler, channels_last=self.recipe.channels_last,
        )  # fmt: skip
        take_step(self.optimizer, self.grad_scaler, self.network.parameters(), self.recipe.gradient_clipping)
        if self._average is not None:
            self._average.update(self.plain_network)
        return {"loss": loss.cpu().numpy()}

    def _loss_of_cases(self, output: Any, target: Any, cases: list[str]) -> torch.Tensor:
        tell_cases(self.loss, cases)
        loss: torch.Tensor = self.loss(output, target)
        return loss * self._share if self._share != 1 else loss

    def on_validation_epoch_start(self) -> None:
        """As nnU-Net, of the averaged weights where there are."""
        self._validation.enter_context(self._averaged())
        super().on_validation_epoch_start()

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net, with a loss that knows the cases."""
        tell_cases(self.loss, list(batch["keys"]))
        result: dict = super().validation_step(batch)
        return result

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As nnU-Net; the weights in training go on."""
        super().on_validation_epoch_end(val_outputs)
        self._validation.close()

    def on_epoch_end(self) -> None:
        """As nnU-Net, with the phases in `progress.png`.

        Raises:
            Plateau: the recipe's `early_stop` is reached.
        """
        super().on_epoch_end()
        if self.ranks.is_first:
            bands = [(span.label, span.start, span.end) for span in self._walk.spans]
            add_phases(Path(self.output_folder), self.logger.get_value("lrs", step=None), bands)
        if self.current_epoch < self.num_epochs and self._has_plateaued():
            raise Plateau(self.recipe.early_stop)

    def _has_plateaued(self) -> bool:
        scores = self.logger.get_value("ema_fg_dice", step=None)
        return has_plateaued(scores, self.recipe.early_stop, last_phase_start=self._walk.spans[-1].start)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net, of the averaged weights where there are."""
        self._report_progress("validating")
        with self._averaged():
            super().perform_actual_validation(save_probabilities)

    def on_train_end(self) -> None:
        """As nnU-Net; the low-rank adapter alone is saved beside the model."""
        super().on_train_end()
        if self.recipe.lora is not None and self.ranks.is_first and not self.disable_checkpointing:
            with self._averaged():
                save_adapter(self.plain_network, Path(self.output_folder) / ADAPTER_FOLDER)
