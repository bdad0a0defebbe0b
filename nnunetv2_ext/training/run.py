"""Train folds of a ptPlan: what nnUNetv2_train_pretrained does."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import sha256, write_json
from nnunetv2_ext.launching.elastic import TRAINING, launch_on_this_node
from nnunetv2_ext.launching.fold_outcomes import closing_table, exit_code
from nnunetv2_ext.launching.fold_queue import THREADS_VARIABLE, train_in_processes
from nnunetv2_ext.launching.ranks import ALONE, Ranks, joined, launched
from nnunetv2_ext.nnunet_folders import CONFIGURATION, dataset_id
from nnunetv2_ext.training.options import ALL_GPUS, TrainingOptions
from nnunetv2_ext.training.preparation import Training, fold_jobs, prepare
from nnunetv2_ext.training.readiness import SPLITS_FILE, ensure_splits

_FIRST_SPEAKS = 3.0
"""Seconds that other ranks wait before they end: a launcher ends the first one, too, as soon as one of them has."""


def train(
    dataset: str,
    configuration: str,
    folds: Sequence[str],
    plans: str,
    options: TrainingOptions,
    command: Sequence[str] = (),
) -> int:
    """Train folds, validate each, and print the prediction command.

    One fold trains in this process, or in `options.num_gpus` of its own, or with the others that torchrun has started;
    several folds train in a process each, so that the end of one is not the end of all.

    Args:
        dataset: id or full name.
        configuration: `3d_fullres`.
        folds: numbers or `all`.
        plans: the plan's long or inner name.
        options: the user's choices.
        command: the arguments of `nnUNetv2_train_pretrained` that ask for the same; needed for several processes.

    Returns:
        The exit code: 0 finished, 75 stopped and to be continued, 1 a fold has failed.

    Raises:
        UserError: whatever the user can put right, found before anything is written.
        Stopped: a signal has come.
    """
    ranks = launched()
    if options.gpus:  # before CUDA is asked anything, and the answer kept
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(options.gpus)
    _check(options, ranks)
    if ranks is not None:
        with joined(ranks, options.device, options.timeout) as present:
            _train_here(prepare(dataset, configuration, folds, plans, options, present), options, present)
        return 0
    training = prepare(dataset, configuration, folds, plans, options, ALONE)
    if len(training.folds) > 1:
        return _train_in_processes(training, options, command)
    if options.num_gpus > 1:
        fold_jobs(training, options)  # its errors, before anything is started
        return launch_on_this_node(options.num_gpus, [*command, "-num_gpus", "1", "-gpus", ALL_GPUS])
    _train_here(training, options, ALONE)
    return 0


def _train_here(training: Training, options: TrainingOptions, ranks: Ranks) -> None:
    jobs, finished = ranks.from_first(lambda: fold_jobs(training, options))
    if not ranks.is_first:
        if ranks.local_rank == 0:
            print(f"rank {ranks.rank} of {ranks.size} on {socket.gethostname()}: rank 0 prints what is done")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  to the end of the process
    for fold in finished:
        print(f"fold_{fold} is finished, its validation too: nothing is left to do")
    if not jobs:
        _print_next(training, options)
        return
    token = ranks.from_first(lambda: _begin(training))
    try:
        ranks.agreed(lambda: _ensure_splits(training, ranks))
        splits = training.folder / SPLITS_FILE
        ranks.compare({SPLITS_FILE: sha256(splits) if splits.is_file() else None})
        ranks.agreed(lambda: _check_shared(training.model_folder / token.name))
    finally:
        if ranks.is_first:
            token.unlink(missing_ok=True)
    _set_threads(options.device, ranks)
    from nnunetv2_ext.training.fold import train_fold  # nnU-Net's trainer takes seconds to import: not for a refusal

    for job in jobs:
        train_fold(job, training.fold_folder(job.fold), ranks)
    _print_next(training, options)


def _check(options: TrainingOptions, ranks: Ranks | None) -> None:
    """Refuse what makes no sense; where several processes find the same, the first one says it."""
    try:
        options.check(launched=ranks is not None)
    except UserError as error:
        if ranks is None or ranks.is_first:
            raise
        time.sleep(_FIRST_SPEAKS)
        raise SystemExit(1) from error


def _train_in_processes(training: Training, options: TrainingOptions, command: Sequence[str]) -> int:
    jobs, finished = fold_jobs(training, options)
    for fold in finished:
        print(f"fold_{fold} is finished and skipped")
    if jobs:
        _begin(training).unlink(missing_ok=True)
        _ensure_splits(training, ALONE)
    outcomes = train_in_processes(
        [sys.executable, "-m", TRAINING, *command, "-parallel_folds", "1", "-gpus", ALL_GPUS],
        [job.fold for job in jobs],
        skipped=finished,
        parallel=options.parallel_folds,
        gpus=list(options.gpus),
        logs=training.model_folder / "logs",
        cpu_cores=os.cpu_count() if options.device == "cpu" else None,
    )
    print(closing_table(outcomes))
    code = exit_code(outcomes)
    if code == 0:
        _print_next(training, options)
    return code


def _begin(training: Training) -> Path:
    """Write what all folds share, and leave a file in the model's folder that other nodes must see."""
    model_folder = training.model_folder
    try:
        _write_for_stock_commands(training)
        model_folder.mkdir(parents=True, exist_ok=True)
        _link_long_name(training)
        handle, name = tempfile.mkstemp(prefix=".seen_by_all_", dir=model_folder)
    except OSError as error:
        raise UserError(f"{error.filename or model_folder} cannot be written to: {error.strerror}") from error
    os.close(handle)
    return Path(name)


