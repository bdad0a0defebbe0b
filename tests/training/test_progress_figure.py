"""The panel below nnU-Net's progress.png: nnU-Net's pixels stay, bands and curve stand where the epochs are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import seaborn
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from PIL import Image

from nnunetv2_ext.training import progress_figure
from nnunetv2_ext.training.progress_figure import add_phases, draw_panel

FRAME = (260, 2830)
SAWTOOTH = [("decoder: linear", 0, 25), ("decoder: poly", 25, 50), ("all: linear", 50, 100), ("all: poly", 100, 200)]


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with matplotlib.rc_context():
        yield


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """What nnU-Net draws after three epochs, and the same with the panel."""
    folder = tmp_path_factory.mktemp("stock")
    logger = LocalLogger()
    for epoch in range(3):
        for key in logger.my_fantastic_logging:
            logger.log(key, 0.1 * epoch, epoch)
    with matplotlib.rc_context():
        logger.plot_progress_png(str(folder))
        before = pixels(folder / "progress.png")
        add_phases(folder, [1e-3], [("all: poly", 0, 10)])
    assert [path.name for path in folder.iterdir()] == ["progress.png"]
    return before, pixels(folder / "progress.png")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def column_at(epoch: float, num_epochs: int) -> float:
    """Where an epoch's beginning stands in the panel."""
    return FRAME[0] + epoch * (FRAME[1] - FRAME[0]) / num_epochs


def curve_rows(image: np.ndarray) -> dict[int, float]:
    """The height of the blue curve by column, in the axes."""
    blue = np.abs(image - np.array([0x4C, 0x72, 0xB0])).max(-1) <= 3
    blue[:130] = False  # the key above the axes
    return {int(x): float(np.flatnonzero(blue[:, x]).mean()) for x in np.flatnonzero(blue.any(0))}


def test_nnunets_panels_stay_pixel_by_pixel(figures: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = figures
    assert after.shape[0] > before.shape[0] + 1000
    assert np.array_equal(after[: len(before)], before)


def test_the_panel_is_appended_and_stands_below_nnunets_axes(figures: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = figures
    inside = np.flatnonzero((before[4500] == (0xEA, 0xEA, 0xF2)).all(-1))
    frame = (inside[0], inside[-1] + 1)
    panel = after[len(before) :]
    assert np.array_equal(panel, np.asarray(draw_panel([1e-3], [("all: poly", 0, 10)], before.shape[1], frame)))
    coloured = np.flatnonzero(np.ptp(panel[300], axis=1) > 20)
    assert abs(coloured[0] - inside[0]) <= 2
    assert abs(coloured[-1] - inside[-1]) <= 2


def test_every_phase_has_a_band_from_its_first_to_its_last_epoch() -> None:
    image = np.asarray(draw_panel([1e-3] * 150, SAWTOOTH, 3000, FRAME))
    colours = np.median(image[200:1000:5], axis=0)  # of every column, without grid and curve
    seen = []
    for _, start, end in SAWTOOTH:
        first, last = (colours[round(column_at(epoch, 200))] for epoch in (start + 0.75, end - 0.75))
        assert np.array_equal(first, last)
        seen.append(tuple(first))
    assert len(set(seen)) == len(SAWTOOTH)
    assert (colours[FRAME[0] - 5] == 255).all()
    assert (colours[FRAME[1] + 5] == 255).all()


def test_the_rate_is_drawn_on_a_logarithmic_scale_at_its_epochs() -> None:
    image = np.asarray(draw_panel([1e-2, 1e-3, 1e-4], [("all: poly", 0, 10)], 3000, FRAME)).astype(int)
    rows = curve_rows(image)
    columns = [round(column_at(epoch + 0.5, 10)) for epoch in range(3)]
    assert min(rows) == pytest.approx(columns[0], abs=10)
    at = [np.mean([rows[x] for x in range(column - 4, column + 5) if x in rows]) for column in columns]
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], rel=0.03)
    assert at[1] - at[0] > 100


def test_this_epoch_is_marked() -> None:
    image = np.asarray(draw_panel([1e-3] * 5, [("all: poly", 0, 10)], 3000, FRAME))
    dark = (image[200:1100] < 50).all(-1).sum(0)
    assert int(dark.argmax()) == pytest.approx(column_at(4.5, 10), abs=3)


@pytest.mark.parametrize(
    ("num_phases", "num_epochs", "so_far"), [(1, 1, 1), (4, 1000, 1000), (16, 64, 20), (40, 40, 2)]
)
def test_one_to_forty_phases_are_all_in_the_key(
    num_phases: int, num_epochs: int, so_far: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    labels: list[str] = []
    legend = Figure.legend
    monkeypatch.setattr(
        Figure, "legend", lambda self, **kw: labels.extend(h.get_label() for h in kw["handles"]) or legend(self, **kw)
    )
    edges = np.linspace(0, num_epochs, num_phases + 1).round().astype(int).tolist()
    spans = [(f"phase {i}: poly", a, b) for i, (a, b) in enumerate(pairwise(edges))]
    panel = draw_panel([1e-3] * so_far, spans, 3000, FRAME)
    assert panel.width == 3000
    assert len(labels) == num_phases
    assert all(f"phase {i}: poly (" in label for i, label in enumerate(labels))
    below = (np.asarray(panel)[-30:] == 255).all()  # nothing is cut off
    assert below


def test_long_labels_keep_the_end_in_which_they_differ() -> None:
    labels = {progress_figure._short("head" + " + stage:0" * 9 + f" + stage:{i}: constant") for i in range(20)}
    assert len(labels) == 20
    assert max(map(len, labels)) <= 38


@pytest.mark.parametrize("rates", [[0.0], [0.0, 1e-3], [1e-3, 0.0]])
def test_a_rate_of_zero_is_no_error(rates: list[float]) -> None:
    draw_panel(rates, [("frozen: constant", 0, 4)], 600, (60, 560))


def test_the_processs_fonts_change_nothing_and_are_left_alone() -> None:
    first = np.asarray(draw_panel([1e-3], SAWTOOTH, 1000, (100, 900)))
    seaborn.set_theme(font_scale=5)
    size = matplotlib.rcParams["font.size"]
    assert np.array_equal(np.asarray(draw_panel([1e-3], SAWTOOTH, 1000, (100, 900))), first)
    assert matplotlib.rcParams["font.size"] == size


def test_after_an_error_nnunets_figure_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress.png"
    Image.new("RGBA", (200, 100), "white").save(path)
    before = path.read_bytes()

    def fail(_: np.ndarray) -> bytes:
        raise MemoryError

    monkeypatch.setattr(progress_figure, "_png", fail)
    with pytest.raises(MemoryError):
        add_phases(tmp_path, [1e-3], SAWTOOTH)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["progress.png"]
