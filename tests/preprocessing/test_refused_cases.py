"""What is wrong with a case is a line that names it: in its image, its label, or the spacing asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.preprocessor import ExactPreprocessor
from tests.preprocessing.raw_case import Setting, write_case


def failure(folder: Path, setting: Setting, images: np.ndarray, labels: np.ndarray, ending: str = ".nii.gz") -> str:
    """The one line that a user gets; nothing is written."""
    files = write_case(folder, images, labels, setting.spacing, ending)
    with pytest.raises(UserError) as caught:
        ExactPreprocessor(verbose=False).run_case_save(
            str(folder / "made"), files.images, files.label, *setting.plan(), setting.dataset_json
        )
    assert not list(folder.glob("made*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_with_their_channel(value: float, tmp_path: Path) -> None:
    setting = Setting(channels=3)
    images, labels = setting.arrays()
    images[1, 3, 4, 5] = images[1, 6, 7, 8] = value
    line = failure(tmp_path, setting, images, labels, ".nrrd")
    assert line == "2 voxels of channel 1 are NaN or infinite"
    images[2, 0, 0, 0] = value
    line = failure(tmp_path, setting, images, labels, ".nrrd")
    assert line == "3 voxels of channel 1, 2 are NaN or infinite"


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_nifti_are_named_with_their_file(value: float, reader: str, tmp_path: Path) -> None:
    setting = Setting(channels=3, reader=reader)
    images, labels = setting.arrays()
    images[1, 3, 4, 5] = images[1, 6, 7, 8] = value
    line = failure(tmp_path, setting, images, labels)
    assert line == "2 voxels of case_0001.nii.gz are NaN or infinite"


def test_a_label_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    images, labels = Setting().arrays()
    line = failure(tmp_path, Setting(), images, labels[:, :-1])
    assert "30 x 34 x 26" in line
    assert "30 x 33 x 26" in line


@pytest.mark.parametrize(
    ("value", "shown", "ending"),
    [
        (3, "3", ".nii.gz"),
        (255, "255", ".nii.gz"),
        (-1, "-1", ".nii.gz"),
        (1.5, "1.5", ".nii.gz"),
        (np.nan, "nan", ".nrrd"),
    ],
)
def test_a_label_value_that_dataset_json_does_not_declare_is_named(
    value: float, shown: str, ending: str, tmp_path: Path
) -> None:
    images, labels = Setting().arrays()
    labels = labels.astype(np.float32)
    labels[15, 4, 5] = value
    line = failure(tmp_path, Setting(), images, labels, ending)
    assert f"not in dataset.json: {shown} (labels there: 0, 1, 2)" in line


@pytest.mark.parametrize("value", [40_000, 65_536, 65_537, -65_535, 1e10])
def test_a_label_value_that_no_small_integer_holds_is_named_and_not_taken_for_another(
    value: float, tmp_path: Path
) -> None:
    """As 16-bit integers 65,536 is 0 and 65,537 is 1."""
    images, labels = Setting().arrays()
    labels = labels.astype(np.float64)
    labels[15, 4, 5] = value
    assert "not in dataset.json" in failure(tmp_path, Setting(), images, labels)


def test_the_ignore_label_is_declared(tmp_path: Path) -> None:
    setting = Setting(labels={"background": 0, "a": 1, "b": 2, "ignore": 3}, values=(0, 1, 2, 3))
    images, labels = setting.arrays()
    labels[15, 4, 5] = 4
    assert "not in dataset.json: 4 (labels there: 0, 1, 2, 3)" in failure(tmp_path, setting, images, labels)


def test_many_strange_values_are_not_all_listed(tmp_path: Path) -> None:
    images, labels = Setting().arrays()
    line = failure(tmp_path, Setting(), images, labels + np.arange(26, dtype=np.int16))
    assert "3, 4, 5, 6, 7, ... (" in line


def test_a_spacing_so_coarse_that_no_voxel_is_left_is_named(tmp_path: Path) -> None:
    setting = Setting(new_spacing=(1.0, 1.0, 500.0))
    line = failure(tmp_path, setting, *setting.arrays())
    assert "1 x 1 x 500 mm" in line
    assert "1.2 x 1.1 x 1.3 mm" in line
