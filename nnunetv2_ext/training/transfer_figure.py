"""The transfer report as a figure: per stage of the network, the share copied, adapted and fresh."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.files import whole_or_absent
from nnunetv2_ext.transfer.report import ACTIONS, ADAPTED, COPIED, FRESH, TransferReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {COPIED: "#0072b2", ADAPTED: "#e69f00", FRESH: "#bbbbbb"}
"""Okabe and Ito's blue and orange, told apart by colour-blind readers too, and grey."""


def draw_transfer(report: TransferReport, path: Path) -> None:
    """Write a bar for every stage, in the network's order from top to bottom, as a PNG file, whole or not at all."""
    from matplotlib import style

    # nnU-Net enlarges the fonts of the whole process when it draws the progress of an earlier fold
    with style.context("default"), whole_or_absent(path) as temporary:
        _figure(report).savefig(temporary, format="png", dpi=120)


def _figure(report: TransferReport) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = report.stage_shares()
    figure = Figure(figsize=(8, 1.6 + 0.26 * len(shares)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = range(len(shares))
    start = [0.0] * len(shares)
    for action in ACTIONS:
        widths = [100 * share[action] for share in shares.values()]
        axes.barh(rows, widths, left=start, height=0.8, color=COLOURS[action], label=action)
        start = [s + w for s, w in zip(start, widths, strict=True)]
    axes.set_yticks(list(rows), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the stage's parameters (%)")
    figure.suptitle(f"{report.coverage:.1%} of encoder and stem from the checkpoint", fontsize=11)
    figure.legend(loc="outside lower center", ncols=len(ACTIONS), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
