"""From a recipe's name or file and the user's changes to the recipe of a training."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.parts import is_outside_encoder
from nnunetv2_ext.recipes.phases import Phase, spans
from nnunetv2_ext.recipes.reading import is_file, known_fields, merged, parsed_overrides, read_recipe_file
from nnunetv2_ext.recipes.recipe import Recipe
from nnunetv2_ext.recipes.scaling import Blocks, gradually_unfrozen, scaled_to
from nnunetv2_ext.recipes.trainer_names import TRAINER, NamedRecipe, named_recipe

_RESENC_L_BLOCKS = Blocks(encoder=6, decoder=5)


def shipped_names() -> list[str]:
    """The recipes of this package, the default ones first."""
    names = {Path(p.name).stem for p in files("nnunetv2_ext.recipes").iterdir() if p.name.endswith(".yaml")}
    return sorted(names, key=lambda name: (name not in ("default", "primus"), name))


def default_name(family: str) -> str:
    """The recipe that an architecture family gets unless another one is chosen."""
    return "primus" if family == "primus" else "default"


def shipped(name: str, family: str) -> Recipe:
    """A recipe of this package as it is for an architecture family.

    Its file is laid over the family's default recipe; what stands below `primus` in it counts for Primus alone.

    Raises:
        UserError: there is none of this name; the nearest is named.
    """
    return copy.deepcopy(_shipped(name, family))


def recipe_for(
    family: str,
    overrides: Sequence[str] = (),
    *,
    from_scratch: bool = False,
    planned: Mapping[str, Any] | None = None,
    chosen: str | None = None,
    trainer: str = TRAINER,
    blocks: Blocks = _RESENC_L_BLOCKS,
) -> Recipe:
    """The recipe of a new training: a shipped one or a file, and the user's changes.

    `num_epochs` alone scales the phases in proportion (`scaling.scaled_to`), unless they are the user's own. From
    scratch the peak is `initial_lr_from_scratch`, unless an override names `initial_lr`.

    Args:
        family: `cnn` or `primus`.
        overrides: as `--set` takes them, `key=value` with dots for what lies deeper.
        from_scratch: train without the pre-trained weights.
        planned: the recipe in a plans file, which a user may have edited; counts where none is chosen.
        chosen: a shipped recipe's name, or the path of a YAML file, which is laid over the family's default.
        trainer: a name that may stand for a recipe (`trainer_names`).
        blocks: of the network, for gradual unfreezing.

    Raises:
        UserError: an unknown key (the nearest is named), a value of the wrong type or out of range, phases that do not
            fit, something that the architecture has not.
    """
    named = named_recipe(trainer)
    if chosen is not None and not named.is_plain:
        raise UserError(f"-tr {trainer} is a recipe, and so is -r {chosen}: give one of the two")
    if not named.is_plain:
        recipe, content, own_phases = _of_trainer(trainer, named, named.form or family), dict[str, Any](), False
    else:
        recipe, content, own_phases = _starting_point(family, chosen, planned)
    given = parsed_overrides(overrides)
    single_phases = given.pop("phases") if isinstance(given.get("phases"), dict) else {}
    own_phases |= "phases" in given
    changed = _completed(_changed(recipe, given, own_phases), given)
    if own_phases and given.get("gradual_unfreezing") and "phases" not in given:
        own_phases, content, changed.phases = False, {}, [Phase()]  # the user has them made anew
    if changed.gradual_unfreezing is not None and not own_phases:
        changed.validate()
        changed = _made_from_depth(changed, content, given, blocks)
    if single_phases:
        changed = merged(changed, {"phases": single_phases})
    if from_scratch or changed.from_scratch:
        changed.from_scratch = True
        is_chosen = "initial_lr" in content and content.get("from_scratch") and "initial_lr_from_scratch" not in given
        if "initial_lr" not in given and not is_chosen:
            changed.initial_lr = changed.initial_lr_from_scratch
    _check(changed)
    _check_family(changed, family)
    return changed


def _of_trainer(trainer: str, named: NamedRecipe, form: str) -> Recipe:
    recipe = shipped(named.chosen or default_name(form), form)
    return dataclasses.replace(_changed(recipe, parsed_overrides(named.overrides), own_phases=False), name=trainer)


def _starting_point(
    family: str, chosen: str | None, planned: Mapping[str, Any] | None
) -> tuple[Recipe, dict[str, Any], bool]:
    """The recipe before the changes, the file or planned recipe that it comes from, whether its phases are a user's."""
    usual = shipped(default_name(family), family)
    if chosen is not None and is_file(chosen):
        content = read_recipe_file(Path(chosen))
        own_phases = "phases" in content
        return _completed(_changed(usual, content, own_phases), content), content, own_phases
    if chosen is not None:
        return shipped(chosen, family), {}, False
    if planned:
        content = known_fields(dict(planned))
        like = shipped(content["name"], family) if content.get("name") in shipped_names() else usual
        own_phases = "phases" in content and merged(usual, content).phases != like.phases
        return _completed(_changed(usual, content, "phases" in content), content), content, own_phases
    return usual, {}, False


