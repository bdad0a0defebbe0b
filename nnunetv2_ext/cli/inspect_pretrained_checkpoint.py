"""nnUNetv2_inspect_pretrained_checkpoint: what a checkpoint is, and what would be brought over into a plan."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.cli import _planning
from nnunetv2_ext.cli._command import Parser, run

if TYPE_CHECKING:
    from rich.table import Table

DESCRIPTION = """\
Show what a pre-trained checkpoint is: its kind, architecture, spacing, patch, channels, citations, tensors and
parameters by part. With -d and -p also what training with that plan would copy, adapt and leave fresh; nothing is
trained, and nothing written."""

_SHOWN = {
    "file": "file",
    "hub_repo": "hub repository",
    "hub_revision": "hub commit",
    "kind": "kind",
    "trainer_name": "trained by",
    "architecture": "architecture",
    "pretrain_spacing": "spacing (mm)",
    "pretrain_patch_size": "patch (voxels)",
    "recommended_downstream_patch_size": "recommended patch",
    "pretrain_num_input_channels": "channels",
    "normalization_schemes": "normalisation",
    "key_to_encoder": "key_to_encoder",
    "key_to_stem": "key_to_stem",
    "keys_to_in_proj": "keys_to_in_proj",
    "key_to_lpe": "key_to_lpe",
    "labels": "labels",
    "dtypes": "types",
}


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="nnUNetv2_inspect_pretrained_checkpoint",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _planning.add_source(p)
    p.add_argument("-d", metavar="DATASET", help="dataset id or name, with -p")
    p.add_argument(
        "-p", metavar="PLANS", help="a plan of that dataset: a ptPlan, or nnU-Net's own (as plan_like_dynamic would)"
    )
    p.add_argument("-arch", metavar="NAME|FILE", help="for weights that do not say which network they are of")
    p.add_argument("--json", action="store_true", help="print JSON, for programs")
    p.add_argument("--verbose", action="store_true", help="tracebacks of errors")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run(parser(), _run, argv, interrupted="nothing was written")


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from nnunetv2_ext.planning.inspection import inspect_checkpoint
    from nnunetv2_ext.transfer.table import report_table

    inspection = inspect_checkpoint(args.pretrained_checkpoint, args.d, args.p, arch=args.arch)
    if args.json:
        print(json.dumps(inspection.as_dict(), indent=4))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(_facts_table(inspection.facts))
    console.print(_parts_table(inspection.facts["parts"]))
    for name in inspection.facts["not_finite"]:
        console.print(f"[bold red]NaN or inf in {name}[/]")
    for line in inspection.facts["citations"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if inspection.report is not None:
        console.print(report_table(inspection.report))
        for remark in inspection.report.remarks():
            console.print(f"  {remark}", markup=False, highlight=False, soft_wrap=True)


def _facts_table(facts: Mapping[str, Any]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, title in _SHOWN.items():
        value = facts[key]
        if key == "pretrain_spacing" and value is None and facts["architecture"] is not None:
            value = "none: not resampled, or not known"
        if value not in (None, {}, []):
            table.add_row(title, Text(_text(value)))
    return table


def _parts_table(parts: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("part")
    table.add_column("tensors", justify="right")
    table.add_column("parameters", justify="right")
    for row in parts:
        table.add_row(row["part"], f"{row['tensors']:,}", f"{row['parameters']:,}")
    return table


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    if isinstance(value, list):
        numbers = all(isinstance(v, (int, float)) for v in value)
        return (" x " if numbers else ", ").join(f"{v:g}" if numbers else str(v) for v in value)
    return str(value)
