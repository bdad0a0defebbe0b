"""The documentation's commands are accepted by their parsers, no flag is left out, and links lead somewhere."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch.distributed.run import get_args_parser

from nnunetv2_ext.__main__ import COMMANDS
from nnunetv2_ext.cli.torchrun_pretrained import DESCRIPTION, TRAINING, split_arguments
from nnunetv2_ext.recipes.phases import Phase
from nnunetv2_ext.recipes.recipe import GradualUnfreezing, Lora, Recipe
from nnunetv2_ext.recipes.resolving import recipe_for, shipped_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "documentation").glob("*.md"))]
OURS = {f"nnUNetv2_{name}": name for name in COMMANDS if name != "demo"}
FLAGS_STAND_IN = {
    "preprocess_like_nnssl": "preprocessing.md",
    "plan_like_dynamic": "any_checkpoint.md",
    "inspect_pretrained_checkpoint": "inspect_and_convert.md",
    "convert_pretrained_checkpoint": "inspect_and_convert.md",
    "train_pretrained": "training.md",
    "torchrun_pretrained": "clusters.md",
    "compare_finetuning": "comparison.md",
    "import_dataset": "importing_data.md",
}


def _shell_lines(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def _our_commands() -> list[tuple[str, str, list[str]]]:
    """Page, command and arguments of every line that runs one of ours; variables in front are left out."""
    found = []
    for page in PAGES:
        for line in _shell_lines(page):
            words = list(dropwhile(lambda word: "=" in word, shlex.split(line, comments=True)))
            if words[:3] == ["python", "-m", "nnunetv2_ext"] and len(words) > 3:
                words = [f"nnUNetv2_{words[3].removeprefix('nnUNetv2_')}", *words[4:]]
            if words and words[0] == "torchrun":  # its launcher's arguments stand in front of the same module
                words[0] = "nnUNetv2_torchrun_pretrained"
            if words and words[0] in OURS:
                found.append((page.name, OURS[words[0]], words[1:]))
    return found


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    ("page", "command", "arguments"), _our_commands(), ids=lambda v: v if isinstance(v, str) else " ".join(v)[:40]
)
def test_a_command_in_the_documentation_is_accepted(page: str, command: str, arguments: list[str]) -> None:
    if "--help" in arguments:
        return
    if command == "torchrun_pretrained":
        of_torchrun, arguments = split_arguments(arguments)
        parsed = get_args_parser().parse_args([*of_torchrun, "-m", TRAINING])
        assert parsed.training_script == TRAINING
        command = "train_pretrained"
    importlib.import_module(f"nnunetv2_ext.cli.{command}").parser().parse_args(arguments)


def test_every_argument_in_the_launchers_help_stands_on_its_page() -> None:
    page = (ROOT / "documentation" / FLAGS_STAND_IN["torchrun_pretrained"]).read_text(encoding="utf-8")
    flags = re.findall(r"^  (--\w+)", DESCRIPTION, flags=re.MULTILINE)
    assert len(flags) > 5
    assert [flag for flag in flags if not re.search(rf"`{flag}[` ]", page)] == []


def test_every_command_is_shown_in_the_documentation() -> None:
    assert {command for _, command, _ in _our_commands()} == set(OURS.values())


@pytest.mark.parametrize("command", FLAGS_STAND_IN)
def test_every_flag_of_a_command_stands_on_its_page(command: str) -> None:
    page = (ROOT / "documentation" / FLAGS_STAND_IN[command]).read_text(encoding="utf-8")
    parser = importlib.import_module(f"nnunetv2_ext.cli.{command}").parser()
    kinds = [kind for action in parser._actions if isinstance(action.choices, dict) for kind in action.choices.values()]
    actions = [action for one in (parser, *kinds) for action in one._actions]
    flags = [action.option_strings[0] for action in actions if action.option_strings[:1] not in ([], ["-h"])]
    assert [flag for flag in flags if not re.search(rf"`{flag}[` ]", page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_documentation_lead_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


RECIPES = ROOT / "documentation" / "recipes.md"


def _rows(page: Path, heading: str) -> dict[str, list[str]]:
    """The tables below a heading, up to the next one of its level: what stands in the first column, and the others."""
    level = heading.split(" ")[0]
    text = page.read_text(encoding="utf-8").split(f"\n{heading}\n")[1]
    section = re.split(rf"^{level} ", text, flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row[1:] for row in rows if row[0].startswith("`")}


def _value(cell: str) -> Any:
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={cell}"]))["value"]  # type: ignore[call-overload,index]


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """With names such as `lora.rank`, and their defaults where the recipe has none."""
    flat = {**recipe}
    for name, kind in (("gradual_unfreezing", GradualUnfreezing), ("lora", Lora)):
        defaults = Recipe(**{name: kind()}).as_dict()[name]
        flat |= {f"{name}.{key}": value for key, value in defaults.items()}
    return flat


@pytest.mark.parametrize(("column", "family"), [(0, "cnn"), (1, "primus")])
def test_every_field_of_a_recipe_stands_in_the_documentation_with_its_default(column: int, family: str) -> None:
    rows = _rows(RECIPES, "## Every field")
    truth = _flat(recipe_for(family).as_dict())
    assert set(rows) == set(truth)
    shown = {name: _value(cells[column]) for name, cells in rows.items() if name not in ("phases", "description")}
    assert shown == {name: truth[name] for name in shown}


def test_every_field_of_a_phase_stands_in_the_documentation_with_its_default() -> None:
    rows = {name: cells for name, cells in _rows(RECIPES, "## Phases").items() if name in Phase.__dataclass_fields__}
    truth = Recipe(phases=[Phase()]).as_dict()["phases"][0]
    assert {name: _value(cells[0]) for name, cells in rows.items()} == truth
    assert set(rows) == {field.name for field in dataclasses.fields(Phase)}


def test_every_shipped_recipe_stands_in_the_documentation() -> None:
    assert set(_rows(RECIPES, "## Shipped recipes")) >= set(shipped_names())


def test_recipe_files_in_the_documentation_can_be_trained_with(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", RECIPES.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "mine.yaml").write_text(block)
        assert recipe_for("cnn", chosen=str(tmp_path / "mine.yaml")).name == "mine"


def test_trainer_names_in_the_documentation_mean_the_epochs_that_stand_there() -> None:
    rows = _rows(RECIPES, "## The fork's trainer names")
    assert len(rows) > 10
    for names, (_, epochs, _) in rows.items():
        warmup, _, total = epochs.rpartition(" / ")
        for trainer in re.findall(r"\w+Trainer\w*", names):
            recipe = recipe_for("cnn", trainer=trainer)
            if total != "N":
                assert (recipe.warmup_epochs, recipe.num_epochs) == (int(warmup.split(", ")[-1]), int(total)), trainer
