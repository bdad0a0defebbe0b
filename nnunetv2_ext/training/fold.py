"""Train and validate one fold in this process, alone or as one of several ranks."""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching.ranks import Ranks
from nnunetv2_ext.nnunet_folders import CONFIGURATION
from nnunetv2_ext.training.checkpoint_files import (
    BEST,
    FINAL,
    ReadCheckpoint,
    read_to_continue,
    remove_leftovers,
    set_aside_damaged,
)
from nnunetv2_ext.training.distributed_trainer import STARTING
from nnunetv2_ext.training.loggers import add_loggers, disable, enable
from nnunetv2_ext.training.preparation import FoldJob
from nnunetv2_ext.training.readiness import set_aside_previous_run
from nnunetv2_ext.training.trainer import PretrainedTrainer, trainer_class

_WAIT_FOR_LOCK = 10.0
"""Seconds: what a training that was killed has started ends a moment after it."""


def train_fold(job: FoldJob, fold_folder: Path, ranks: Ranks) -> None:
    """Train and validate, in the order that nnU-Net's `run_training` has.

    Args:
        job: the fold.
        fold_folder: where its results go.
        ranks: who trains it together.

    Raises:
        UserError: another training is at work on the fold, or its checkpoints cannot be read.
    """
    from torch.backends import cudnn

    with _locked(fold_folder, ranks):
        options = job.options
        found = ranks.from_first(lambda: _beginning(job, fold_folder))
        plans = {**copy.deepcopy(job.plan), "continue_training": options.continue_training}
        if options.only_validate or not ranks.is_first:
            disable()
        else:
            enable(options.loggers)
        trainer = trainer_class(options.recipe.trainer)(
            plans, CONFIGURATION, job.fold, job.dataset_json, torch.device(options.device)
        )
        trainer.disable_checkpointing = options.disable_checkpointing
        if found is not None:
            _continue(trainer, found)
        if torch.cuda.is_available():
            cudnn.deterministic = False
            cudnn.benchmark = True
        if not options.only_validate and not _is_trained(trainer, found):
            _train(trainer, job)
        if options.validate_best:
            trainer.load_checkpoint(str(fold_folder / BEST))
        trainer.perform_actual_validation(options.save_probabilities)


def _beginning(job: FoldJob, fold_folder: Path) -> ReadCheckpoint | None:
    """Put the fold's folder in order, and read what it goes on from."""
    options = job.options
    if not options.resumes:
        previous = set_aside_previous_run(fold_folder)
        if previous:
            print(f"{fold_folder.name} held an earlier run; it is kept as {previous}")
        return None
    remove_leftovers(fold_folder, STARTING)
    if options.only_validate:
        return read_to_continue(fold_folder, (FINAL,))
    found = read_to_continue(fold_folder)
    if found is None:
        print(f"{fold_folder.name} has no checkpoint to continue from: it begins anew")
        return None
    set_aside_damaged(found.passed_over, print)
    return found


def _continue(trainer: PretrainedTrainer, found: ReadCheckpoint) -> None:
    for reason in found.passed_over.values():
        trainer.print_to_log_file(reason)
    trainer.continue_from(found)
    done = _is_trained(trainer, found)
    what = "the training is finished, what is left is its validation" if done else f"epoch {trainer.current_epoch}"
    trainer.print_to_log_file(f"Continuing from {found.path.name}: {what}")


def _is_trained(trainer: PretrainedTrainer, found: ReadCheckpoint | None) -> bool:
    return found is not None and found.path.name == FINAL and trainer.current_epoch >= trainer.num_epochs


def _train(trainer: PretrainedTrainer, job: FoldJob) -> None:
    if trainer.ranks.is_first:
        config = {"recipe": trainer.recipe.as_dict(), "plans": job.plan["plans_name"], "fold": job.fold}
        add_loggers(trainer.logger, job.options.loggers, Path(trainer.output_folder), trainer.current_epoch, config)
    try:
        trainer.run_training()
    except OSError as error:  # of what nnU-Net writes beside the checkpoints
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{trainer.output_folder} could not be written to ({error.strerror}): make room, and the same command with "
            "--c continues"
        ) from error


@contextmanager
def _locked(fold_folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other trainings from the fold; the system lets go of the lock however this one ends."""
    lock = FileLock(fold_folder.with_name(f".{fold_folder.name}.lock"))
    ranks.from_first(lambda: _acquire(lock, fold_folder))
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, fold_folder: Path) -> None:
    try:
        lock.acquire(timeout=_WAIT_FOR_LOCK)
    except Timeout as error:
        raise UserError(
            f"another process is training {fold_folder}: wait for it, or end it, before this command is given again"
        ) from error
    except (NotImplementedError, OSError):  # not every file system has locks
        return
