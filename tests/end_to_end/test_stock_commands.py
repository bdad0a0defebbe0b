"""Afterwards, with stock nnU-Net's commands only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.commands import run_command
from tests.conftest import DATASET_ID, Model, predict


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def images(resenc_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unseen subject and one that the training validated on."""
    folder = tmp_path_factory.mktemp("images")
    raw = resenc_model.workplace.raw
    for case in ("imagesTs/MNI_006", f"imagesTr/{validation_case(resenc_model)}"):
        shutil.copy(raw / f"{case}_0000.nii.gz", folder)
    return folder


@pytest.fixture(scope="module")
def resenc_prediction(resenc_model: Model, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predict(resenc_model, tmp_path_factory.mktemp("predictions"), "--save_probabilities", images=images)


@pytest.fixture(scope="module")
def primus_prediction(primus_model: Model, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predict(primus_model, tmp_path_factory.mktemp("predictions"), "--save_probabilities", images=images)


def validation_case(model: Model) -> str:
    return json.loads((model.workplace.preprocessed / "splits_final.json").read_text())[0]["val"][0]


def assert_predicts_what_the_trainer_predicted(model: Model, prediction: Path) -> None:
    """The network that stock nnU-Net rebuilds from the folder, against the one that was trained, in its validation."""
    case = validation_case(model)
    predicted, validated = voxels(prediction / f"{case}.nii.gz"), voxels(model.fold / "validation" / f"{case}.nii.gz")
    assert predicted.shape == validated.shape
    assert len(np.unique(predicted)) > 1
    assert (predicted == validated).mean() > 0.9999


def test_predict_resenc(resenc_model: Model, resenc_prediction: Path) -> None:
    assert_predicts_what_the_trainer_predicted(resenc_model, resenc_prediction)


def test_predict_primus(primus_model: Model, primus_prediction: Path) -> None:
    assert_predicts_what_the_trainer_predicted(primus_model, primus_prediction)


@pytest.mark.slow
def test_predict_finds_the_model_by_the_name_that_scripts_for_the_fork_use(
    resenc_model: Model, resenc_prediction: Path, tmp_path: Path
) -> None:
    output = predict(resenc_model, tmp_path, plans=resenc_model.long_name)
    assert np.array_equal(voxels(output / "MNI_006.nii.gz"), voxels(resenc_prediction / "MNI_006.nii.gz"))


def test_find_best_configuration_and_its_ensemble(resenc_model: Model, primus_model: Model) -> None:
    run_command(
        "nnUNetv2_find_best_configuration", DATASET_ID, "-p", resenc_model.inner_name, primus_model.inner_name,
        "-c", "3d_fullres", "-tr", "PretrainedTrainer", "-f", 0, "-np", 1, env=resenc_model.workplace.env,
    )  # fmt: skip
    found = json.loads((resenc_model.workplace.results / "inference_information.json").read_text())
    results = found["all_results"]
    assert any(name.startswith("ensemble") for name in results)
    for model in (resenc_model, primus_model):
        summary = json.loads((model.fold / "validation" / "summary.json").read_text())
        assert results[model.folder.name] == pytest.approx(summary["foreground_mean"]["Dice"])


def test_ensemble(resenc_prediction: Path, primus_prediction: Path, resenc_model: Model, tmp_path: Path) -> None:
    run_command(
        "nnUNetv2_ensemble", "-i", resenc_prediction, primus_prediction, "-o", tmp_path, "-np", 1,
        env=resenc_model.workplace.env,
    )  # fmt: skip
    mean = sum(np.load(p / "MNI_006.npz")["probabilities"] for p in (resenc_prediction, primus_prediction)) / 2
    assert np.array_equal(voxels(tmp_path / "MNI_006.nii.gz"), mean.argmax(0))


def test_the_checkpoint_names_stock_nnunets_trainer(resenc_model: Model) -> None:
    for checkpoint in resenc_model.fold.glob("checkpoint_*.pth"):
        content = torch.load(checkpoint, weights_only=True)
        assert content["trainer_name"] == "nnUNetTrainer"
        assert content["finetuning"]["trainer_name"] == "PretrainedTrainer"


@pytest.fixture
def environment_without_plugin(tmp_path: Path, resenc_model: Model) -> tuple[Path, dict[str, str]]:
    """A fresh virtual environment that sees this one's packages, but not this plugin."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    site_packages = [p for p in sys.path if p.endswith("site-packages")]
    # a path file's folders are searched, but path files in them (an editable install of this plugin) are not read
    (purelib / "others.pth").write_text("\n".join(site_packages))
    env = {k: v for k, v in resenc_model.workplace.env.items() if k != "PYTHONPATH"}
    absent = subprocess.run(
        [python, "-c", "import nnunetv2_ext"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert "ModuleNotFoundError" in absent.stderr, "the plugin must not be importable there"
    return python, env


def test_a_zip_of_a_resenc_model_predicts_the_same_where_the_plugin_is_not_installed(
    resenc_model: Model,
    resenc_prediction: Path,
    environment_without_plugin: tuple[Path, dict[str, str]],
    tmp_path: Path,
) -> None:
    archive = tmp_path / "model.zip"
    run_command(
        "nnUNetv2_export_model_to_zip", "-d", DATASET_ID, "-o", archive, "-c", "3d_fullres", "-f", 0,
        "-tr", "PretrainedTrainer", "-p", resenc_model.inner_name, env=resenc_model.workplace.env,
    )  # fmt: skip
    python, env = environment_without_plugin
    env = {**env, "nnUNet_results": str(tmp_path / "results")}
    (tmp_path / "results").mkdir()
    images = tmp_path / "images"
    shutil.copytree(resenc_model.workplace.raw / "imagesTs", images)

    def stock(entry_point: str, *arguments: object) -> None:
        module, function = entry_point.split(":")
        code = f"import sys; from {module} import {function} as f; sys.exit(f())"
        result = subprocess.run(
            [python, "-c", code, *map(str, arguments)], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr

    stock("nnunetv2.model_sharing.entry_points:install_from_zip_entry_point", archive)
    stock(
        "nnunetv2.inference.predict_from_raw_data:predict_entry_point", "-i", images, "-o", tmp_path / "out",
        "-d", DATASET_ID, "-c", "3d_fullres", "-f", 0, "-p", resenc_model.inner_name, "-tr", "PretrainedTrainer",
        "-device", "cpu", "-npp", 1, "-nps", 1,
    )  # fmt: skip
    assert np.array_equal(voxels(tmp_path / "out" / "MNI_006.nii.gz"), voxels(resenc_prediction / "MNI_006.nii.gz"))
