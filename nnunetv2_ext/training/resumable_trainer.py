"""A trainer's checkpoints: what stock nnU-Net predicts from, and what a training goes on from."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import torch

from nnunetv2_ext.errors import Stopped, UserError
from nnunetv2_ext.launching.ranks import is_of_a_lost_process
from nnunetv2_ext.launching.stopping import requested_by
from nnunetv2_ext.recipes.recipe import Recipe
from nnunetv2_ext.training.average import WeightAverage
from nnunetv2_ext.training.checkpoint_files import (
    BEST,
    INFERENCE_TRAINER,
    LATEST,
    PREVIOUS,
    ReadCheckpoint,
    continuing_from,
    held_in_memory,
    read_training_checkpoint,
    save_whole,
    set_aside_damaged,
    without_numpy,
)
from nnunetv2_ext.training.distributed_trainer import DistributedTrainer
from nnunetv2_ext.training.lora import merged_state_dict
from nnunetv2_ext.training.plateau import Plateau
from nnunetv2_ext.training.random_states import random_states, set_random_states


class ResumableTrainer(DistributedTrainer):
    """nnU-Net's trainer with checkpoints of its own, for a network that may have adapters and an average.

    Attributes:
        recipe: stands in every checkpoint.
    """

    recipe: Recipe
    optimizer: torch.optim.Optimizer
    _best_ema: float | None = None
    _average: WeightAverage | None = None
    _continues = False
    _random_states: list[dict[str, Any]] | None = None
    _epoch_start: dict[str, Any] | None = None
    _latest_starts: int | None = None
    """The epoch that `checkpoint_latest.pth` on the disk begins with."""

    def _averaged(self) -> AbstractContextManager[None]:
        """The network with the averaged weights in it, if the recipe has an average."""
        return nullcontext() if self._average is None else self._average.swapped(self.plain_network)

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint that stock nnU-Net predicts from and that is whole or absent.

        The keys are nnU-Net's (a test pins them) and `finetuning`. `trainer_name` is `nnUNetTrainer`: the plan beside
        the fold describes the network completely, and that class builds it from there. `network_weights` are those to
        predict with: averaged, adapters merged. What a training needs besides to go on is in `finetuning`.

        Raises:
            UserError: the disk is full, or cannot be written to.
        """
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        path = Path(filename)
        if path.name == LATEST:
            self._settle_best()
        with self._content(self.current_epoch + 1) as content:
            if self.ranks.is_first:
                save_whole(content, path)
        if path.name == LATEST:
            self._latest_starts = self.current_epoch + 1

    @contextmanager
    def _content(self, next_epoch: int) -> Iterator[dict[str, Any]]:
        """What a checkpoint holds from which the training goes on with `next_epoch`; its tensors are those in use."""
        scaler, network = self.grad_scaler, self.plain_network
        states = self.ranks.gathered(random_states(self.device))
        with self._averaged():
            yield without_numpy(
                {
                    "network_weights": merged_state_dict(network),
                    "optimizer_state": self.optimizer.state_dict(),
                    "grad_scaler_state": None if scaler is None else scaler.state_dict(),
                    "logging": self.logger.get_checkpoint(),
                    "_best_ema": self._best_ema,
                    "current_epoch": next_epoch,
                    "init_args": self.my_init_kwargs,
                    "trainer_name": INFERENCE_TRAINER,
                    "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
                    "finetuning": {
                        "trainer_name": type(self).__name__,
                        "recipe": self.recipe.as_dict(),
                        "from_scratch": self.recipe.from_scratch,
                        "unmerged_weights": None if self.recipe.lora is None else network.state_dict(),
                        "average": None if self._average is None else self._average.state_dict(),
                        "random_states": states,
                    },
                }
            )

    def on_epoch_start(self) -> None:
        """As nnU-Net, with the random numbers of a training that was never interrupted.

        Where `checkpoint_latest.pth` is older, the state is kept in memory: a training that is stopped before the next
        epoch goes on from here.
        """
        if self._random_states is not None:
            if self.ranks.rank < len(self._random_states):
                set_random_states(self._random_states[self.ranks.rank], self.device)
            self._random_states = None
        # its running average of numpy's numbers is rounded otherwise than of those that a checkpoint holds
        self.logger.load_checkpoint(without_numpy(self.logger.get_checkpoint()))
        if not self.disable_checkpointing and self._latest_starts != self.current_epoch:
            self.keep_epoch_start()
        super().on_epoch_start()

    def keep_epoch_start(self) -> None:
        """Copy what a checkpoint of this moment would hold, on the first rank."""
        self._epoch_start = None  # before the next is made: one copy is enough
        with self._content(self.current_epoch) as content:
            self._epoch_start = held_in_memory(content) if self.ranks.is_first else None

    def stop_if_asked(self) -> None:
        """End here, at the same iteration on all ranks, if a signal asked one of them to.

        The epoch's start becomes `checkpoint_latest.pth`; what was trained since is done again, and counted once.

        Raises:
            Stopped: a signal has come.
        """
        signal = self.ranks.any_has(requested_by())
        if signal is None:
            return
        kept = self._save_epoch_start()
        self.ranks.wait_for_all()  # a launcher ends all when the first has gone
        self._end_loaders()
        self._stop(signal, kept)

    def _stop(self, signal: str, kept: str) -> NoReturn:
        if self.disable_checkpointing:  # no job script must queue it again
            if not self.ranks.is_first:
                raise SystemExit(1)
            raise UserError(f"stopped by {signal} in epoch {self.current_epoch}; {kept}")
        self.print_to_log_file(f"Stopped by {signal} in epoch {self.current_epoch}: {kept}")
        raise Stopped(f"{signal} in epoch {self.current_epoch}; {kept}")

    def _save_epoch_start(self) -> str:
        """Make the epoch's start `checkpoint_latest.pth`, if that is older; needs no other rank. Says what is kept."""
        if self.disable_checkpointing:
            return "checkpointing is disabled and nothing is kept"
        kept = self._epoch_start
        if kept is not None and (self._latest_starts is None or kept["current_epoch"] > self._latest_starts):
            save_whole(kept, Path(self.output_folder) / LATEST)
            self._latest_starts, self._epoch_start = kept["current_epoch"], None
        return f"its start is in {LATEST}"

    @contextmanager
    def keeping_the_epoch_start(self) -> Iterator[None]:
        """Lose no finished epoch to an error: a lost process, memory that is full, a bug.

        An error after a signal is the signal's: it has ended the workers of the data loader, or another rank.

        Raises:
            Stopped: in place of an error that came after a signal.
        """
        try:
            yield
        except (UserError, Plateau):
            raise
        except Exception as error:
            if self.current_epoch >= self.num_epochs:
                raise
            kept = self._save_epoch_start() if self.ranks.is_first else ""
            lost = is_of_a_lost_process(error)  # a launcher that has lost one ends the others by a signal
            if (signal := requested_by()) is not None and not lost:
                self.print_to_log_file(f"{type(error).__name__} after {signal}: {error}")
                self._end_loaders()
                self._stop(signal, kept)
            why = "as another process has gone" if lost else "by an error"
            self.print_to_log_file(f"The training ended in epoch {self.current_epoch} {why}; {kept}")
            raise

    def _end_loaders(self) -> None:
        """End the data loaders' workers; left alone they complain that their training has gone."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):
                with redirect_stdout(io.StringIO()):
                    loader._finish()

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net, unless the training is asked to stop."""
        self.stop_if_asked()
        result: dict = super().validation_step(batch)
        return result

    def on_train_end(self) -> None:
        """As nnU-Net; the checkpoints on the way are not needed beside the final one.

        A validation that is there is of the model before the training was extended.
        """
        if self.ranks.is_first and not self.disable_checkpointing:
            (Path(self.output_folder) / "validation" / "summary.json").unlink(missing_ok=True)
        super().on_train_end()
        if self.ranks.is_first and not self.disable_checkpointing:
            (Path(self.output_folder) / PREVIOUS).unlink(missing_ok=True)

    def _settle_best(self) -> None:
        """Write `checkpoint_best` before `checkpoint_latest`.

        nnU-Net writes `checkpoint_latest` before it compares the epoch's score with the best one: a training that is
        continued from there would forget the best score and let a worse model replace `checkpoint_best`.
        """
        scores = self.logger.get_value("ema_fg_dice", step=None)
        if scores and (self._best_ema is None or scores[-1] > self._best_ema):
            self._best_ema = scores[-1]
            self.print_to_log_file(f"New best EMA pseudo Dice: {self._best_ema:.4f}")
            self.save_checkpoint(str(Path(self.output_folder) / BEST))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Continue from a checkpoint of this training; the pre-trained weights are then not needed.

        nnU-Net's own method takes the weights to predict with for those in training, and unpickles whatever a file
        holds.

        Raises:
            UserError: the checkpoint is not whole or belongs to another network.
        """
        path = Path(str(filename_or_checkpoint))
        self.continue_from(self.ranks.from_first(lambda: ReadCheckpoint(path, read_training_checkpoint(path), {})))

    def continue_from(self, checkpoint: ReadCheckpoint) -> None:
        """Go on from a checkpoint that the first rank has read. Raises UserError if it belongs to another network."""
        self._continues = True
        if not self.was_initialized:
            self.initialize()
        content = checkpoint.content
        with continuing_from(checkpoint.path):
            finetuning = content.get("finetuning") or {}
            self._load_weights(finetuning.get("unmerged_weights") or content["network_weights"], finetuning)
            self.optimizer.load_state_dict(content["optimizer_state"])
            if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
                self.grad_scaler.load_state_dict(content["grad_scaler_state"])
            self.current_epoch = content["current_epoch"]
            self.logger.load_checkpoint(content["logging"])
            self._best_ema = content["_best_ema"]
            self.inference_allowed_mirroring_axes = content["inference_allowed_mirroring_axes"]
            self._random_states = finetuning.get("random_states")
        if checkpoint.path.name == LATEST:
            self._latest_starts = self.current_epoch
        self._best_ema = self.ranks.from_first(self._best_score_on_disk)

    def _best_score_on_disk(self) -> float | None:
        """The best score so far, `checkpoint_best.pth` counted: it may be newer than what the training goes on from.

        The epochs in between are trained again, on a GPU not to the same bit; a worse one must not replace it.
        """
        path = Path(self.output_folder) / BEST
        if not path.is_file():
            return None
        try:
            score = read_training_checkpoint(path)["_best_ema"]
        except UserError as error:
            set_aside_damaged({path: str(error)}, self.print_to_log_file)
            return None
        return max((s for s in (score, self._best_ema) if s is not None), default=None)

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
