"""The table of `--dry_run`: a row for every case, with what was found in it.

It is plain text, not rich's: that cuts or folds cells where a screen is narrow, pads lines in files, and takes seconds
for thousands of rows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from rich.cells import cell_len

from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.collection import BACKGROUND, TEST, Case, Collection
from nnunetv2_ext.datasets.labelling import class_of
from nnunetv2_ext.datasets.splits import Splits
from nnunetv2_ext.datasets.wording import listed

_GAP = 2
"""Characters between columns."""
_NARROWEST = 16
"""To which the last column is wrapped before it goes below its row."""
_CLASSES_SHOWN = 4
_ABSENT_SHOWN = 2
_NO_BREAK = "\N{NO-BREAK SPACE}"

_Columns = dict[str, list[str]]
"""Titles, and a cell for every case."""


def case_table(
    collection: Collection, findings: Mapping[str, Finding], numbers: Mapping[str, int], width: int | None = None
) -> list[str]:
    """Its lines. Nothing is cut off: columns for which a screen has no room stand below their row.

    `val fold` is where a case validates; `index` what the settings of a source call it by.

    Args:
        collection: after `checked`.
        findings: of every case, by name.
        numbers: nnU-Net's label for each class.
        width: of the screen, characters; None: as wide as the content.
    """
    columns = _columns(collection, findings, numbers)
    widths = {title: max(map(cell_len, (title, *cells))) for title, cells in columns.items()}
    beside = _beside_each_other(widths, width)
    last = list(columns)[-1]
    if width is not None and last in beside:
        widths[last] = min(widths[last], width - sum(widths[title] + _GAP for title in beside[:-1]))
    below = [title for title in columns if title not in beside]
    indent = " " * (sum(widths[title] + _GAP for title in beside[: beside.index("case")]) + _GAP)
    lines = _row({title: [title] for title in beside}, widths)
    for cells in zip(*columns.values(), strict=True):
        row = dict(zip(columns, cells, strict=True))
        lines += _row({title: _wrapped(row[title], widths[title]) for title in beside}, widths)
        more = "; ".join(f"{title.partition(' (')[0]} {row[title]}" for title in below if row[title])
        if more:
            lines += [indent + line for line in _wrapped(more, max(_NARROWEST, (width or 0) - len(indent)))]
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _columns(collection: Collection, findings: Mapping[str, Finding], numbers: Mapping[str, int]) -> _Columns:
    cases = collection.cases
    columns: _Columns = {}
    if any(case.index is not None for case in cases):
        columns["index"] = ["" if case.index is None else str(case.index) for case in cases]
    columns["case"] = [case.name for case in cases]
    columns["part"] = [case.part for case in cases]
    if collection.splits is not None:
        validating = _validating(collection.splits)
        folds = [" ".join(map(str, validating.get(case.name, ()))) for case in cases]
        columns["val fold"] = [f or ("" if case.part == TEST else "-") for f, case in zip(folds, cases, strict=True)]
    if len({case.subject for case in cases}) < len(cases):
        columns["subject"] = [case.subject for case in cases]
    geometries = [findings[case.name].geometry for case in cases]
    columns["size (z, y, x)"] = [_by(map(str, g.size)) if g else "" for g in geometries]
    columns["spacing (z, y, x)"] = [_by(f"{s:.4g}" for s in g.spacing) if g and g.spacing else "" for g in geometries]
    columns["classes"] = [_classes(case, findings[case.name], numbers) for case in cases]
    return columns


def _beside_each_other(widths: Mapping[str, int], width: int | None) -> list[str]:
    """The columns for which there is room, from the left to that of the case's names at least."""
    titles = list(widths)
    if width is None:
        return titles
    beside, taken = [], 0
    for title in titles:
        needed = min(widths[title], _NARROWEST) if title == titles[-1] else widths[title]
        if "case" in beside and taken + needed > width:
            break
        beside.append(title)
        taken += widths[title] + _GAP
    return beside


def _row(cells: Mapping[str, list[str]], widths: Mapping[str, int]) -> list[str]:
    """Of cells with several lines, so many."""
    lines = []
    for number in range(max(map(len, cells.values()))):
        line = ""
        for title, of_cell in cells.items():
            text = of_cell[number] if number < len(of_cell) else ""
            space = " " * (widths[title] - cell_len(text))
            line += (space + text if title == "index" else text + space) + " " * _GAP
        lines.append(line.rstrip())
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """At spaces alone; a word that is longer stays whole."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) if len(text) > width else [text]


def _validating(splits: Splits) -> dict[str, list[int]]:
    """For every case that validates, the folds in which it does."""
    folds: dict[str, list[int]] = {}
    for number, fold in enumerate(splits):
        for name in dict.fromkeys(fold["val"]):
            folds.setdefault(name, []).append(number)
    return folds


def _by(numbers_xyz: Iterable[str]) -> str:
    return " x ".join(reversed(list(numbers_xyz)))


def _classes(case: Case, finding: Finding, numbers: Mapping[str, int]) -> str:
    """`1 liver, 2 cyst`; where that would be long, what is absent, or the first of them."""
    if finding.problems:
        return "see below"
    if case.label is None:
        return "no label"
    known = [name for name in numbers if name != BACKGROUND]
    present = {class_of(case, value) for value in finding.values} - {BACKGROUND}
    if not present:
        return "background alone"
    parts = {group[0]: "+".join(group) for group in case.merged}
    found = [_unbroken(f"{numbers[name]} {parts.get(name, name)}") for name in known if name in present]
    if len(found) <= _CLASSES_SHOWN:
        return ", ".join(found)
    absent = [_unbroken(f"{numbers[name]} {name}") for name in known if name not in present]
    if len(absent) <= _ABSENT_SHOWN:
        return f"all {len(known)}" + (f" but {', '.join(absent)}" if absent else "")
    return listed(found, _CLASSES_SHOWN - 1)


def _unbroken(text: str) -> str:
    """Not to be wrapped within: the spaces of `_wrapped` are ASCII's."""
    return text.replace(" ", _NO_BREAK)
