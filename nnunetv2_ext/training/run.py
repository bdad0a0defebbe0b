"""Train folds of a ptPlan: what nnUNetv2_train_pretrained does."""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.checkpoints.reading import read_network_weights
from nnunetv2_ext.checkpoints.sources import locate_recorded_checkpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import write_json
from nnunetv2_ext.nnunet_folders import (
    CONFIGURATION,
    dataset_id,
    dataset_name,
    nnunet_folder,
    preprocessed_folder,
    read_json,
)
from nnunetv2_ext.planning.plan_files import read_plan
from nnunetv2_ext.planning.pretrain_info import network_without_values, rehearse_transfer
from nnunetv2_ext.recipes.resolving import recipe_from_dict
from nnunetv2_ext.training.fold_records import stored_recipe
from nnunetv2_ext.training.loggers import add_loggers, check_loggers, disable, enable
from nnunetv2_ext.training.readiness import (
    check_cases,
    check_device,
    check_plan,
    check_results_folder,
    parse_folds,
    set_aside_previous_run,
)
from nnunetv2_ext.training.recipe_choice import (
    RecipeOptions,
    check_recipe,
    check_several_gpus,
    refuse_another_recipe,
    requested_recipe,
    run_suffix,
)


@dataclass(frozen=True)
class TrainingOptions:
    """What the user chose, in the words of `nnUNetv2_train`.

    Attributes:
        device: `cuda`, `cpu` or `mps`.
        num_gpus: processes on this node, one for each GPU.
        continue_training: `--c`.
        only_validate: `--val`.
        validate_best: `--val_best`.
        save_probabilities: `--npz`.
        disable_checkpointing: `--disable_checkpointing`.
        recipe: how to train.
        checkpoint: `-overwrite_ckpt_path`, any source.
        loggers: `-logger`.
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

    def check(self) -> None:
        """Refuse combinations that make no sense. Raises UserError."""
        self.recipe.check()
        check_loggers(self.loggers)
        if self.continue_training and self.only_validate:
            raise UserError("--c continues a training and --val only validates a finished one: give one of the two")
        if self.validate_best and self.disable_checkpointing:
            raise UserError("--val_best needs the checkpoints that --disable_checkpointing does not write")
        check_device(self.device, self.num_gpus)


@dataclass(frozen=True)
class FoldJob:
    """One fold, ready to train; plain data, so that it can be sent to another process."""

    plan: dict[str, Any]
    dataset_json: dict[str, Any]
    fold: int | str
    options: TrainingOptions


def train(dataset: str, configuration: str, folds: Sequence[str], plans: str, options: TrainingOptions) -> None:
    """Train folds one after another, validate each, and print the prediction command.

    Args:
        dataset: id or full name.
        configuration: `3d_fullres`.
        folds: numbers or `all`.
        plans: the plan's long or inner name.
        options: the user's choices.

    Raises:
        UserError: whatever the user can put right, found before anything is written.
    """
    options.check()
    fold_list = parse_folds(folds)
    if configuration != CONFIGURATION:
        raise UserError(f"-c takes {CONFIGURATION}, the one configuration that ptPlans have, not {configuration!r}")
    name = dataset_name(dataset)
    folder = preprocessed_folder(name)
    plan, long_name = read_plan(folder, plans)
    dataset_json = read_json(folder / "dataset.json")
    check_plan(plan)
    cases = check_cases(folder, name, plan, dataset_json, fold_list)
    trainer, resumes = options.recipe.trainer, options.continue_training or options.only_validate
    network = network_without_values(plan, dataset_json)
    recipe = requested_recipe(plan, network, options.recipe)
    check_recipe(recipe, network, PlansManager(plan).get_label_manager(dataset_json), dataset_json, cases)
    check_several_gpus(recipe, options.num_gpus)
    if plan["configurations"][CONFIGURATION]["batch_size"] < options.num_gpus:
        raise UserError(f"-num_gpus {options.num_gpus} is more than the plan's batch size: plan with a larger -bs")
    suffix = run_suffix(plan, recipe, options.recipe)
    plan["plans_name"] += suffix
    plan["finetuning"] = {"trainer": trainer, "from_scratch": recipe.from_scratch, "recipe": recipe.as_dict()}
    model_folder = nnunet_folder("nnUNet_results") / name / f"{trainer}__{plan['plans_name']}__{CONFIGURATION}"
    check_results_folder(model_folder, plan, fold_list, continues=resumes)
    if not resumes or options.recipe.recipe is not None:
        refuse_another_recipe(model_folder, recipe, fold_list)
    jobs = [
        FoldJob(_training_plan(plan, dataset_json, model_folder / f"fold_{fold}", options), dataset_json, fold, options)
        for fold in fold_list
    ]

    _write_for_stock_commands(folder, plan, replace=bool(suffix))
    model_folder.mkdir(parents=True, exist_ok=True)
    _link_long_name(model_folder, f"{trainer}__{long_name}{suffix}__{CONFIGURATION}")
    _set_threads(options.device)
    for job in jobs:
        fold_folder = model_folder / f"fold_{job.fold}"
        if not options.continue_training and not options.only_validate:
            previous = set_aside_previous_run(fold_folder)
            if previous:
                print(f"{fold_folder.name} held an earlier run; it is kept as {previous}")
        _run(job)
    if options.disable_checkpointing:
        return
    device = "" if options.device == "cuda" else f" -device {options.device}"
    print(
        f"\nModel: {model_folder}\nNext:\n  nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d {dataset_id(name)} "
        f"-c {CONFIGURATION} -f {' '.join(map(str, fold_list))} -p {plan['plans_name']} -tr {trainer}{device}"
    )


def _training_plan(
    plan: dict[str, Any], dataset_json: dict[str, Any], fold_folder: Path, options: TrainingOptions
) -> dict[str, Any]:
    """The plan as the trainer gets it: with the fold's recipe, and with the checkpoint where it lies on this machine.

    A checkpoint that the network will be started from is rehearsed: a plan that was edited may not fit it any more.
    """
    plan = copy.deepcopy(plan)
    resumes = options.continue_training or options.only_validate
    stored = stored_recipe(fold_folder) if resumes else None
    if stored:
        recipe = recipe_from_dict(stored, options.recipe.overrides)
        plan["finetuning"] |= {"from_scratch": recipe.from_scratch, "recipe": recipe.as_dict()}
    has_checkpoint = any(fold_folder.glob("checkpoint_*.pth"))
    if options.only_validate and not (fold_folder / "checkpoint_final.pth").is_file():
        raise UserError(
            f"--val needs a finished training, and {fold_folder} has no checkpoint_final.pth: --c continues it"
        )
    if not plan["finetuning"]["from_scratch"] and not (resumes and has_checkpoint):
        file = locate_recorded_checkpoint(plan["pretrain_info"], options.checkpoint)
        plan["pretrain_info"]["checkpoint_path"] = str(file.path)
        rehearse_transfer(plan, dataset_json, read_network_weights(file), file.path)
    return plan


def _write_for_stock_commands(folder: Path, plan: dict[str, Any], *, replace: bool) -> None:
    """Stock commands read the plan under its inner name, where plans of the fork and from scratch are not yet.

    `replace`: a plan with a recipe's name follows the plan that it is derived from.
    """
    path = folder / f"{plan['plans_name']}.json"
    if replace or not path.is_file():
        write_json(path, plan)


def _run(job: FoldJob) -> None:
    if job.options.num_gpus == 1:
        _train_fold(job)
        return
    import torch.multiprocessing as mp
    from nnunetv2.run.run_training import find_free_network_port

    os.environ["MASTER_ADDR"] = "localhost"
    os.environ.setdefault("MASTER_PORT", str(find_free_network_port()))
    mp.spawn(_train_fold_on_rank, args=(job,), nprocs=job.options.num_gpus, join=True)


def _train_fold_on_rank(rank: int, job: FoldJob) -> None:
    from nnunetv2.run.run_training import cleanup_ddp, setup_ddp

    setup_ddp(rank, job.options.num_gpus)
    torch.cuda.set_device(torch.device("cuda", rank))
    _train_fold(job)
    cleanup_ddp()


def _train_fold(job: FoldJob) -> None:
    """Train and validate one fold in this process, in the order that nnU-Net's `run_training` has."""
    from nnunetv2.run.run_training import maybe_load_checkpoint
    from torch.backends import cudnn

    from nnunetv2_ext.training.trainer import trainer_class

    options = job.options
    plans = {**copy.deepcopy(job.plan), "continue_training": options.continue_training}
    if options.only_validate or _rank() > 0:
        disable()
    else:
        enable(options.loggers)
    trainer = trainer_class(options.recipe.trainer)(
        plans, CONFIGURATION, job.fold, job.dataset_json, torch.device(options.device)
    )
    trainer.disable_checkpointing = options.disable_checkpointing
    maybe_load_checkpoint(trainer, options.continue_training, options.only_validate)
    if torch.cuda.is_available():
        cudnn.deterministic = False
        cudnn.benchmark = True
    if not options.only_validate:
        if _rank() == 0:
            config = {"recipe": trainer.recipe.as_dict(), "plans": plans["plans_name"], "fold": job.fold}
            add_loggers(trainer.logger, options.loggers, Path(trainer.output_folder), trainer.current_epoch, config)
        trainer.run_training()
    if options.validate_best:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
    trainer.perform_actual_validation(options.save_probabilities)


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _set_threads(device: str) -> None:
    """As nnU-Net: all cores on the CPU; one thread beside a GPU, where more do not help."""
    if device == "cpu":
        torch.set_num_threads(multiprocessing.cpu_count())
    elif device == "cuda":
        torch.set_num_threads(1)
        with suppress(RuntimeError):  # can be set once in a process
            torch.set_num_interop_threads(1)


def _link_long_name(model_folder: Path, long_folder_name: str) -> None:
    """A relative link with the long name beside the model, for scripts that were written for the fork."""
    link = model_folder.with_name(long_folder_name)
    if link.name == model_folder.name or link.exists() or link.is_symlink():
        return
    with suppress(OSError, NotImplementedError):  # not every file system has links
        link.symlink_to(model_folder.name, target_is_directory=True)
