"""Files of weights that say nothing of themselves, from plan to stock prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.commands import run_command
from tests.conftest import TINY_RESENC, Model, StockModel, Workplace, plan_dynamic, predict, preprocess, train
from tests.end_to_end.truth import (
    NO_CHANGE,
    assert_segments,
    by_the_rules,
    logits_in_one_window,
    network_of,
    read,
    unchanged,
    weights_of,
)
from tests.synthesis import RESENC_L_SPARK, synthesise

CASE = "MNI_005"


@pytest.fixture(scope="module")
def weights(plain_model: StockModel) -> dict[str, torch.Tensor]:
    """Each tensor once, under its shortest name, as other frameworks save a network."""
    content = torch.load(plain_model.checkpoint, weights_only=False)["network_weights"]
    return {
        name: tensor.clone()
        for name, tensor in content.items()
        if "all_modules" not in name and not name.startswith("decoder.encoder.")
    }


@pytest.fixture(scope="module")
def files(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in the ways that people share them."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(weights, folder / "bare.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}, folder / "parallel.pth")
    lightning = {f"model._orig_mod.{k}": v for k, v in weights.items()}
    torch.save({"state_dict": lightning, "pytorch-lightning_version": "2.5"}, folder / "lightning.ckpt")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def parallel(files: dict[str, Path], target: Workplace) -> Model:
    """Of `module.`-prefixed weights, decoder and all, trained without a change."""
    model = plan_dynamic(target, "parallel", files["parallel"], "-load", "encoder+decoder")
    train(target, model.long_name, *NO_CHANGE)
    return model


def test_prefixed_weights_arrive_by_the_stated_rules(parallel: Model, weights: dict[str, torch.Tensor]) -> None:
    started = weights_of(parallel.fold / "checkpoint_final.pth")
    for name, tensor in weights.items():
        if "seg_layers" not in name:
            expected = by_the_rules(tensor.numpy(), started[name].shape)
            np.testing.assert_allclose(started[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_stock_predict_after_plain_weights(parallel: Model, tmp_path: Path) -> None:
    folder = predict(parallel, tmp_path, "--disable_tta")
    images = [read(parallel.workplace.raw / "imagesTs" / f"{CASE}_000{channel}.nii.gz") for channel in (0, 1)]
    assert_segments(read(folder / f"{CASE}.nii.gz"), logits_in_one_window(network_of(parallel.folder, 2, 2), images))


@pytest.mark.parametrize("kind", ["bare", "lightning"])
def test_other_ways_of_sharing_make_the_same_transfer(kind: str, files: dict[str, Path], parallel: Model) -> None:
    place = parallel.workplace
    reports = []
    for source in (files[kind], files["parallel"]):
        result = run_command(
            "nnUNetv2_inspect_pretrained_checkpoint", "-pc", source, "-d", 998, "-p", parallel.long_name, "--json",
            env=place.env,
        )  # fmt: skip
        inspection = json.loads(result.stdout)
        assert inspection["kind"] == "weights"
        tensors = inspection["transfer"]["tensors"]
        reports.append([{k: v for k, v in tensor.items() if k != "source"} for tensor in tensors])
    assert reports[0] == reports[1]
    assert {t["action"] for t in reports[0]} == {"copied", "adapted", "fresh"}


@pytest.mark.slow
def test_safetensors_train_and_predict(files: dict[str, Path], target: Workplace, tmp_path: Path) -> None:
    model = plan_dynamic(target, "bare", files["bare"])
    train(target, model.long_name)
    assert (predict(model, tmp_path) / f"{CASE}.nii.gz").is_file()


def spark_mae(folder: Path) -> Path:
    """The tiny ResEnc as SparkMAE leaves its weights: no plan, and plain names that the forward pass did not use."""
    content = torch.load(TINY_RESENC / "checkpoint_final.pth", weights_only=True)
    stale = {
        name: tensor if "all_modules" in name else torch.zeros_like(tensor)
        for name, tensor in content["network_weights"].items()
    }
    path = folder / "spark.pth"
    torch.save({"network_weights": stale, "spark_weights": {}, "trainer_name": "SparkMAETrainer"}, path)
    return path


def test_a_checkpoint_without_a_plan_is_planned_with_the_architecture_in_a_file(
    target: Workplace, tmp_path: Path
) -> None:
    arch = TINY_RESENC / "adaptation_plan.json"
    output = preprocess(target, "told", spark_mae(tmp_path), "-arch", arch, "-ps", 16, 32, 32, "--no_pp")
    assert "100.0% of encoder and stem arrive" in output
    assert "disagree in the checkpoint: all_modules is what the forward pass used" in output


@pytest.mark.slow
def test_a_checkpoint_without_a_plan_starts_from_what_its_forward_pass_used(target: Workplace, tmp_path: Path) -> None:
    arch = TINY_RESENC / "adaptation_plan.json"
    preprocess(target, "spark", spark_mae(tmp_path), "-arch", arch, "-am", "like_pretrained")
    stem = "ptPlans__spark____Spacing__1.00_1.00_1.00___Norm__Z_Z"
    train(target, stem, *NO_CHANGE)
    fold = Model(target, arch, stem, "ptPlans_spark_Spacing_1.00_1.00_1.00_Norm_Z_Z").fold
    used = weights_of(TINY_RESENC / "checkpoint_final.pth")
    started = weights_of(fold / "checkpoint_final.pth")
    name = "encoder.stages.2.blocks.0.conv1.conv.weight"
    assert np.any(used[name])
    assert unchanged(started[name], used[name])
    stem_weight = "encoder.stem.convs.0.conv.weight"
    expected = by_the_rules(used[stem_weight], started[stem_weight].shape)
    np.testing.assert_allclose(started[stem_weight], expected, rtol=1e-5)
    report = json.loads((fold / "transfer_report.json").read_text())
    (tensor,) = (t for t in report["tensors"] if t["name"] == name)
    assert "disagree" in tensor["note"]
    assert "all_modules" in tensor["source"]


@pytest.mark.slow
def test_a_full_size_spark_mae_checkpoint_is_planned_by_the_architectures_name(
    target: Workplace, tmp_path: Path
) -> None:
    source = synthesise(RESENC_L_SPARK, tmp_path / "checkpoint_final.pth")
    preprocess(target, "large", source, "-arch", "ResEncL", "-ps", 64, 64, 64, "--no_pp")
    (path,) = target.preprocessed.glob("ptPlans__large____*.json")
    plan = json.loads(path.read_text())
    architecture = plan["configurations"]["3d_fullres"]["architecture"]
    assert architecture["arch_kwargs"]["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert plan["configurations"]["3d_fullres"]["patch_size"] == [64, 64, 64]