def recipe_from_dict(stored: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe as it was stored in a plan or a fold, with `key=value` overrides on top and nothing scaled.

    Raises:
        UserError: as `recipe_for`.
    """
    recipe = merged(Recipe(), known_fields(dict(stored)))
    recipe = _changed(recipe, parsed_overrides(overrides), own_phases=True)
    _check(recipe)
    return recipe


def as_yaml(recipe: Recipe) -> str:
    """The whole recipe, as `-r FILE.yaml` reads it."""
    return yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True, width=120)


@cache  # OmegaConf takes 15 ms to merge
def _shipped(name: str, family: str) -> Recipe:
    if name == default_name(family):
        return merged(Recipe(), _content_of(name, family))
    return merged(_shipped(default_name(family), family), _content_of(name, family))


def _content_of(name: str, family: str) -> dict[str, Any]:
    if name not in shipped_names():
        close = difflib.get_close_matches(name, shipped_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(shipped_names())}, or give a .yaml file"
        raise UserError(f"there is no recipe {name!r} (-r); {hint}")
    content = yaml.safe_load(files("nnunetv2_ext.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    of_primus = content.pop("primus", {})
    return {**content, **(of_primus if family == "primus" else {})}


def _completed(recipe: Recipe, content: Mapping[str, Any]) -> Recipe:
    """Phases of a user's own that all say their length say how long the training is."""
    own = bool(content.get("phases")) and isinstance(content["phases"], list) and "num_epochs" not in content
    if own and all(isinstance(phase.epochs, int) for phase in recipe.phases):
        return dataclasses.replace(recipe, num_epochs=sum(p.epochs for p in recipe.phases), warmup_epochs=0)
    return recipe


def _made_from_depth(recipe: Recipe, content: Mapping[str, Any], given: Mapping[str, Any], blocks: Blocks) -> Recipe:
    """Gradual unfreezing, in as many epochs as the user's changes, or else the file or plan that asks for it, say."""
    source = given if "num_epochs" in given else content if content.get("gradual_unfreezing") else {}
    frequency_is_given = "unfreeze_frequency" in (source.get("gradual_unfreezing") or {})
    num_epochs = recipe.num_epochs if "num_epochs" in source else None
    return gradually_unfrozen(recipe, blocks, num_epochs, frequency_is_given=frequency_is_given)


def _changed(recipe: Recipe, changes: Mapping[str, Any], own_phases: bool) -> Recipe:
    if "num_epochs" in changes and not own_phases and recipe.num_epochs > 0:
        num_epochs = merged(recipe, {"num_epochs": changes["num_epochs"]}).num_epochs
        if num_epochs >= 1:
            warmup = {k: v for k, v in changes.items() if k == "warmup_epochs"}
            recipe = scaled_to(
                recipe, num_epochs, warmup_epochs=merged(recipe, warmup).warmup_epochs if warmup else None
            )
    return merged(recipe, changes)


def _check(recipe: Recipe) -> None:
    recipe.validate()
    trained = {
        part for span in spans(recipe.phases, recipe.num_epochs, recipe.warmup_epochs) for part in span.phase.parts
    }
    if recipe.from_scratch and all(is_outside_encoder(part) for part in trained):
        raise UserError(f"recipe: {recipe.name} never trains the encoder, which makes no sense with from_scratch")


def _check_family(recipe: Recipe, family: str) -> None:
    if recipe.deep_supervision and family == "primus":
        raise UserError("recipe: deep_supervision is for U-Nets; Primus has one output")
    if recipe.drop_path and family != "primus":
        raise UserError("recipe: drop_path is for Primus, and this plan's network is a U-Net: --set drop_path=0")
