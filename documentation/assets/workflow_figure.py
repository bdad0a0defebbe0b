"""Draw workflow.svg, the figure of the README. Run: python documentation/assets/workflow_figure.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "workflow", "font.family": "DejaVu Sans"})

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

WIDTH, GAP, LEFT = 2.55, 0.42, 0.15
STOCK, PLUGIN, DATA = "#e4e7eb", "#cfe3f7", "#ffffff"
EDGE = {STOCK: "#6b7280", PLUGIN: "#1d5f9e", DATA: "#9aa1ab"}
TOP, MIDDLE, BOTTOM = 4.15, 2.35, 0.62

# input above (or none), command, what it does, what it leaves; stock or of this package
STEPS = [
    (("Raw dataset", "in nnU-Net's format"), "nnUNetv2_plan_and_preprocess\n--no_pp",
     "fingerprint and plan", ("nnUNetPlans.json",), STOCK),
    (("Pre-trained checkpoint", "file, folder or Hugging Face hub"), "nnUNetv2_preprocess_like_nnssl",
     "plan for the checkpoint,\nthen preprocess", ("ptPlans__NAME____….json", "and preprocessed cases"), PLUGIN),
    (None, "nnUNetv2_train_pretrained",
     "load encoder and stem,\nwarm up, train, validate", ("nnUNet_results/…/fold_X", "as nnU-Net lays it out"), PLUGIN),
    (("New images", "in nnU-Net's format"), "nnUNetv2_predict",
     "rebuild the network\nfrom plans.json", ("Segmentations",), STOCK),
]  # fmt: skip


def box(axes: plt.Axes, left: float, centre: float, height: float, colour: str, *, dashed: bool = False) -> None:
    axes.add_patch(FancyBboxPatch(
        (left, centre - height / 2), WIDTH, height, boxstyle="round,pad=0,rounding_size=0.09", facecolor=colour,
        edgecolor=EDGE[colour], linewidth=1.3, linestyle="--" if dashed else "-",
    ))  # fmt: skip


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#374151", "lw": 1.5, "shrinkA": 2,
                                              "shrinkB": 2, "mutation_scale": 14})  # fmt: skip


def main() -> None:
    figure = plt.figure(figsize=(11.75, 5.35), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11.75), ylim=(-0.4, 4.95))
    axes.axis("off")
    for index, (source, command, action, result, colour) in enumerate(STEPS):
        left = LEFT + index * (WIDTH + GAP)
        middle = left + WIDTH / 2
        if source:
            box(axes, left, TOP, 0.78, DATA)
            axes.text(middle, TOP + 0.15, source[0], ha="center", va="center", fontsize=11, weight="bold")
            axes.text(middle, TOP - 0.17, source[1], ha="center", va="center", fontsize=9.5)
            arrow(axes, (middle, TOP - 0.39), (middle, MIDDLE + 0.72))
        box(axes, left, MIDDLE, 1.44, colour)
        axes.text(middle, MIDDLE + 0.36, command, ha="center", va="center", fontsize=9.3, family="DejaVu Sans Mono",
                  weight="bold", linespacing=1.3)  # fmt: skip
        axes.text(middle, MIDDLE - 0.31, action, ha="center", va="center", fontsize=10.5, linespacing=1.3)
        arrow(axes, (middle, MIDDLE - 0.72), (middle, BOTTOM + 0.39))
        box(axes, left, BOTTOM, 0.78, DATA, dashed=True)
        axes.text(middle, BOTTOM, "\n".join(result), ha="center", va="center", fontsize=10, linespacing=1.35)
        if index:
            arrow(axes, (left - GAP, MIDDLE), (left, MIDDLE))
    for left, colour, text in ((LEFT, STOCK, "stock nnU-Net"), (LEFT + 2.2, PLUGIN, "this package")):
        axes.add_patch(FancyBboxPatch((left, -0.18), 0.3, 0.2, boxstyle="round,pad=0,rounding_size=0.05",
                                      facecolor=colour, edgecolor=EDGE[colour]))  # fmt: skip
        axes.text(left + 0.42, -0.08, text, va="center", fontsize=10)
    figure.savefig(Path(__file__).with_name("workflow.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
