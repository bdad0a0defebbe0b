"""Draw zarr_crop.png, the figure of importing_data.md. Run: python documentation/assets/zarr_crop_figure.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
from matplotlib import pyplot as plt
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

SHAPE, CORNER, SIZE = (20, 30, 40), (6, 4, 18), (8, 12, 16)
ARRAY, CROP = "#9aa1ab", "#1d5f9e"


def faces(corner: tuple[int, ...], size: tuple[int, ...]) -> list[np.ndarray]:
    """The six faces of a box, drawn with its third axis to the right, its second backwards, its first downwards."""
    (a, b, c), (da, db, dc) = corner, size
    points = np.array([[c + k * dc, b + j * db, a + i * da] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    return [
        points[list(ring)]
        for ring in ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
    ]


figure = plt.figure(figsize=(10, 4))
axes = figure.add_axes((0.07, 0, 0.5, 1), projection="3d", proj_type="ortho")
axes.add_collection3d(
    Poly3DCollection(faces((0, 0, 0), SHAPE), facecolor=(0, 0, 0, 0.02), edgecolor=ARRAY, linewidth=1.2)
)
axes.add_collection3d(
    Poly3DCollection(faces(CORNER, SIZE), facecolor=(0.11, 0.37, 0.62, 0.18), edgecolor=CROP, linewidth=1.6)
)
axes.scatter([CORNER[2]], [CORNER[1]], [CORNER[0]], color=CROP, s=40, depthshade=False)
axes.text(CORNER[2], CORNER[1], CORNER[0] - 2.2, "corner", color=CROP, ha="center")
axes.text(20, -5, 22.5, "third axis: 40", ha="center", color="#4b5563")
axes.text(43, 12, 24.5, "second axis: 30", ha="center", color="#4b5563")
axes.text(-3, -3, 10, "first axis: 20", ha="right", color="#4b5563")
axes.set(xlim=(0, 40), ylim=(0, 30), zlim=(20, 0))
axes.set_box_aspect((40, 30, 20))
axes.view_init(elev=22, azim=-62)
axes.set_axis_off()
figure.text(
    0.66, 0.5,
    "array of shape (channels, 20, 30, 40)\n\n"
    "corner          (6, 4, 18)\n"
    "crop_size       (8, 12, 16)\n"
    "mask.shape      (8, 12, 16)\n\n"
    "crop = array[channel,\n"
    "             6 : 6 + 8,\n"
    "             4 : 4 + 12,\n"
    "             18 : 18 + 16]\n\n"
    "first, second, third axis\n"
    "become nnU-Net's z, y, x",
    family="DejaVu Sans Mono", fontsize=10.5, va="center",
)  # fmt: skip
figure.savefig(Path(__file__).with_name("zarr_crop.png"), dpi=110)
