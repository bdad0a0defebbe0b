"""nnUNetv2_compare_finetuning: finished trainings side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_ext.cli._command import Parser, run

DESCRIPTION = """\
Compare the finished folds of a dataset's models, of several recipes, plans and trainers, from scratch and stock
nnU-Net's included: Dice of the validation, epochs, hours, trainable parameters (comparison.csv), and learning curves
(comparison.png)."""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="nnUNetv2_compare_finetuning",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    p.add_argument("-c", required=True, metavar="CONFIGURATION", help="for example 3d_fullres")
    p.add_argument("-p", nargs="+", metavar="PLANS", help="plans, by either of their names (default: all)")
    p.add_argument("-tr", nargs="+", metavar="TRAINER", help="trainers (default: all)")
    p.add_argument("-o", type=Path, metavar="FOLDER", help="where to write (default: the dataset's results folder)")
    p.add_argument("--verbose", action="store_true", help="tracebacks of errors")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run(parser(), _run, argv, interrupted="nothing of the models was changed; the same command starts again")


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from nnunetv2_ext.training.comparison import compare_finetuning, comparison_table

    comparison = compare_finetuning(args.d, args.c, args.p, args.tr, args.o)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(comparison_table(comparison, console.width))
    for line in [*comparison.remarks(), *map(str, comparison.files)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    comparison.raise_faults()
