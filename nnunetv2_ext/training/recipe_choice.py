"""Which recipe a training gets, what its results are called, and whether both fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_ext.architectures.presets import family
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION, dataset_name, preprocessed_folder, read_json
from nnunetv2_ext.planning.names import FROM_SCRATCH_SUFFIX, check_pretraining_name, inner_plans_name
from nnunetv2_ext.planning.plan_files import read_plan
from nnunetv2_ext.planning.pretrain_info import network_without_values
from nnunetv2_ext.recipes.recipe import Loss, Recipe
from nnunetv2_ext.recipes.resolving import as_yaml, default_name, recipe_for
from nnunetv2_ext.recipes.trainer_names import TRAINER, named_recipe
from nnunetv2_ext.training.fold_records import stored_recipe
from nnunetv2_ext.training.lora import check_installed
from nnunetv2_ext.training.marginal import check_merged_cases, read_merged_classes
from nnunetv2_ext.training.network_setup import lora_modules
from nnunetv2_ext.training.parts import blocks_of, selected_parameters
from nnunetv2_ext.training.schedule import recipe_spans


@dataclass(frozen=True)
class RecipeOptions:
    """What the user chose.

    Attributes:
        recipe: `-r`, a shipped recipe's name or a YAML file.
        run_name: `-rn`.
        overrides: `--set`.
        from_scratch: `--from_scratch`.
        trainer: `-tr`, a name that may stand for a recipe.
    """

    recipe: str | None = None
    run_name: str | None = None
    overrides: tuple[str, ...] = ()
    from_scratch: bool = False
    trainer: str = TRAINER

    def check(self) -> None:
        """Raises UserError for a run's name that cannot be part of a folder's, and an unknown trainer."""
        if self.run_name is not None:
            check_pretraining_name(self.run_name, flag="-rn")
        named_recipe(self.trainer)


def requested_recipe(plan: Mapping[str, Any], network: nn.Module, options: RecipeOptions) -> Recipe:
    """The recipe of a new training with this plan.

    Args:
        plan: a ptPlan, whose own recipe counts where the user chose none.
        network: the plan's, with or without values.
        options: the user's choices.

    Raises:
        UserError: as `recipe_for`.
    """
    finetuning = plan.get("finetuning") or {}
    return recipe_for(
        family(plan["configurations"][CONFIGURATION]["architecture"]),
        options.overrides,
        from_scratch=options.from_scratch or bool(finetuning.get("from_scratch")),
        planned=finetuning.get("recipe"),
        chosen=options.recipe,
        trainer=options.trainer,
        blocks=blocks_of(network),
    )


def recipe_as_text(options: RecipeOptions, dataset: str | None = None, plans: str | None = None) -> str:
    """The whole recipe as YAML, as a training would get it.

    Args:
        options: the user's choices.
        dataset: id or name, and
        plans: the plan to train with; without either, as for a U-Net of ResEnc-L's depth.

    Raises:
        UserError: as `requested_recipe`; no such plan.
    """
    options.check()
    if dataset is None or plans is None:
        usual = "primus" if options.recipe == "primus" else "cnn"
        recipe = recipe_for(
            usual, options.overrides, from_scratch=options.from_scratch, chosen=options.recipe, trainer=options.trainer
        )
        return as_yaml(recipe)
    folder = preprocessed_folder(dataset_name(dataset))
    plan, _ = read_plan(folder, plans)
    dataset_json = read_json(folder / "dataset.json")
    network = network_without_values(plan, dataset_json)
    recipe = requested_recipe(plan, network, options)
    check_recipe(recipe, network, PlansManager(plan).get_label_manager(dataset_json), dataset_json)
    run_suffix(plan, recipe, options)
    return as_yaml(recipe)


def run_suffix(plan: Mapping[str, Any], recipe: Recipe, options: RecipeOptions) -> str:
    """What a run's results are called after the plan's name: nothing, `_NAME`, `_from_scratch`, or both.

    NAME is `-rn`, or the recipe's name where it is not the architecture's default one. A trainer's name that stands
    for a recipe is in the folder's name already. The plan of a run that has the suffix keeps it.
    """
    suffix = ""
    if options.run_name is not None:
        suffix = f"_{options.run_name}"
    elif named_recipe(options.trainer).is_plain:
        usual = default_name(family(plan["configurations"][CONFIGURATION]["architecture"]))
        suffix = "" if recipe.name == usual else f"_{check_pretraining_name(recipe.name, flag='recipe: name')}"
    is_of_a_run = "trainer" in (plan.get("finetuning") or {})  # a fresh plan may end in `_Z` too
    present = inner_plans_name(plan["plans_name"]) if is_of_a_run else ""
    if present.endswith(suffix) or present.removesuffix(FROM_SCRATCH_SUFFIX).endswith(suffix):
        suffix = ""
    if options.from_scratch and not f"{present}{suffix}".endswith(FROM_SCRATCH_SUFFIX):
        suffix += FROM_SCRATCH_SUFFIX
    return suffix


def check_recipe(
    recipe: Recipe,
    network: nn.Module,
    label_manager: Any,
    dataset_json: Mapping[str, Any],
    cases: Sequence[str] | None = None,
) -> None:
    """Refuse a recipe that this network or dataset cannot be trained with, before anything is written.

    Args:
        recipe: resolved.
        network: the plan's, with or without values.
        label_manager: nnU-Net's, of the dataset.
        dataset_json: the dataset's description.
        cases: names of all preprocessed cases, where they are known.

    Raises:
        UserError: a part that matches nothing, LoRA without peft, a loss that the dataset has nothing for.
    """
    for span in recipe_spans(recipe):
        selected_parameters(network, [part for part in span.phase.parts if part != "lora"])
    if recipe.lora is not None:
        check_installed()
        lora_modules(network, recipe.lora)
    if recipe.loss is Loss.marginal:
        merged_classes = read_merged_classes(dataset_json, label_manager)
        if cases is not None:
            check_merged_cases(merged_classes, cases)
    elif recipe.loss is Loss.topk and label_manager.has_regions:
        raise UserError("recipe: loss=topk is not defined for region-based labels: use ce, dice or focal")


def refuse_another_recipe(model_folder: Path, recipe: Recipe, folds: Sequence[int | str]) -> None:
    """Refuse to put a run of one recipe among, or in the place of, those of another. Raises UserError naming both."""
    for checkpoint in sorted(model_folder.glob("fold_*/checkpoint_*.pth")):
        stored = stored_recipe(checkpoint.parent)
        if stored and stored["name"] != recipe.name and not _are_baselines(stored, recipe):
            where = "this fold" if checkpoint.parent.name in {f"fold_{f}" for f in folds} else checkpoint.parent.name
            raise UserError(
                f"{model_folder} holds a run of the recipe {stored['name']} ({where}), and this one is of "
                f"{recipe.name}: name it with -rn NAME, or move that folder away"
            )


def _are_baselines(stored: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether both are the default recipe from scratch, whose name `-r from_scratch` and `--from_scratch` differ in."""
    names = {"default", "primus", "from_scratch"}
    return {stored["name"], recipe.name} <= names and bool(stored.get("from_scratch")) and recipe.from_scratch
