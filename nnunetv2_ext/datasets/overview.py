"""What `--dry_run` prints: the table of cases, every problem in a line, and what the dataset would be."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console

from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.collection import BACKGROUND, TEST, TRAIN, VAL, Collection
from nnunetv2_ext.datasets.labelling import number_classes, source_values
from nnunetv2_ext.datasets.splits import Splits, how_to_train
from nnunetv2_ext.datasets.table import case_table
from nnunetv2_ext.datasets.wording import counted, listed, ranged
from nnunetv2_ext.errors import UserError


def print_overview(collection: Collection, findings: Mapping[str, Finding]) -> None:
    """As wide as the terminal; elsewhere as its content, each case in one line."""
    try:
        found = [(case, findings[case.name].values) for case in collection.cases]
        numbers = number_classes(collection.class_names, found).numbers
    except UserError:  # background alone; the import refuses it
        numbers = {BACKGROUND: 0}
    lines = case_table(collection, findings, numbers, Console().width if sys.stdout.isatty() else None)
    if problems := problem_lines(collection, findings):
        lines += ["", "what is wrong:", *problems]
    print("\n".join([*lines, "", *summary_lines(collection, findings, numbers)]))


def problem_lines(collection: Collection, findings: Mapping[str, Finding]) -> list[str]:
    """`case (where the source has it): problem`, one for every problem."""
    lines = []
    for case in collection.cases:
        for problem in dict.fromkeys((*case.problems, *findings[case.name].problems)):
            lines.append(f"{case.title}: {' '.join(problem.split())}")
    return list(dict.fromkeys(lines))


def summary_lines(collection: Collection, findings: Mapping[str, Finding], numbers: Mapping[str, int]) -> list[str]:
    """How many cases of each part and with problems, folds, and channels and classes as in `dataset.json`.

    Args:
        collection: after `checked`.
        findings: of every case, by name.
        numbers: nnU-Net's label for each class.
    """
    cases = collection.cases
    parts = {part: sum(case.part == part for case in cases) for part in (TRAIN, VAL, TEST)}
    of_parts = ", ".join(f"{number:,} {part}" for part, number in parts.items() if number)
    subjects = len({case.subject for case in cases})
    of_subjects = "every case a subject of its own" if subjects == len(cases) else counted(subjects, "subject")
    bad = sum(bool(case.problems or findings[case.name].problems) for case in cases)
    problems = f"problems in {bad:,}" if bad else "no problems"
    lines = [f"{counted(len(cases), 'case')}: {of_parts}; {of_subjects}; {problems}", _folds(collection)]
    lines.append(f"channels: {', '.join(f'{i} {name}' for i, name in enumerate(collection.channel_names))}")
    values = source_values([(case, findings[case.name].values) for case in cases])
    classes = [f"{number} {name}{_where_else(name, number, values)}" for name, number in numbers.items()]
    return [*lines, f"classes{' of the other cases' if bad else ''}: {', '.join(classes)}"]


def _where_else(name: str, number: int, values: Mapping[str, Sequence[int]]) -> str:
    """The values of a class in the source, where the number or the name does not tell."""
    own = values.get(name, [])
    return "" if list(own) in ([], [number]) or name == f"label_{own[0]}" else f" ({listed(own)} in the source)"


def _folds(collection: Collection) -> str:
    if collection.splits is None:
        return f"folds: {how_to_train(None, len(collection.training_cases))}"
    return f"folds: {_described(collection.splits, [case.name for case in collection.training_cases])}"


def _described(splits: Splits, names: Sequence[str]) -> str:
    """Numbers of folds, how many cases are on each side, and which are on none."""
    train, val = ([len(fold[side]) for fold in splits] for side in ("train", "val"))
    twice = max(len(fold["train"]) - len(set(fold["train"])) for fold in splits)
    drawn = f", of which {twice:,} again" if twice else ""
    text = f"{ranged(range(len(splits)))} ({ranged(train)} train{drawn}, {ranged(val)} val)"
    used = {name for fold in splits for of_side in fold.values() for name in of_side}
    unused = [name for name in names if name not in used]
    return text + (f"; {counted(len(unused), 'case')} in none: {listed(unused)}" if unused else "")
