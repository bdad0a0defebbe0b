"""From a command's arguments to folds that are ready to train, checked before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.checkpoints.reading import read_network_weights
from nnunetv2_ext.checkpoints.sources import locate_recorded_checkpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching.ranks import Ranks
from nnunetv2_ext.nnunet_folders import CONFIGURATION, dataset_name, nnunet_folder, preprocessed_folder, read_json
from nnunetv2_ext.planning.plan_files import first_lasting_difference, read_plan
from nnunetv2_ext.planning.pretrain_info import network_without_values, rehearse_transfer
from nnunetv2_ext.recipes.recipe import Recipe
from nnunetv2_ext.recipes.resolving import recipe_from_dict
from nnunetv2_ext.training.checkpoint_files import FINAL
from nnunetv2_ext.training.fold_records import package_versions
from nnunetv2_ext.training.options import TrainingOptions
from nnunetv2_ext.training.readiness import check_cases, check_plan, check_results_folder, check_shares, parse_folds
from nnunetv2_ext.training.recipe_choice import check_recipe, refuse_another_recipe, requested_recipe, run_suffix
from nnunetv2_ext.training.resuming import check_same_training, is_finished, recipe_to_continue


@dataclass(frozen=True)
class FoldJob:
    """One fold, ready to train; plain data, so that it can be sent to another process."""

    plan: dict[str, Any]
    dataset_json: dict[str, Any]
    fold: int | str
    options: TrainingOptions


@dataclass(frozen=True)
class Training:
    """What a command trains.

    Attributes:
        dataset: full name.
        folder: the dataset's preprocessed folder.
        plan: with the run's name and recipe.
        long_name: the plan's.
        suffix: what the run adds to the plan's name.
        dataset_json: the dataset's description.
        recipe: as requested; a fold that goes on has its own.
        cases: names of all cases.
        folds: as requested.
    """

    dataset: str
    folder: Path
    plan: dict[str, Any]
    long_name: str
    suffix: str
    dataset_json: dict[str, Any]
    recipe: Recipe
    cases: list[str]
    folds: list[int | str]

    @property
    def trainer(self) -> str:
        """The first part of the model folder's name."""
        return str(self.plan["finetuning"]["trainer"])

    @property
    def model_folder(self) -> Path:
        """`TRAINER__PLANS__CONFIGURATION` in the results."""
        name = f"{self.trainer}__{self.plan['plans_name']}__{CONFIGURATION}"
        return nnunet_folder("nnUNet_results") / self.dataset / name

    @property
    def data_folder(self) -> Path:
        """The plan's preprocessed cases."""
        return self.folder / str(self.plan["configurations"][CONFIGURATION]["data_identifier"])

    def fold_folder(self, fold: int | str) -> Path:
        """`fold_X`."""
        return self.model_folder / f"fold_{fold}"


def prepare(
    dataset: str, configuration: str, folds: Sequence[str], plans: str, options: TrainingOptions, ranks: Ranks
) -> Training:
    """Read and check what is to be trained, on every rank for itself.

    Raises:
        UserError: whatever the user can put right, or ranks that have other plans, packages or options.
    """
    num_processes = max(ranks.size, options.num_gpus)
    training = ranks.agreed(lambda: _read(dataset, configuration, folds, plans, options, num_processes))
    ranks.compare({
        "version": package_versions(),
        "plan": training.plan,
        "dataset.json": training.dataset_json,
        "cases": len(training.cases),
        "folds": training.folds,
        "options": asdict(options),
    })  # fmt: skip
    return training


