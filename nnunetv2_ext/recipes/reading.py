"""What a user writes of a recipe, a file or `--set`, read and laid over a recipe with every name and type checked."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.phases import Phase
from nnunetv2_ext.recipes.recipe import GradualUnfreezing, Lora, Precision, Recipe


def is_file(chosen: str) -> bool:
    """Whether `-r` means a file rather than a name."""
    return chosen.endswith((".yaml", ".yml")) or "/" in chosen


def read_recipe_file(path: Path) -> dict[str, Any]:
    """A user's file as a dict; its name is the file's unless it says another.

    Raises:
        UserError: no such file, no YAML, no recipe, a key that a recipe has not.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if not isinstance(yaml.safe_load(text), dict):
            raise UserError(f"{path} (-r) is not a recipe: it holds no keys, such as num_epochs: 150")
        content = OmegaConf.create(text)  # whose reader refuses a key that is there twice
        resolved = OmegaConf.to_container(content, resolve=True, throw_on_missing=True)  # ${key}
    except FileNotFoundError:
        raise UserError(f"there is no file {path} (-r)") from None
    except (
        OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError, TypeError,
    ) as error:  # fmt: skip
        raise UserError(f"{path} (-r) cannot be read as YAML: {_reason(error)}") from error
    assert isinstance(resolved, dict)
    if isinstance(resolved.get("phases"), dict):
        raise UserError(f"{path} (-r) is not a recipe: phases must be a list, each line of it beginning with -")
    return known_fields({"name": path.stem, "description": "", **{str(k): v for k, v in resolved.items()}})


def parsed_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict with YAML's types, nested where a key has dots.

    Raises:
        UserError: a word of another form, a key that a recipe has not.
    """
    for word in overrides:
        key, _, value = word.partition("=")
        if not key or not value or value == "???":  # OmegaConf's word for a value that is missing
            raise UserError(f"--set takes key=value, not {word!r}")
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"--set {' '.join(overrides)}: {_reason(error)}") from error
    assert isinstance(content, dict)
    return known_fields({str(k): v for k, v in content.items()})


def known_fields(content: dict[str, Any]) -> dict[str, Any]:
    """`content`, if every key is a field of a recipe. Raises UserError, which names the nearest field."""
    _check_keys(content, Recipe, "")
    for key, kind in (("gradual_unfreezing", GradualUnfreezing), ("lora", Lora)):
        if isinstance(content.get(key), dict):
            _check_keys(content[key], kind, f"{key}.")
        elif content.get(key) is not None:
            fields = ", ".join(f"{key}.{f.name}" for f in dataclasses.fields(kind))
            raise UserError(f"recipe: {key}: it is made of {fields}, and cannot be {content[key]!r}")
    phases = content.get("phases")
    if phases is not None and (not phases or not isinstance(phases, (list, dict))):
        raise UserError(f"recipe: phases must be a list with at least one phase, not {phases!r}")
    for index, phase in phases.items() if isinstance(phases, dict) else enumerate(phases or ()):
        if not isinstance(phase, dict):
            raise UserError(f"recipe: phases.{index} must be like {{parts: [all], epochs: 10}}, not {phase!r}")
        _check_keys(phase, Phase, f"phases.{index}.")
    return content


def _check_keys(content: Mapping[Any, Any], kind: type, where: str) -> None:
    known = [f.name for f in dataclasses.fields(kind)]
    for key in map(str, content):
        if key not in known:
            close = [k for k in known if key in k] or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"recipe: there is no {where}{key}; {hint}")


def merged(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields changed. Raises UserError for a value of the wrong type, which names the field."""
    if not changes:
        return recipe
    changes = dict(changes)
    if changes.get("precision") is False:  # YAML's reading of `off`
        changes["precision"] = Precision.off.value
    phases = changes.pop("phases", None)
    single = phases if isinstance(phases, dict) else {}  # --set phases.0.initial_lr=1e-4
    if isinstance(phases, list):  # one by one too: so errors say in which one
        changes["phases"], single = [{} for _ in phases], dict(enumerate(phases))
    try:
        config = OmegaConf.merge(OmegaConf.structured(recipe), OmegaConf.create(changes))
        assert isinstance(config, DictConfig)
        for index, change in single.items():
            if not str(index).isdecimal() or int(index) >= len(config.phases):
                raise UserError(f"recipe: there is no phases.{index}; the recipe has 0 to {len(config.phases) - 1}")
            config.phases[int(index)] = OmegaConf.merge(config.phases[int(index)], change)
        merged = OmegaConf.to_object(config)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or ", ".join(map(str, changes))
        name = re.sub(r"\[(\d+)\]", r".\1", str(key))  # phases[0].curve
        raise UserError(f"recipe: {name}: {_reason(error)}") from error
    assert isinstance(merged, Recipe)
    return merged


def _reason(error: Exception) -> str:
    """In one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if "is not a ListConfig" in str(error):
        return "it takes a list, such as [a, b]"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
