"""A transfer report as people read it: a table, then what the table does not say."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from nnunetv2_ext.transfer.report import TransferReport


def report_table(report: TransferReport) -> Table:
    """Tensors and parameters per part and action."""
    table = Table(title=f"{report.coverage:.1%} of encoder and stem arrive", title_justify="left")
    table.add_column("part")
    table.add_column("action")
    table.add_column("tensors", justify="right")
    table.add_column("parameters", justify="right")
    part = None
    for row in report.summary_table():
        if part not in (None, row["part"]):
            table.add_section()
        table.add_row(
            "" if row["part"] == part else row["part"], row["action"], str(row["tensors"]), f"{row['parameters']:,}"
        )
        part = row["part"]
    return table


def report_lines(report: TransferReport) -> list[str]:
    """The table and the remarks as plain lines, for a log or a screen."""
    console = Console(width=100, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(report_table(report))
    return [*capture.get().rstrip().splitlines(), *(f"  {remark}" for remark in report.remarks())]
