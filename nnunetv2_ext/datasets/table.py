"""The table of `--dry_run`: every case, and what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.collection import Collection

_WIDTH = 200
"""Of what is not a terminal."""


def print_table(collection: Collection, findings: Mapping[str, Finding]) -> None:
    """One row for each case: name, part, subject, size and spacing (z, y, x), labels, problems."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    table = Table("case", "part", "subject", "size", "spacing", "labels", "source", "problem")
    for case in collection.cases:
        finding = findings[case.name]
        geometry = finding.geometry
        spacing = geometry.spacing if geometry is not None else None
        table.add_row(
            case.name,
            case.part,
            case.subject,
            " x ".join(map(str, reversed(geometry.size))) if geometry is not None else "",
            " x ".join(f"{s:.4g}" for s in reversed(spacing)) if spacing is not None else "",
            ", ".join(map(str, finding.values)),
            case.row,
            "; ".join(dict.fromkeys((*case.problems, *finding.problems))),
        )
    console.print(table)
