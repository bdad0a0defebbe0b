"""Some cases before and after preprocessing, in a figure: a wrong spacing is seen before a week of training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nnunetv2_ext.files import whole_or_absent
from nnunetv2_ext.nnunet_folders import CONFIGURATION, NO_RESAMPLING, preprocessed_folder
from nnunetv2_ext.preprocessing.cases import is_complete
from nnunetv2_ext.preprocessing.sources import RawCase, raw_cases

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREVIEW = "preview.png"
_CASES = 4
_DOTS_PER_INCH = 110


@dataclass(frozen=True)
class _View:
    """The first channel of a case and its labels, in the network's axis order.

    Attributes:
        image: `(z, y, x)`.
        labels: `(z, y, x)`.
        spacing: mm.
        centre: voxel through which the three slices go.
    """

    image: Any
    labels: Any
    spacing: Sequence[float]
    centre: Sequence[int]

    def slices(self) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], float]]:
        """Image, labels and the height of a pixel by its width, of the slices across the three axes."""
        for axis in range(3):
            at: list[Any] = [slice(None)] * 3
            at[axis] = self.centre[axis]
            height, width = (s for a, s in enumerate(self.spacing) if a != axis)
            yield np.asarray(self.image[tuple(at)]), np.asarray(self.labels[tuple(at)]), height / width


def write_preview(dataset: str, plan: Mapping[str, Any], *, leave_out: Collection[str] = ()) -> Path:
    """Draw the middle slices of up to four cases before and after preprocessing, labels over them.

    Both in the network's axis order, in millimetres, through the same point.

    Args:
        dataset: full name.
        plan: a ptPlan; the cases of its folder that are there are drawn.
        leave_out: cases not to draw, since their files could not be read.

    Returns:
        `preview.png` beside the plan.
    """
    from matplotlib.figure import Figure

    target = preprocessed_folder(dataset)
    folder = target / plan["configurations"][CONFIGURATION]["data_identifier"]
    cases = [case for case in raw_cases(dataset)[1] if case.name not in leave_out]
    there = [case for case in cases if is_complete(folder, case.name)]
    chosen = [there[i] for i in np.unique(np.linspace(0, len(there) - 1, min(_CASES, len(there))).astype(int))]
    figure = Figure(figsize=(15, 0.8 + 3.1 * max(1, len(chosen))), layout="constrained", dpi=_DOTS_PER_INCH)
    figure.suptitle(f"{dataset}, {plan['plans_name']}: before (left) and after preprocessing (right)", fontsize=11)
    if chosen:
        rows = figure.subplots(len(chosen), 6, squeeze=False)
        for axes, case in zip(rows, chosen, strict=True):
            before, after = _views(case, folder, plan)
            _draw(axes[:3], before, f"{case.name}, before")
            _draw(axes[3:], after, f"{case.name}, after")
    path = target / PREVIEW
    with whole_or_absent(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _views(case: RawCase, folder: Path, plan: Mapping[str, Any]) -> tuple[_View, _View]:
    import blosc2
    from batchgenerators.utilities.file_and_folder_operations import load_pickle
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans_manager = PlansManager(dict(plan))
    configuration, order = plans_manager.get_configuration(CONFIGURATION), plans_manager.transpose_forward
    reader = plans_manager.image_reader_writer_class()
    images, _ = reader.read_images([str(path) for path in case.images])
    labels, _ = reader.read_seg(str(case.label))
    properties = load_pickle(str(folder / f"{case.name}.pkl"))
    spacing = [float(properties["spacing"][axis]) for axis in order]
    box = properties["bbox_used_for_cropping"]
    before = _View(
        images[0].transpose(order), labels[0].transpose(order), spacing, [(start + stop) // 2 for start, stop in box]
    )

    made, made_labels = (blosc2.open(str(folder / f"{case.name}{end}.b2nd"), mode="r") for end in ("", "_seg"))
    resampled = plan["configurations"][CONFIGURATION]["resampling_fn_data"] != NO_RESAMPLING
    after = _View(
        made[0], made_labels[0], configuration.spacing if resampled else spacing, [n // 2 for n in made.shape[1:]]
    )
    return before, after


def _draw(axes: Sequence[Axes], view: _View, title: str) -> None:
    shape, spacing = " x ".join(map(str, view.image.shape)), " x ".join(f"{s:g}" for s in view.spacing)
    views = list(view.slices())
    low, high = np.percentile(np.concatenate([image.ravel() for image, _, _ in views]), (0.5, 99.5))
    for axis, (image, labels, aspect) in zip(axes, views, strict=True):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
        shown = np.ma.masked_less_equal(labels, 0)
        axis.imshow((shown - 1) % 10, cmap="tab10", vmin=0, vmax=9, alpha=0.4, aspect=aspect, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_title(title, fontsize=9, loc="left")
    axes[1].set_xlabel(f"{shape} voxels of {spacing} mm", fontsize=8)
