"""The documentation's commands are accepted by their parsers, no flag is left out, and links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from itertools import dropwhile
from pathlib import Path

import pytest

from nnunetv2_ext.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "documentation").glob("*.md"))]
OURS = {f"nnUNetv2_{name}": name for name in COMMANDS if name != "demo"}
FLAGS_STAND_IN = {
    "preprocess_like_nnssl": "preprocessing.md",
    "plan_like_dynamic": "any_checkpoint.md",
    "inspect_pretrained_checkpoint": "inspect_and_convert.md",
    "convert_pretrained_checkpoint": "inspect_and_convert.md",
    "train_pretrained": "training.md",
    "compare_finetuning": "comparison.md",
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
    parser = importlib.import_module(f"nnunetv2_ext.cli.{command}").parser()
    if "--help" not in arguments:
        parser.parse_args(arguments)


def test_every_command_is_shown_in_the_documentation() -> None:
    assert {command for _, command, _ in _our_commands()} == set(OURS.values())


@pytest.mark.parametrize("command", FLAGS_STAND_IN)
def test_every_flag_of_a_command_stands_on_its_page(command: str) -> None:
    page = (ROOT / "documentation" / FLAGS_STAND_IN[command]).read_text(encoding="utf-8")
    parser = importlib.import_module(f"nnunetv2_ext.cli.{command}").parser()
    flags = [action.option_strings[0] for action in parser._actions if action.option_strings[:1] not in ([], ["-h"])]
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
