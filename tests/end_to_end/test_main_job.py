"""What the two commands leave behind, and print."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.commands import SCRIPTS, run_command
from tests.conftest import DATASET_ID, TINY_PRIMUS, TINY_RESENC, Model, Workplace, copy_of, preprocess, train


def test_planning_prints_the_training_command(planned_resenc: Model) -> None:
    output = preprocess(planned_resenc.workplace, "tiny", TINY_RESENC, "-am", "like_pretrained")
    command = f"nnUNetv2_train_pretrained -d 999 -c 3d_fullres -f 0 -p {planned_resenc.long_name}"
    assert command in output
    assert "0 cases preprocessed, 6 were there already" in output


def test_training_prints_the_prediction_command(resenc_model: Model) -> None:
    command = f"-d 999 -c 3d_fullres -f 0 -p {resenc_model.inner_name} -tr PretrainedTrainer -device cpu"
    assert f"nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER {command}" in resenc_model.training_output


def test_training_prints_the_checkpoints_citations(resenc_model: Model) -> None:
    assert "Revisiting MAE pre-training for 3D medical image segmentation" in resenc_model.training_output
    assert "@article{fonov2011unbiased" in resenc_model.training_output


def test_both_plan_files_hold_the_same_plan(planned_resenc: Model) -> None:
    place = planned_resenc.workplace
    assert place.plan(planned_resenc.long_name) == place.plan(planned_resenc.inner_name)
    assert place.plan(planned_resenc.inner_name)["plans_name"] == planned_resenc.inner_name


def test_a_link_with_the_long_name_lies_beside_the_results(resenc_model: Model) -> None:
    link = resenc_model.workplace.results / f"PretrainedTrainer__{resenc_model.long_name}__3d_fullres"
    assert link.is_symlink()
    assert not os.path.isabs(os.readlink(link))
    assert link.resolve() == resenc_model.folder.resolve()


def test_the_fold_knows_how_it_was_trained(resenc_model: Model) -> None:
    record = json.loads((resenc_model.fold / "finetuning.json").read_text())
    plans = json.loads((resenc_model.folder / "plans.json").read_text())
    assert record["recipe"]["num_epochs"] == 2
    assert record["recipe"]["optimizer"] == "sgd"
    assert record["versions"]["nnunetv2"].startswith("2.8.")
    assert record["checkpoint"]["checkpoint_sha256"] == plans["pretrain_info"]["checkpoint_sha256"]
    assert plans["finetuning"]["recipe"] == record["recipe"]


def test_primus_trains_with_adamw_without_another_trainer_or_suffix(primus_model: Model) -> None:
    recipe = json.loads((primus_model.fold / "finetuning.json").read_text())["recipe"]
    groups = torch.load(primus_model.fold / "checkpoint_final.pth", weights_only=True)["optimizer_state"][
        "param_groups"
    ]
    assert (recipe["optimizer"], recipe["gradient_clipping"], recipe["initial_lr"]) == ("adamw", 1.0, 1e-4)
    assert tuple(groups[0]["betas"]) == (0.9, 0.98)
    assert groups[0]["weight_decay"] == 0.05
    assert primus_model.folder.name == f"PretrainedTrainer__{primus_model.inner_name}__3d_fullres"


@pytest.mark.parametrize("model", ["resenc_model", "primus_model"])
def test_the_transfer_report_accounts_for_every_tensor(model: str, request: pytest.FixtureRequest) -> None:
    trained: Model = request.getfixturevalue(model)
    report = json.loads((trained.fold / "transfer_report.json").read_text())["tensors"]
    names = [n for record in report for n in (record["name"], *record.get("aliases", []))]
    network = torch.load(trained.fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert sorted(names) == sorted(network)


MODES = {
    "fixed": (TINY_PRIMUS, ("-os", 2, 1.25, 1.5, "-ps", 16, 32, 24), "Spacing__2.00_1.25_1.50___Norm__Z"),
    "default_nnunet": (TINY_RESENC, (), "Spacing__1.50_1.00_1.00___Norm__Z"),
    "no_resample": (TINY_RESENC, (), "Spacing__None_None_None___Norm__Z"),
}  # like_pretrained is what the shared models are trained with


@pytest.mark.parametrize(
    "mode", ["fixed", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("default_nnunet", "no_resample"))]
)
def test_every_adaptation_mode_preprocesses_trains_and_predicts(
    mode: str, workplace: Workplace, tmp_path: Path
) -> None:
    checkpoint, options, identifier = MODES[mode]
    preprocess(workplace, f"mode-{mode}", checkpoint, "-am", mode, *options)
    train(workplace, f"ptPlans__mode-{mode}____{identifier}")
    inner = f"ptPlans_mode-{mode}_{identifier.replace('___', '_').replace('__', '_')}"
    run_command(
        "nnUNetv2_predict", "-i", workplace.raw / "imagesTs", "-o", tmp_path, "-d", DATASET_ID, "-c", "3d_fullres",
        "-f", 0, "-p", inner, "-tr", "PretrainedTrainer", "-device", "cpu", "-npp", 1, "-nps", 1, env=workplace.env,
    )  # fmt: skip
    assert (tmp_path / "MNI_006.nii.gz").is_file()


@pytest.mark.slow
def test_from_scratch_trains_under_a_name_of_its_own_that_stock_commands_know(planned_resenc: Model) -> None:
    place = planned_resenc.workplace
    train(place, planned_resenc.long_name, "--from_scratch")
    name = f"{planned_resenc.inner_name}_from_scratch"
    fold = place.results / f"PretrainedTrainer__{name}__3d_fullres" / "fold_0"
    report = json.loads((fold / "transfer_report.json").read_text())
    assert {row["action"] for row in report["summary"]} == {"fresh"}
    assert json.loads((fold / "finetuning.json").read_text())["recipe"]["initial_lr"] == 1e-2
    run_command(
        "nnUNetv2_find_best_configuration", DATASET_ID, "-p", name, "-c", "3d_fullres", "-tr", "PretrainedTrainer",
        "-f", 0, "-np", 1, "--disable_ensembling", env=place.env,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_training_continues_as_if_never_stopped(planned_resenc: Model, tmp_path: Path) -> None:
    place = copy_of(planned_resenc.workplace, tmp_path)
    epochs, warmup, peak = 6, 4, 1e-3
    command = [
        "nnUNetv2_train_pretrained", "999", "3d_fullres", "0", "-p", planned_resenc.inner_name, "-device", "cpu",
        "--set", f"num_epochs={epochs}", f"warmup_epochs={warmup}", "num_iterations_per_epoch=2",
        "num_val_iterations_per_epoch=1", "mirroring=false", "save_every=1",
    ]  # fmt: skip
    env = {**place.env, "nnUNet_n_proc_DA": "0"}
    fold = place.results / planned_resenc.folder.name / "fold_0"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([str(SCRIPTS / command[0]), *command[1:]], env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while not (fold / "checkpoint_latest.pth").is_file():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    stopped_at = torch.load(fold / "checkpoint_latest.pth", weights_only=True)["current_epoch"]
    assert 0 < stopped_at < epochs, "killed in the middle"
    run_command(command[0], *command[1:8], "--c", env=env)  # without --set: the fold knows its recipe
    final = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    expected = [peak * (e + 1) / warmup for e in range(warmup)]
    expected += [peak * (1 - (e - warmup) / (epochs - warmup)) ** 0.9 for e in range(warmup, epochs)]
    assert final["current_epoch"] == epochs
    assert final["logging"]["lrs"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_a_second_run_keeps_the_first_ones_model(planned_resenc: Model, resenc_model: Model, tmp_path: Path) -> None:
    place = copy_of(resenc_model.workplace, tmp_path, results=True)
    folder = place.results / resenc_model.folder.name
    before = (folder / "fold_0" / "checkpoint_final.pth").read_bytes()
    train(place, resenc_model.long_name)
    (previous,) = folder.glob("previous_fold_0_*")
    assert (previous / "checkpoint_final.pth").read_bytes() == before


def test_val_validates_a_finished_training_without_the_pretrained_checkpoint(
    primus_model: Model, tmp_path: Path
) -> None:
    place = copy_of(primus_model.workplace, tmp_path, results=True)
    for stem in (primus_model.long_name, primus_model.inner_name):
        path = place.preprocessed / f"{stem}.json"
        path.write_text(path.read_text().replace(str(TINY_PRIMUS), "/moved/away"))
    summary = place.results / primus_model.folder.name / "fold_0" / "validation" / "summary.json"
    summary.unlink()
    run_command(
        "nnUNetv2_train_pretrained", "999", "3d_fullres", "0", "-p", primus_model.long_name, "-device", "cpu", "--val",
        env=place.env,
    )  # fmt: skip
    truth = json.loads((primus_model.fold / "validation" / "summary.json").read_text())
    assert json.loads(summary.read_text())["foreground_mean"]["Dice"] == pytest.approx(truth["foreground_mean"]["Dice"])


def test_every_command_runs_as_a_module(workplace: Workplace) -> None:
    for command in ("preprocess_like_nnssl", "nnUNetv2_train_pretrained", "demo"):
        result = run_command("python", "-m", "nnunetv2_ext", command, "--help", env=workplace.env)
        assert result.stdout.startswith("usage:")


@pytest.mark.parametrize("command", ["preprocess_like_nnssl", "train_pretrained"])
def test_help_does_not_import_torch(command: str, workplace: Workplace) -> None:
    code = (
        f"import sys, contextlib\nfrom nnunetv2_ext.cli.{command} import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\nassert 'torch' not in sys.modules"
    )
    run_command("python", "-c", code, env=workplace.env)


def test_several_datasets_are_planned_for_one_checkpoint(workplace: Workplace, tmp_path: Path) -> None:
    place = copy_of(workplace, tmp_path)
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / folder / "Dataset998_Other").symlink_to(tmp_path / folder / place.raw.name)
    result = run_command(
        "nnUNetv2_preprocess_like_nnssl", "-d", 999, "Dataset998_Other", "-n", "both", "-pc", TINY_RESENC, "--no_pp",
        env=place.env,
    )  # fmt: skip
    for dataset in (999, 998):
        assert f"nnUNetv2_train_pretrained -d {dataset} -c 3d_fullres -f 0 -p ptPlans__both____" in result.stdout
