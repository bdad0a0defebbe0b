"""Learning curves of several models as one figure: pseudo Dice and validation loss over epochs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunetv2_ext.files import whole_or_absent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart too, without the yellow that is hard to see on white."""
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_FEW_EPOCHS = 30
"""Up to so many, every epoch is marked: a line of one point would not be seen."""
_WIDE_LABEL = 60
_ROW_INCHES = 0.24


@dataclass(frozen=True)
class LearningCurves:
    """Of one model.

    Attributes:
        label: its name in the legend.
        ema_dice: for every fold, nnU-Net's moving average of the pseudo Dice by epoch.
        val_losses: for every fold, the validation loss by epoch.
    """

    label: str
    ema_dice: Sequence[Sequence[float]]
    val_losses: Sequence[Sequence[float]]


def mean_curve(folds: Sequence[Sequence[float]]) -> np.ndarray:
    """The mean over folds by epoch, as far as the shortest goes: past it, the mean would jump where a fold ends.

    NaN (no class in the epoch's patches) is left out; an epoch in which all are NaN is NaN.
    """
    length = min(map(len, folds))
    values = np.array([fold[:length] for fold in folds], dtype=float)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice", category=RuntimeWarning)
        return np.nanmean(values, axis=0)


def draw_comparison(models: Sequence[LearningCurves], path: Path) -> None:
    """Write the curves as a PNG file, whole or not at all: a colour for every model, a thin line for every fold."""
    from matplotlib import style

    # nnU-Net enlarges the fonts of the whole process when it draws its progress
    with style.context("default"), whole_or_absent(path) as temporary:
        _figure(models).savefig(temporary, format="png", dpi=150)


def _figure(models: Sequence[LearningCurves]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = 1 if max(len(model.label) for model in models) > _WIDE_LABEL else 2
    num_rows = -(-len(models) // num_columns)
    figure = Figure(figsize=(12, 5 + _ROW_INCHES * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    dice, loss = figure.subplots(1, 2)
    looks = [(colour, dash) for dash, colour in product(_DASHES, COLOURS)]
    for index, model in enumerate(models):
        colour, dash = looks[index % len(looks)]
        _draw(dice, model.ema_dice, colour, dash, model.label)
        _draw(loss, model.val_losses, colour, dash, None)
    _finish(dice, "pseudo Dice (moving average)")
    _finish(loss, "validation loss")
    figure.legend(loc="outside lower center", ncols=num_columns, frameon=False, handlelength=3)
    return figure


def _draw(axes: Axes, folds: Sequence[Sequence[float]], colour: str, dash: object, label: str | None) -> None:
    if len(folds) > 1:
        for fold in folds:
            few = len(fold) <= _FEW_EPOCHS
            look = {"lw": 0.8, "alpha": 0.5, "marker": "."} if few else {"lw": 0.6, "alpha": 0.35}
            axes.plot(range(len(fold)), fold, color=colour, ms=4, zorder=2, **look)  # below all means
    mean = mean_curve(folds)
    look = {"lw": 2.2, "marker": "o"} if len(mean) <= _FEW_EPOCHS else {"lw": 1.6}
    axes.plot(range(len(mean)), mean, color=colour, ls=dash, ms=5, zorder=3, label=label, **look)


def _finish(axes: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="#e5e5e5", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
