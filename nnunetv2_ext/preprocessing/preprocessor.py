"""nnU-Net's preprocessor with the same results in a fraction of the time.

Imported in the processes that preprocess, since it imports nnU-Net.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.foreground import OUTSIDE, nonzero_box, sample_locations
from nnunetv2_ext.preprocessing.integrity import check_as_read
from nnunetv2_ext.preprocessing.resampling import exact_version

_RESAMPLED = {
    "clevel": 1,
    "filters": [blosc2.Filter.SHUFFLE],
    "filters_seg": [blosc2.Filter.SHUFFLE],
}
"""nnU-Net's codec at its quickest, for interpolated intensities: a fifth of the time, files a few percent larger
(documentation/preprocessing.md). What was not resampled is quantised and left to nnU-Net's choice."""


def preprocessor_for(configuration: ConfigurationManager, verbose: bool = False) -> DefaultPreprocessor:
    """This preprocessor for a plan with nnU-Net's default one; any other that a plan names is left as it is."""
    named = configuration.preprocessor_class
    if named is None:
        raise UserError(f"the plan names a preprocessor that nnU-Net does not have: {configuration.preprocessor_name}")
    return (ExactPreprocessor if named is DefaultPreprocessor else named)(verbose=verbose)


class ExactPreprocessor(DefaultPreprocessor):
    """Training cases exactly as `DefaultPreprocessor` makes them; see `resampling` for the one tolerance."""

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: Mapping[str, Any],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], dict[str, Any]]:
        """Read a training case, make sure that its files are whole, and preprocess it.

        Raises:
            UserError: a file is damaged; see `run_case_npy`.
        """
        if seg_file is None:
            return super().run_case(image_files, seg_file, plans_manager, configuration_manager, dataset_json)
        reader = plans_manager.image_reader_writer_class()
        data, properties = reader.read_images(image_files)
        seg, _ = reader.read_seg(seg_file)
        check_as_read([*map(Path, image_files), Path(seg_file)], [*data, *seg])
        return self.run_case_npy(data, seg, properties, plans_manager, configuration_manager, dataset_json)

    def run_case_npy(
        self,
        data: npt.NDArray[Any],
        seg: npt.NDArray[Any] | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: Mapping[str, Any],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], dict[str, Any]]:
        """Transpose, crop, normalise, resample and look for the foreground.

        Args:
            data: `(channels, z, y, x)` as read; not changed.
            seg: `(1, z, y, x)` as read; not changed. None for a case to be predicted, which nnU-Net does itself.
            properties: from the reader, `spacing` in mm; what was done is added.
            plans_manager, configuration_manager: of the plan.
            dataset_json: the dataset's description, or its path.

        Raises:
            UserError: another number of channels than `dataset.json` names, NaN or infinity, a label of another shape
                or with values that are not in `dataset.json`.
        """
        if seg is None or isinstance(dataset_json, str):
            return super().run_case_npy(data, seg, properties, plans_manager, configuration_manager, dataset_json)
        label_manager = plans_manager.get_label_manager(dataset_json)
        _check_case(data, seg, num_channels=len(dataset_json["channel_names"]))
        transposition = plans_manager.transpose_forward
        axes = [0, *(axis + 1 for axis in transposition)]
        images = data.astype(np.float32).transpose(axes)
        labels = _whole_numbers(seg, label_manager).transpose(axes)
        spacing = [properties["spacing"][axis] for axis in transposition]

        properties["shape_before_cropping"] = images.shape[1:]
        box, nonzero = nonzero_box(images)
        within = (slice(None), *(slice(*extent) for extent in box))
        images, labels = images[within], labels[within]
        labels[(labels == 0) & ~nonzero] = OUTSIDE
        properties["bbox_used_for_cropping"] = box
        properties["shape_after_cropping_and_before_resampling"] = shape = images.shape[1:]

        images = self._normalize(
            images, labels, configuration_manager, plans_manager.foreground_intensity_properties_per_channel
        )
        new_spacing = configuration_manager.spacing
        new_shape = compute_new_shape(shape, spacing, new_spacing)
        if min(new_shape) < 1:
            raise UserError(f"at {_mm(new_spacing)} nothing is left of its {_voxels(images)} voxels of {_mm(spacing)}")
        geometry = (new_shape, spacing, new_spacing)
        images = exact_version(configuration_manager.resampling_fn_data)(images, *geometry)
        labels = exact_version(configuration_manager.resampling_fn_seg)(labels, *geometry)
        if self.verbose:
            print(f"shape {shape} to {images.shape[1:]}, spacing {_mm(spacing)} to {_mm(new_spacing)}")

        classes = list(
            label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
        )
        if label_manager.has_ignore_label:  # patches are sampled from what is annotated, background included
            classes.append([-1, *label_manager.all_labels])
        properties["class_locations"] = self._sample_foreground_locations(labels, classes)
        labels = self.modify_seg_fn(labels, plans_manager, dataset_json, configuration_manager)
        return images, labels, properties

    def run_case_save(
        self,
        output_filename_truncated: str,
        image_files: list[str],
        seg_file: str,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: Mapping[str, Any],
    ) -> None:
        """Preprocess a training case from its files and write `.b2nd`, `_seg.b2nd` and `.pkl` as nnU-Net does."""
        images, labels, properties = self.run_case(
            image_files, seg_file, plans_manager, configuration_manager, dataset_json
        )
        images, labels = images.astype(np.float32, copy=False), labels.astype(np.int16, copy=False)
        patch_size = tuple(configuration_manager.patch_size)
        blocks, chunks = comp_blosc2_params(images.shape, patch_size, images.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(labels.shape, patch_size, labels.itemsize)
        resampled = images.shape[1:] != tuple(properties["shape_after_cropping_and_before_resampling"])
        nnUNetDatasetBlosc2.save_case(
            images,
            labels,
            properties,
            output_filename_truncated,
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
            **(_RESAMPLED if resampled else {}),
        )

    @staticmethod
    def _sample_foreground_locations(
        seg: npt.NDArray[Any], classes_or_regions: Iterable[int | Sequence[int]], *arguments: Any, **options: Any
    ) -> dict[Any, Any]:
        if arguments or {k: v for k, v in options.items() if k != "verbose"}:  # not how nnU-Net preprocesses
            return DefaultPreprocessor._sample_foreground_locations(seg, classes_or_regions, *arguments, **options)
        return sample_locations(seg, classes_or_regions)


def _check_case(data: npt.NDArray[Any], seg: npt.NDArray[Any], *, num_channels: int) -> None:
    if len(data) != num_channels:
        raise UserError(f"it has {len(data)} image channels, dataset.json names {num_channels}")
    if data.shape[1:] != seg.shape[1:]:
        raise UserError(f"the image has {_voxels(data)} voxels, its label {_voxels(seg)}")
    bad = [str(channel) for channel, image in enumerate(data) if not np.isfinite(image).all()]
    if bad:
        count = int(np.count_nonzero(~np.isfinite(data)))
        raise UserError(f"{count} voxels of channel {', '.join(bad)} are NaN or infinite")


def _whole_numbers(seg: npt.NDArray[Any], label_manager: Any) -> npt.NDArray[Any]:
    """A copy of a label map as small integers, all of which the dataset declares."""
    declared = {int(label) for label in label_manager.all_labels}
    if label_manager.has_ignore_label:
        declared.add(int(label_manager.ignore_label))
    small = np.int16 if max(declared) <= np.iinfo(np.int16).max else np.int32
    with np.errstate(invalid="ignore"):
        labels = seg.astype(small)
    strange = np.unique(seg[(labels != seg) | ~np.isin(labels, np.array(sorted(declared), dtype=small))])
    if len(strange):
        shown = ", ".join(f"{value:g}" for value in strange[:5]) + (", ..." if len(strange) > 5 else "")
        known = f"{min(declared)} to {max(declared)}" if len(declared) > 10 else ", ".join(map(str, sorted(declared)))
        raise UserError(f"its label has values that are not in dataset.json: {shown} (labels there: {known})")
    return labels


def _voxels(array: npt.NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape[1:]))


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:g}" for s in spacing) + " mm"