def _ensure_splits(training: Training, ranks: Ranks) -> None:
    """Once on each node, whose preprocessed cases may be its own."""
    if ranks.local_rank == 0:
        ensure_splits(training.folder, training.data_folder, training.folds)


def _check_shared(token: Path) -> None:
    if not token.is_file():
        raise UserError(f"{token.parent} is not the folder that rank 0 writes to: nnUNet_results must be shared")


def _print_next(training: Training, options: TrainingOptions) -> None:
    if options.disable_checkpointing:
        return
    folds = [fold for fold in training.folds if fold != "all"] or training.folds  # `all` goes with no other
    device = "" if options.device == "cuda" else f" -device {options.device}"
    print(
        f"\nModel: {training.model_folder}\nNext:\n  nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER "
        f"-d {dataset_id(training.dataset)} -c {CONFIGURATION} -f {' '.join(map(str, folds))} "
        f"-p {training.plan['plans_name']} -tr {training.trainer}{device}"
    )


def _write_for_stock_commands(training: Training) -> None:
    """Stock commands read the plan under its inner name, where plans of the fork and from scratch are not yet.

    A plan with a run's name follows the plan that it is derived from.
    """
    path = training.folder / f"{training.plan['plans_name']}.json"
    if training.suffix or not path.is_file():
        write_json(path, training.plan)


def _set_threads(device: str, ranks: Ranks) -> None:
    """As nnU-Net: all cores on the CPU; one thread beside a GPU, where more do not help."""
    if device == "cpu":
        share = max(1, (os.cpu_count() or 1) // ranks.local_size)
        torch.set_num_threads(int(os.environ.get(THREADS_VARIABLE, share)))
    elif device == "cuda":
        torch.set_num_threads(1)
        with suppress(RuntimeError):  # can be set once in a process
            torch.set_num_interop_threads(1)


def _link_long_name(training: Training) -> None:
    """A relative link with the long name beside the model, for scripts that were written for the fork."""
    model_folder = training.model_folder
    link = model_folder.with_name(f"{training.trainer}__{training.long_name}{training.suffix}__{CONFIGURATION}")
    if link.name == model_folder.name or link.exists() or link.is_symlink():
        return
    with suppress(OSError, NotImplementedError):  # not every file system has links
        link.symlink_to(model_folder.name, target_is_directory=True)
