"""A raw training case of random anatomy and a plan for it, as small as nnU-Net takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from scipy.ndimage import gaussian_filter

from tests.preprocessing.generated import label_map

STOCK_DATA = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
STOCK_SEG = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}


@dataclass(frozen=True)
class Setting:
    """What of a dataset and of a plan shapes the preprocessed cases; arrays and spacings `(z, y, x)`."""

    channels: int = 1
    shape: tuple[int, ...] = (30, 34, 26)
    spacing: tuple[float, ...] = (1.2, 1.1, 1.3)
    new_spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    transposition: tuple[int, ...] = (0, 1, 2)
    normalization: str = "ZScoreNormalization"
    mask: bool = False
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "a": 1, "b": 2})
    regions_class_order: tuple[int, ...] | None = None
    values: tuple[int, ...] = (0, 1, 2)
    resampling: str = "resample_data_or_seg_to_shape"
    data_arguments: dict[str, Any] = field(default_factory=lambda: STOCK_DATA)
    seg_arguments: dict[str, Any] = field(default_factory=lambda: STOCK_SEG)
    patch_size: tuple[int, ...] = (16, 24, 20)
    reader: str = "SimpleITKIO"
    empty: bool = False

    @property
    def dataset_json(self) -> dict[str, Any]:
        description = {
            "channel_names": {str(c): "T1" for c in range(self.channels)},
            "labels": self.labels,
            "numTraining": 1,
            "file_ending": ".nii.gz",
        }
        if self.regions_class_order is not None:
            description["regions_class_order"] = list(self.regions_class_order)
        return description

    def plan(self) -> tuple[PlansManager, ConfigurationManager]:
        intensities = {"mean": 60.0, "std": 40.0, "percentile_00_5": -20.0, "percentile_99_5": 150.0}
        functions = {
            f"resampling_fn_{what}{suffix}": value
            for what, arguments in (("data", self.data_arguments), ("seg", self.seg_arguments))
            for suffix, value in (("", self.resampling), ("_kwargs", arguments))
        }
        plans = PlansManager(
            {
                "dataset_name": "Dataset900_Random",
                "plans_name": "randomPlans",
                "image_reader_writer": self.reader,
                "label_manager": "LabelManager",
                "transpose_forward": list(self.transposition),
                "transpose_backward": np.argsort(self.transposition).tolist(),
                "foreground_intensity_properties_per_channel": {str(c): intensities for c in range(self.channels)},
                "configurations": {
                    "3d_fullres": {
                        "data_identifier": "random",
                        "preprocessor_name": "DefaultPreprocessor",
                        "patch_size": list(self.patch_size),
                        "spacing": list(self.new_spacing),
                        "normalization_schemes": [self.normalization] * self.channels,
                        "use_mask_for_norm": [self.mask] * self.channels,
                        "architecture": {},
                        **functions,
                    }
                },
            }
        )
        return plans, plans.get_configuration("3d_fullres")

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images `(channels, z, y, x)`, zero outside a ball and in a hole inside it, and labels inside the ball."""
        rng = np.random.default_rng(0)
        if self.empty:
            return np.zeros((self.channels, *self.shape), np.float32), np.zeros(self.shape, np.int16)
        middle = np.array(self.shape) / 2
        distance = np.sqrt(sum(((i - m) / m) ** 2 for i, m in zip(np.indices(self.shape), middle, strict=True)))
        body = (distance < 0.85) & (distance > 0.2)
        images = [
            (60 + 200 * gaussian_filter(rng.normal(size=self.shape), 1.5) + rng.normal(0, 5, self.shape)) * body
            for _ in range(self.channels)
        ]
        labels = label_map(True, self.shape, np.array(self.values), rng) * (distance < 0.7)
        return np.array(images, np.float32), labels.astype(np.int16)


@dataclass(frozen=True)
class RawFiles:
    """Of a case."""

    images: list[str]
    label: str


def write_case(
    folder: Path, images: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...], ending: str = ".nii.gz"
) -> RawFiles:
    """One file per channel and one for the labels."""
    files = RawFiles([str(folder / f"case_{c:04d}{ending}") for c in range(len(images))], str(folder / f"case{ending}"))
    for array, path in zip([*images, labels], [*files.images, files.label], strict=True):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing([float(s) for s in spacing[::-1]])
        sitk.WriteImage(image, path)
    return files
