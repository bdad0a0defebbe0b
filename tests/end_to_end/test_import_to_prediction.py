"""The whole way of a user: a source is imported, planned, preprocessed and trained on, and stock nnU-Net predicts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.datasets.mni import make_mni_dataset
from tests.commands import TINY_TRAINING, nnunet_environment, run_command
from tests.conftest import TINY_PRIMUS, TINY_RESENC, Workplace
from tests.end_to_end.importable import Source

pytestmark = pytest.mark.slow

ID, NAME = 140, "Imported"
SIZE = 48


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve subjects in two contrasts, 1 mm."""
    folder = tmp_path_factory.mktemp("scans") / "raw"
    make_mni_dataset(
        folder, num_subjects=12, num_test_subjects=0, crop=(SIZE,) * 3, spacings=((1.0, 1.0, 1.0),), num_channels=2
    )
    return folder


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def microscopy(scans: Path, root: Path) -> Source:
    """Crops of one array of two channels, one behind the other: four to train, one to validate, one to test."""
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    root.mkdir()
    cells = zarr.create_array(
        str(root / "cells.zarr"), shape=(2, 6 * SIZE, SIZE, SIZE), chunks=(1, SIZE, SIZE, SIZE), dtype="float32"
    )
    parts = {"train": range(4), "val": (4,), "test": (5,)}
    for part, numbers in parts.items():
        (root / part).mkdir()
        lines = ["ID,corner,source,ref_channel,channel,crop_size"]
        for number in numbers:
            for channel in range(2):
                image = voxels(scans / "imagesTr" / f"MNI_{number:03d}_{channel:04d}.nii.gz")
                cells[channel, number * SIZE : (number + 1) * SIZE] = image
            np.save(root / part / f"{number}_mask.npy", voxels(scans / "labelsTr" / f"MNI_{number:03d}.nii.gz"))
            lines.append(f'{number},"({number * SIZE}, 0, 0)",cells.zarr,0,1,{SIZE}')
        (root / f"{part}.csv").write_text("\n".join(lines))
    return Source("zarr-csv", root, ("-spacing", 1, 1, 1))


def hippocampi(scans: Path, root: Path) -> Source:
    """Six subjects with two sides each: four to train, one to validate, one to test; labels with a gap."""
    for number in range(12):
        subject, side = divmod(number, 2)
        folder = root / "clinic" / f"sub{subject}"
        folder.mkdir(parents=True, exist_ok=True)
        image = sitk.ReadImage(str(scans / "imagesTr" / f"MNI_{number:03d}_0000.nii.gz"))
        label = sitk.ReadImage(str(scans / "labelsTr" / f"MNI_{number:03d}.nii.gz"))
        sitk.WriteImage(image, str(folder / f"t1_{'lr'[side]}.nii.gz"))
        sitk.WriteImage(label * 3, str(folder / f"seg_{'lr'[side]}.nii.gz"))
    indices = "[[0, 1, 2, 3, 6, 7, 8, 9], [4, 10], [5, 11]]"  # all left sides, then all right ones
    sides = "\n".join(f'      {s}: {{mri: "**/t1_{s}.nii.gz", label: "seg_{s}.nii.gz"}}' for s in "lr")
    (root / "data.yaml").write_text(
        f"main_path: .\ntrain_val_test_idx: {indices}\ndatasets:\n  clinic:\n    path: clinic\n    patterns:\n{sides}\n"
        "    labels: {3: 1, 6: 2}\n    labels_names: {1: grey, 2: white}\n"
    )
    return Source("patterns", root / "data.yaml")


@pytest.mark.parametrize(
    ("build", "checkpoint", "recipe", "num_test"),
    [(microscopy, TINY_PRIMUS, "layer_decay", 1), (hippocampi, TINY_RESENC, "gradual_unfreezing", 2)],
)
def test_a_source_becomes_a_model_with_which_stock_nnunet_predicts(
    build: Callable[[Path, Path], Source], checkpoint: Path, recipe: str, num_test: int, scans: Path, tmp_path: Path
) -> None:
    source = build(scans, tmp_path / "source")
    env = nnunet_environment(tmp_path)
    place = Workplace(tmp_path, env, f"Dataset{ID}_{NAME}")

    def step(name: str, *arguments: object, **more: str) -> str:
        return run_command(name, *arguments, env={**env, **more}).stdout

    step("nnUNetv2_import_dataset", *source.arguments(ID, NAME), "-np", 2)
    checked = step(
        "nnUNetv2_plan_and_preprocess", "-d", ID, "--verify_dataset_integrity", "--no_pp", "-npfp", 1
    )  # fmt: skip
    assert "your dataset is most likely OK!" in checked
    step(
        "nnUNetv2_preprocess_like_nnssl", "-d", ID, "-n", "tiny", "-pc", checkpoint, "-am", "like_pretrained", "-np", 1
    )
    (plan,) = place.preprocessed.glob("ptPlans__tiny____*.json")
    trained = step(
        "nnUNetv2_train_pretrained", "-d", ID, "-c", "3d_fullres", "-f", 0, "-p", plan.stem, "-r", recipe,
        "-device", "cpu", "--set", *TINY_TRAINING, "mirroring=false", nnUNet_n_proc_DA="0",
    )  # fmt: skip
    (line,) = re.findall(r"^ *(nnUNetv2_predict .*)$", trained, re.MULTILINE)
    folders = {"INPUT_FOLDER": place.raw / "imagesTs", "OUTPUT_FOLDER": tmp_path / "out"}
    name, *arguments = [folders.get(word, word) for word in shlex.split(line)]
    step(str(name), *arguments, "-npp", 1, "-nps", 1)

    labels = sorted((place.raw / "labelsTs").glob("*.nii.gz"))
    assert len(labels) == num_test
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [p.name for p in labels]
    for label in labels:
        image = sitk.ReadImage(str(place.raw / "imagesTs" / label.name.replace(".nii.gz", "_0000.nii.gz")))
        predicted = sitk.ReadImage(str(tmp_path / "out" / label.name))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(predicted, what)(), getattr(image, what)(), rtol=1e-6, atol=1e-6)
        assert set(np.unique(sitk.GetArrayFromImage(predicted))) <= {0, 1, 2}

    (fold,) = json.loads((place.preprocessed / "splits_final.json").read_text())
    (model,) = (path for path in place.results.iterdir() if not path.is_symlink())
    validated = sorted(path.name for path in (model / "fold_0" / "validation").glob("*.nii.gz"))
    assert validated == [f"{case}.nii.gz" for case in fold["val"]]
    record = json.loads((model / "fold_0" / "finetuning.json").read_text())
    assert record["recipe"]["name"] == recipe
