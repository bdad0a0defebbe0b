"""A 4-channel, 3-label model of stock nnU-Net brought to 2 channels, 2 labels and other strides, by commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import run_command
from tests.conftest import Model, StockModel, Workplace, plan_dynamic, predict, preprocess, train
from tests.end_to_end.truth import (
    NO_CHANGE,
    assert_segments,
    by_the_rules,
    logits_in_one_window,
    name_in_source,
    network_of,
    num_stages,
    read,
    unchanged,
    weights_of,
)

CASE = "MNI_005"


@pytest.fixture(scope="module")
def planned(plain_model: StockModel, target: Workplace) -> Model:
    return plan_dynamic(target, "any", plain_model.folder)


@pytest.fixture(scope="module")
def trained(planned: Model) -> Model:
    output = train(planned.workplace, planned.long_name)
    return Model(**{**planned.__dict__, "training_output": output})


@pytest.fixture(scope="module")
def untouched(planned: Model) -> Model:
    """Trained without a change, so its final weights are those that the training started from."""
    train(planned.workplace, planned.inner_name, "-tr", "DynamicPretrainedTrainer", *NO_CHANGE)
    return Model(**{**planned.__dict__, "trainer": "DynamicPretrainedTrainer"})


def test_the_plan_keeps_the_datasets_own_network_spacing_and_patch(planned: Model) -> None:
    stock = planned.workplace.plan("nnUNetPlans")["configurations"]["3d_fullres"]
    plan = planned.workplace.plan(planned.long_name)
    assert plan["plans_name"] == planned.inner_name
    assert list(plan["configurations"]) == ["3d_fullres"]
    for key in ("patch_size", "spacing", "batch_size", "normalization_schemes", "data_identifier"):
        assert plan["configurations"]["3d_fullres"][key] == stock[key]
    ours, theirs = plan["configurations"]["3d_fullres"]["architecture"], stock["architecture"]
    assert ours["network_class_name"] == theirs["network_class_name"]
    assert ours["arch_kwargs"].items() >= theirs["arch_kwargs"].items()


def test_the_two_networks_do_differ(planned: Model, plain_model: StockModel) -> None:
    source = json.loads((plain_model.folder / "plans.json").read_text())["configurations"]["3d_fullres"]
    own = planned.workplace.plan(planned.long_name)["configurations"]["3d_fullres"]
    for key in ("strides", "kernel_sizes"):
        assert own["architecture"]["arch_kwargs"][key] != source["architecture"]["arch_kwargs"][key]
    assert own["patch_size"] != source["patch_size"]
    assert len(own["normalization_schemes"]) != len(source["normalization_schemes"])


def test_training_starts_from_the_sources_weights_by_the_stated_rules(
    untouched: Model, plain_model: StockModel
) -> None:
    source, started = (weights_of(m) for m in (plain_model.checkpoint, untouched.fold / "checkpoint_final.pth"))
    shift = num_stages(source) - num_stages(started)
    compared = 0
    for name, value in started.items():
        if "seg_layers" in name:
            continue
        expected = by_the_rules(source[name_in_source(name, shift)], value.shape)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7, err_msg=name)
        compared += 1
    assert compared > len(started) / 2


def test_a_head_for_other_labels_starts_fresh_and_the_report_says_so(untouched: Model) -> None:
    report = json.loads((untouched.fold / "transfer_report.json").read_text())
    actions = {t["name"]: t["action"] for t in report["tensors"]}
    assert {name for name, action in actions.items() if action == "fresh"} == {n for n in actions if "seg_layers" in n}


def test_the_report_calls_copied_what_equals_the_source_and_adapted_what_does_not(
    untouched: Model, plain_model: StockModel
) -> None:
    source, started = (weights_of(m) for m in (plain_model.checkpoint, untouched.fold / "checkpoint_final.pth"))
    report = json.loads((untouched.fold / "transfer_report.json").read_text())
    arrived = [t for t in report["tensors"] if t["action"] != "fresh"]
    assert {t["action"] for t in arrived} == {"copied", "adapted"}
    for tensor in arrived:
        equal = unchanged(started[tensor["name"]], source[tensor["source"]])
        assert equal == (tensor["action"] == "copied"), tensor["name"]
    assert report["coverage"] == 1.0
    (stem,) = (t for t in arrived if t["name"] == "encoder.stages.0.0.convs.0.conv.weight")
    assert "4 input channels to 2" in stem["how"]
    assert "kernel 3x3x3 to 1x3x3" in stem["how"]


def test_the_report_is_drawn_into_the_fold_and_printed(trained: Model) -> None:
    assert (trained.fold / "transfer_report.png").read_bytes().startswith(b"\x89PNG")
    assert "100.0% of encoder and stem arrive" in trained.training_output


def test_training_changes_the_weights(trained: Model, untouched: Model) -> None:
    before, after = (weights_of(m.fold / "checkpoint_final.pth") for m in (untouched, trained))
    assert all(np.isfinite(v).all() for v in after.values())
    name = "encoder.stages.1.0.convs.0.conv.weight"
    assert not np.array_equal(before[name], after[name])


def test_stock_predict_gives_what_the_trained_network_computes(trained: Model, tmp_path: Path) -> None:
    folder = predict(trained, tmp_path, "--disable_tta")
    images = [read(trained.workplace.raw / "imagesTs" / f"{CASE}_000{channel}.nii.gz") for channel in (0, 1)]
    assert_segments(read(folder / f"{CASE}.nii.gz"), logits_in_one_window(network_of(trained.folder, 2, 2), images))


@pytest.mark.slow
def test_the_second_trainer_name_predicts_under_its_own_folder(untouched: Model, tmp_path: Path) -> None:
    assert untouched.folder.name.startswith("DynamicPretrainedTrainer__ptPlans_dynamic_any__")
    assert (predict(untouched, tmp_path, "--disable_tta") / f"{CASE}.nii.gz").is_file()


def test_find_best_configuration_takes_the_dynamic_model(trained: Model) -> None:
    run_command(
        "nnUNetv2_find_best_configuration", 998, "-p", trained.inner_name, "-c", "3d_fullres", "-tr", trained.trainer,
        "-f", 0, "-np", 1, "--disable_ensembling", env=trained.workplace.env,
    )  # fmt: skip
    found = json.loads((trained.workplace.results / "inference_information.json").read_text())["all_results"]
    summary = json.loads((trained.fold / "validation" / "summary.json").read_text())
    assert found[trained.folder.name] == pytest.approx(summary["foreground_mean"]["Dice"], nan_ok=True)


def test_the_fine_tuned_model_is_a_source_itself(trained: Model, target: Workplace, tmp_path: Path) -> None:
    """Exported by stock nnU-Net; the head comes too, since the labels are the same."""
    archive = tmp_path / "finetuned.zip"
    run_command(
        "nnUNetv2_export_model_to_zip", "-d", 998, "-o", archive, "-c", "3d_fullres", "-f", 0, "-tr", trained.trainer,
        "-p", trained.inner_name, env=trained.workplace.env,
    )  # fmt: skip
    result = run_command(
        "nnUNetv2_inspect_pretrained_checkpoint", "-pc", archive, "-d", 998, "-p", trained.long_name, "--json",
        env=target.env,
    )  # fmt: skip
    inspection = json.loads(result.stdout)
    assert inspection["kind"] == "nnU-Net model"
    assert inspection["labels"] == {"background": 0, "brain": 1}
    actions = {t["name"]: t["action"] for t in inspection["transfer"]["tensors"]}
    assert {action for name, action in actions.items() if "seg_layers" not in name} == {"copied"}


@pytest.fixture(scope="module")
def archive(plain_model: StockModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As users of stock nnU-Net share a model."""
    path = tmp_path_factory.mktemp("shared") / "model.zip"
    run_command(
        "nnUNetv2_export_model_to_zip", "-d", 997, "-o", path, "-c", "3d_fullres", "-f", 0, "-tr", "nnUNetTrainerTiny",
        "-p", "nnUNetPlans", env=plain_model.workplace.env,
    )  # fmt: skip
    return path


