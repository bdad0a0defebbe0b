"""The recipe's phases in nnU-Net's `progress.png`: one more panel below those that nnU-Net draws."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from nnunetv2_ext.files import whole_or_absent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_FILE = "progress.png"
_DPI = 100
_FONT_SCALE = 2.5
"""matplotlib's default and seaborn's scale of nnU-Net's `plot_progress_png`."""
_PANEL_INCHES, _TOP_INCHES, _AXIS_INCHES = 10.0, 1.2, 1.3
_ROW_INCHES = 0.55
_LABEL_LENGTH = 38
"""So that two columns of the key fit."""
_NUMBER_INCHES = 0.45
"""A band that is narrower than this has no room for its number."""
_BLUE, _BLACK = "#4c72b0", "#262626"
"""What `b` and `k` mean in nnU-Net's figure: seaborn redefines them for the process."""
_BACKGROUND = (234, 234, 242)
"""Of seaborn's axes: `#EAEAF2`."""

Span = tuple[str, int, int]
"""A phase's label, its first epoch and one past its last one."""


def add_phases(folder: Path, rates: Sequence[float], spans: Sequence[Span]) -> None:
    """Append a panel with learning rate and phases to the `progress.png` that nnU-Net has just drawn; whole or absent.

    Args:
        folder: the fold's.
        rates: the learning rate of every epoch so far, of the first parameter group.
        spans: label, first epoch and one past the last one of every phase, in order.
    """
    path = folder / FIGURE_FILE
    with Image.open(path) as image:
        above = image.convert("RGB")
    panel = draw_panel(rates, spans, above.width, _frame(above))
    with whole_or_absent(path) as temporary:
        temporary.write_bytes(_png(np.concatenate([np.asarray(above), np.asarray(panel)])))


def _png(pixels: np.ndarray) -> bytes:
    """An image of shape (height, width, 3) as a PNG file: every row as its difference to the one above.

    PIL tries every filter on each row, which takes twice as long; this runs in every epoch.
    """
    height, width, _ = pixels.shape
    rows = np.full((height, 1 + 3 * width), 2, np.uint8)  # filter 2 of the PNG specification: Up
    flat = pixels.reshape(height, -1)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    content = compressor.compress(rows.data) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _frame(image: Image.Image) -> tuple[int, int]:
    """The left and right end of nnU-Net's axes, in pixels, by their background; where there is none, margins of 5 %."""
    heights = range(0, image.height, max(1, image.height // 50))
    rows = np.stack([np.asarray(image.crop((0, y, image.width, y + 1)))[0] for y in heights])
    columns = np.flatnonzero((rows == _BACKGROUND).all(-1).any(0))
    if len(columns) < image.width // 2:
        return image.width // 20, image.width - image.width // 20
    return int(columns[0]), int(columns[-1]) + 1


def draw_panel(rates: Sequence[float], spans: Sequence[Span], width: int, frame: tuple[int, int]) -> Image.Image:
    """The panel alone.

    Args:
        rates: see `add_phases`.
        spans: see `add_phases`.
        width: of the image, pixels.
        frame: the left and right end of the axes, pixels.
    """
    import seaborn
    from matplotlib import rc_context, style

    with style.context("default"), rc_context(_style(seaborn)):
        figure = _figure(rates, spans, width, frame)
        figure.canvas.draw()
        return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]


def _style(seaborn: Any) -> Any:
    """What `seaborn.set(font_scale=2.5)` of nnU-Net sets for the whole process."""
    return {**seaborn.axes_style("darkgrid"), **seaborn.plotting_context("notebook", font_scale=_FONT_SCALE)}


def _figure(rates: Sequence[float], spans: Sequence[Span], width: int, frame: tuple[int, int]) -> Figure:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = 1 if len(spans) <= 4 else 2
    key_inches = _ROW_INCHES * -(-len(spans) // num_columns)
    height = _TOP_INCHES + _PANEL_INCHES + _AXIS_INCHES + key_inches + 0.6
    figure = Figure(figsize=(width / _DPI, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    left, right = (x / width for x in frame)
    bottom = (height - _TOP_INCHES - _PANEL_INCHES) / height
    axes = figure.add_axes((left, bottom, right - left, _PANEL_INCHES / height))
    colours = colormaps["viridis"](np.linspace(0.95, 0.15, len(spans)))
    end = max(spans[-1][2], len(rates))
    axes.set_xlim(-0.5, max(end - 0.5, 0.5))
    handles = _draw_bands(axes, spans, colours, _NUMBER_INCHES * _DPI * (end + 1) / (frame[1] - frame[0]))
    _draw_rates(axes, rates)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(left, (key_inches + 0.5) / height), ncols=num_columns,
        frameon=False, borderaxespad=0, borderpad=0, handlelength=1.2, fontsize="small",
    )  # fmt: skip
    return figure


def _draw_bands(axes: Axes, spans: Sequence[Span], colours: np.ndarray, narrow: float) -> list[Any]:
    """A band for every phase, with its number at the top; returns the key's entries.

    `narrow`: a band of fewer epochs has no room for its number.
    """
    handles = []
    for number, ((label, start, end), colour) in enumerate(zip(spans, colours, strict=True), start=1):
        epochs = f"epoch {start}" if end == start + 1 else f"epochs {start} to {end - 1}"
        text = f"{number}  {_short(label)} ({epochs})"
        handles.append(axes.axvspan(start - 0.5, end - 0.5, color=colour, alpha=0.35, lw=0, zorder=0, label=text))
        if end - start >= narrow:
            middle = (start + end - 1) / 2
            axes.text(middle, 0.985, str(number), ha="center", va="top", transform=axes.get_xaxis_transform())
    return handles


def _draw_rates(axes: Axes, rates: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    marker = "o" if len(rates) < 30 else ""
    axes.plot(range(len(rates)), rates, color=_BLUE, ls="-", lw=4, marker=marker, ms=12, label="learning rate")
    axes.axvline(len(rates) - 1, ymax=0.93, color=_BLACK, ls="--", lw=3, label="this epoch")  # below the numbers
    positive = [rate for rate in rates if rate > 0]
    if positive:
        axes.set_yscale("log")
        axes.set_ylim(min(positive) / 2, max(positive) * 4)
        decades = np.log10(max(positive) / min(positive))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.legend(handles=axes.lines, loc=(0, 1), ncols=2)


def _short(label: str) -> str:
    """Long labels lose their middle: lists of parts begin alike."""
    if len(label) <= _LABEL_LENGTH:
        return label
    return f"{label[:14]} … {label[17 - _LABEL_LENGTH :]}"
