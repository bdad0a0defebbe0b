"""The MNI dataset is what nnU-Net takes: its geometry, labels, spacings, and the same for the same seed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunetv2_ext.datasets import mni
from nnunetv2_ext.datasets.mni import make_mni_dataset
from nnunetv2_ext.errors import UserError

CROP = (40, 44, 48)
SPACINGS = ((1.0, 1.0, 1.0), (1.0, 1.2, 1.5))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "Dataset901_MNI"
    make_mni_dataset(folder, num_subjects=3, crop=CROP, spacings=SPACINGS, num_channels=2)
    return folder


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(path))


def test_nnunet_finds_no_fault_with_it(dataset: Path) -> None:
    verify_dataset_integrity(str(dataset), num_processes=1)


def test_image_and_label_share_their_geometry(dataset: Path) -> None:
    labels = sorted(dataset.glob("labels*/*.nii.gz"))
    assert len(labels) == 4
    for path in labels:
        label = sitk.ReadImage(path)
        for channel in ("0000", "0001"):
            name = path.name.replace(".nii.gz", f"_{channel}.nii.gz")
            image = sitk.ReadImage(path.parent.with_name(path.parent.name.replace("labels", "images")) / name)
            assert image.GetSize() == label.GetSize() == CROP[::-1]
            np.testing.assert_allclose(image.GetSpacing(), label.GetSpacing())
            np.testing.assert_allclose(image.GetOrigin(), label.GetOrigin())
            np.testing.assert_allclose(image.GetDirection(), label.GetDirection())


def test_every_case_holds_every_label_and_no_other(dataset: Path) -> None:
    declared = sorted(json.loads((dataset / "dataset.json").read_text())["labels"].values())
    for path in dataset.glob("labels*/*.nii.gz"):
        assert np.unique(read(path)).tolist() == declared


def test_spacings_are_taken_in_turn_in_the_order_z_y_x(dataset: Path) -> None:
    found = [sitk.ReadImage(path).GetSpacing()[::-1] for path in sorted(dataset.glob("labels*/*.nii.gz"))]
    np.testing.assert_allclose(found, [SPACINGS[i % 2] for i in range(4)], rtol=1e-6)


def test_subjects_differ_from_one_another(dataset: Path) -> None:
    first, third = read(dataset / "labelsTr" / "MNI_000.nii.gz"), read(dataset / "labelsTr" / "MNI_002.nii.gz")
    assert 0.02 < np.mean(first != third) < 0.7


def test_grey_matter_is_darker_than_white_in_t1_and_brighter_in_the_second_channel(dataset: Path) -> None:
    for case in ("MNI_000", "MNI_001", "MNI_002"):
        label = read(dataset / "labelsTr" / f"{case}.nii.gz")
        t1, second = (read(dataset / "imagesTr" / f"{case}_{channel}.nii.gz") for channel in ("0000", "0001"))
        assert t1[label == 1].mean() < 0.9 * t1[label == 2].mean()
        assert second[label == 2].mean() < 0.9 * second[label == 1].mean()


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_mni_dataset(tmp_path / name, num_subjects=1, num_test_subjects=0, seed=seed, crop=CROP)
    files = [tmp_path / name / "imagesTr" / "MNI_000_0000.nii.gz" for name in "abc"]
    np.testing.assert_array_equal(read(files[0]), read(files[1]))
    assert not np.array_equal(read(files[0]), read(files[2]))


def test_a_small_crop_holds_every_label_whatever_the_seed(tmp_path: Path) -> None:
    make_mni_dataset(tmp_path / "raw", num_subjects=12, crop=(32, 32, 32))


def test_without_a_crop_a_case_covers_the_whole_template(tmp_path: Path) -> None:
    make_mni_dataset(tmp_path / "raw", num_subjects=1, num_test_subjects=0, spacings=[(3.0, 4.0, 4.0)])
    image = sitk.ReadImage(tmp_path / "raw" / "imagesTr" / "MNI_000_0000.nii.gz")
    assert image.GetSize() == (49, 58, 63)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        make_mni_dataset(tmp_path, num_subjects=1, crop=CROP)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (2, 2, 2)}, "choose a larger crop"),
        ({"crop": (0, 32, 32)}, "three positive numbers of voxels"),
        ({"spacings": [(1.0, 0.0, 1.0)]}, "positive millimetres"),
    ],
)
def test_settings_that_cannot_work_are_user_errors_and_leave_no_folder(
    tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_mni_dataset(tmp_path / "raw", num_subjects=1, **{"crop": CROP, **options})
    assert not list(tmp_path.iterdir())


def test_without_nilearn_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(UserError, match=r"pip install \"nnunetv2-ext\[demo\]\""):
        mni._load_template(1)