def _read(
    dataset: str,
    configuration: str,
    folds: Sequence[str],
    plans: str,
    options: TrainingOptions,
    num_processes: int,
) -> Training:
    fold_list = parse_folds(folds)
    if configuration != CONFIGURATION:
        raise UserError(f"-c takes {CONFIGURATION}, the one configuration that ptPlans have, not {configuration!r}")
    name = dataset_name(dataset)
    folder = preprocessed_folder(name)
    plan, long_name = read_plan(folder, plans)
    dataset_json = read_json(folder / "dataset.json")
    check_plan(plan)
    shape = plan["configurations"][CONFIGURATION]
    check_shares(shape["batch_size"], bool(shape.get("batch_dice")), num_processes)
    cases = check_cases(folder, name, plan, dataset_json, fold_list)
    network = network_without_values(plan, dataset_json)
    recipe = requested_recipe(plan, network, options.recipe)
    check_recipe(recipe, network, PlansManager(plan).get_label_manager(dataset_json), dataset_json, cases)
    suffix = run_suffix(plan, recipe, options.recipe)
    plan["plans_name"] += suffix
    plan["finetuning"] = {
        "trainer": options.recipe.trainer, "from_scratch": recipe.from_scratch, "recipe": recipe.as_dict()
    }  # fmt: skip
    return Training(name, folder, plan, long_name, suffix, dataset_json, recipe, cases, fold_list)


def fold_jobs(training: Training, options: TrainingOptions) -> tuple[list[FoldJob], list[int | str]]:
    """The folds that are left to train, and those that are finished.

    A fold that is named alone is trained anew even if it is finished, unless it is to continue.

    Raises:
        UserError: the results folder holds something else, or the checkpoint to start from is not there or does not
            fit.
    """
    model_folder, plan = training.model_folder, training.plan
    finished = [fold for fold in training.folds if _is_finished(training, fold, options)]
    left = [fold for fold in training.folds if fold not in finished]
    check_results_folder(model_folder, plan, left, continues=options.resumes)
    if not options.resumes or options.recipe.recipe is not None:
        refuse_another_recipe(model_folder, training.recipe, left)
    for fold in left if options.resumes else ():
        check_same_training(training.fold_folder(fold), plan, training.dataset_json)
    return [FoldJob(_plan_of_fold(training, fold, options), training.dataset_json, fold, options) for fold in left], (
        finished
    )


def _is_finished(training: Training, fold: int | str, options: TrainingOptions) -> bool:
    if options.only_validate or options.validate_best or not (options.continue_training or len(training.folds) > 1):
        return False
    plans_file = training.model_folder / "plans.json"
    if not plans_file.is_file() or first_lasting_difference(read_json(plans_file), training.plan):
        return False
    recipe = _recipe_of_fold(training, fold, options)["recipe"]
    return is_finished(training.fold_folder(fold), recipe, probabilities=options.save_probabilities)


def _recipe_of_fold(training: Training, fold: int | str, options: TrainingOptions) -> dict[str, Any]:
    """The requested recipe, or that of the fold's earlier run, changed by `--set`."""
    stored = recipe_to_continue(training.fold_folder(fold)) if options.resumes else None
    if not stored:
        return dict(training.plan["finetuning"])
    recipe = recipe_from_dict(stored, options.recipe.overrides)
    return training.plan["finetuning"] | {"from_scratch": recipe.from_scratch, "recipe": recipe.as_dict()}


def _plan_of_fold(training: Training, fold: int | str, options: TrainingOptions) -> dict[str, Any]:
    """The plan as the trainer gets it: with the fold's recipe, and with the checkpoint where it lies on this machine.

    A checkpoint that the network will be started from is rehearsed: a plan that was edited may not fit it any more.
    """
    plan, fold_folder = copy.deepcopy(training.plan), training.fold_folder(fold)
    plan["finetuning"] = _recipe_of_fold(training, fold, options)
    has_checkpoint = any(fold_folder.glob("checkpoint_*.pth"))
    if options.only_validate and not (fold_folder / FINAL).is_file():
        raise UserError(f"--val needs a finished training, and {fold_folder} has no {FINAL}: --c continues it")
    if not plan["finetuning"]["from_scratch"] and not (options.resumes and has_checkpoint):
        file = locate_recorded_checkpoint(plan["pretrain_info"], options.checkpoint)
        plan["pretrain_info"]["checkpoint_path"] = str(file.path)
        rehearse_transfer(plan, training.dataset_json, read_network_weights(file), file.path)
    return plan