def test_folder_checkpoint_and_exported_zip_give_the_same_plan(
    planned: Model, plain_model: StockModel, archive: Path
) -> None:
    place = planned.workplace
    plans = []
    for name, source in (("file", plain_model.checkpoint), ("zip", archive)):
        model = plan_dynamic(place, name, source, "--no_pp")
        plans.append(place.plan(model.long_name))
    plans.append(place.plan(planned.long_name))
    weights = [torch.load(p["pretrain_info"]["checkpoint_path"], weights_only=False)["network_weights"] for p in plans]
    for plan in plans:
        del plan["plans_name"]
        for key in ("checkpoint_path", "checkpoint_source", "checkpoint_name"):
            del plan["pretrain_info"][key]
    assert plans[0] == plans[1] == plans[2]
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def own_network(target: Workplace, plain_model: StockModel, *options: object) -> Model:
    preprocess(target, "own", plain_model.folder, "-am", "like_pretrained", *options)
    stem = "ptPlans__own____Spacing__1.00_1.00_1.00___Norm__Z_Z"
    return Model(target, plain_model.checkpoint, stem, "ptPlans_own_Spacing_1.00_1.00_1.00_Norm_Z_Z")


def test_like_nnssl_takes_the_models_own_network_patch_and_spacing(plain_model: StockModel, target: Workplace) -> None:
    model = own_network(target, plain_model, "--no_pp")
    source = json.loads((plain_model.folder / "plans.json").read_text())["configurations"]["3d_fullres"]
    plan = target.plan(model.long_name)["configurations"]["3d_fullres"]
    assert plan["architecture"]["network_class_name"] == source["architecture"]["network_class_name"]
    assert plan["architecture"]["arch_kwargs"].items() >= source["architecture"]["arch_kwargs"].items()
    assert (plan["patch_size"], plan["spacing"]) == (source["patch_size"], source["spacing"])


@pytest.mark.slow
def test_the_models_own_network_trains_and_predicts(plain_model: StockModel, target: Workplace, tmp_path: Path) -> None:
    model = own_network(target, plain_model)
    train(target, model.long_name)
    report = json.loads((model.fold / "transfer_report.json").read_text())
    assert {t["action"] for t in report["tensors"] if t["part"] in ("encoder", "decoder")} == {"copied"}
    assert set(np.unique(read(predict(model, tmp_path) / f"{CASE}.nii.gz"))) <= {0, 1}


@pytest.mark.slow
def test_a_residual_model_is_brought_to_a_residual_network(
    residual_model: StockModel, target: Workplace, tmp_path: Path
) -> None:
    run_command("nnUNetv2_plan_experiment", "-d", 998, "-pl", "nnUNetPlannerResEncM", env=target.env)
    model = plan_dynamic(target, "residual", residual_model.folder, "-pl", "nnUNetResEncUNetMPlans")
    train(target, model.long_name)
    assert json.loads((model.fold / "transfer_report.json").read_text())["coverage"] >= 0.5
    assert (predict(model, tmp_path) / f"{CASE}.nii.gz").is_file()
