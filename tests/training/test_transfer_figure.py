"""The figure beside the report: a whole PNG whose bars are the shares of every stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import seaborn

from nnunetv2_ext.training.transfer_figure import COLOURS, draw_transfer
from nnunetv2_ext.transfer.report import TensorRecord, TransferReport


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with matplotlib.rc_context():
        yield


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def share_of_colours(path: Path) -> dict[str, float]:
    """Of all coloured pixels in the bars, how many have each action's colour."""
    image = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    plot = image[: int(image.shape[0] * 0.8)]  # without the legend
    found = {action: int((np.abs(plot - rgb(c)).max(-1) <= 2).sum()) for action, c in COLOURS.items()}
    return {action: count / sum(found.values()) for action, count in found.items()}


@pytest.mark.parametrize("font_scale", [None, 2.5])
def test_the_bars_have_the_areas_of_the_shares(font_scale: float | None, tmp_path: Path) -> None:
    """Two stages: one copied, the other half adapted and half fresh.

    nnU-Net enlarges matplotlib's fonts for the whole process when it draws its progress, before the next fold starts.
    """
    if font_scale is not None:
        seaborn.set_theme(font_scale=font_scale)
    records = [
        TensorRecord("encoder.stages.0.weight", "encoder", (10, 10), "copied"),
        TensorRecord("encoder.stages.1.weight", "encoder", (4, 4), "adapted", how="mean"),
        TensorRecord("encoder.stages.1.bias", "encoder", (16,), "fresh", reason="not in the checkpoint"),
    ]
    draw_transfer(TransferReport(records), tmp_path / "figure.png")
    shares = share_of_colours(tmp_path / "figure.png")
    assert shares == pytest.approx({"copied": 0.5, "adapted": 0.25, "fresh": 0.25}, abs=0.02)


@pytest.mark.parametrize("action", sorted(COLOURS))
def test_a_network_of_one_action_has_one_colour(action: str, tmp_path: Path) -> None:
    records = [TensorRecord(f"encoder.stages.{n}.weight", "encoder", (3,), action) for n in range(40)]
    draw_transfer(TransferReport(records), tmp_path / "figure.png")
    assert share_of_colours(tmp_path / "figure.png")[action] > 0.99  # text has greys too


def test_nothing_but_the_figure_is_left(tmp_path: Path) -> None:
    draw_transfer(TransferReport([TensorRecord("a.weight", "stem", (1,), "fresh")]), tmp_path / "figure.png")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")
