"""Finished folds side by side: numbers against numpy, folders as nnU-Net and its forks leave them, and bad input."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.evaluation.evaluate_predictions import save_summary_json
from PIL import Image
from rich.console import Console
from torch import nn

from nnunetv2_ext.cli.compare_finetuning import main
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training.comparison import compare_finetuning, comparison_table
from nnunetv2_ext.training.comparison_figure import COLOURS, LearningCurves, draw_comparison, mean_curve

DATASET = "Dataset004_Hippocampus"
LABELS = {"background": 0, "posterior": 2, "anterior": 1}
CASES = {1: [0.8, 0.9, math.nan], 2: [0.4, 0.7, 0.1]}
INNER = "ptPlans_tiny_Spacing_1.00_1.00_1.00_Norm_Z"
LONG = "ptPlans__tiny____Spacing__1.00_1.00_1.00___Norm__Z"
EPOCHS = 4


class Network(nn.Module):
    """One parameter under two names, as in nnU-Net's networks, and statistics that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 3)
        self.all_modules = nn.Sequential(self.conv, nn.BatchNorm3d(3))
        self.head = nn.Linear(3, 2)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset's results folder without models."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_results" / DATASET
    folder.mkdir(parents=True)
    return folder


def log_of(num_epochs: int, seed: int = 0) -> dict[str, list]:
    """nnU-Net's log, with the types that it has in checkpoints."""
    random = np.random.default_rng(seed)
    starts = 1.7e9 + 100.0 * np.arange(num_epochs)
    return {
        "mean_fg_dice": list(random.random(num_epochs)),
        "ema_fg_dice": list(random.random(num_epochs)),
        "dice_per_class_or_region": [list(random.random(2)) for _ in range(num_epochs)],
        "train_losses": list(random.random(num_epochs).astype(np.float32)),
        "val_losses": list(random.random(num_epochs).astype(np.float32)),
        "lrs": [0.01] * num_epochs,
        "epoch_start_timestamps": starts.tolist(),
        "epoch_end_timestamps": (starts + 10 * random.random(num_epochs)).tolist(),
    }


def write_summary(path: Path, cases: dict) -> None:
    """As nnU-Net computes and writes it."""
    means = {label: {"Dice": float(np.nanmean(values))} for label, values in cases.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = {"mean": means, "foreground_mean": {"Dice": 0.0}, "metric_per_case": []}
    save_summary_json(summary, str(path))


def make_fold(
    results: Path, trainer: str = "nnUNetTrainer", plans: str = "nnUNetPlans", fold: str = "0", *,
    cases: dict = CASES, log: dict | None = None, finetuning: dict | None = None, labels: dict = LABELS,
) -> Path:  # fmt: skip
    """A finished fold, written as stock nnU-Net writes it."""
    folder = results / f"{trainer}__{plans}__3d_fullres" / f"fold_{fold}"
    folder.mkdir(parents=True)
    (folder.parent / "plans.json").write_text(json.dumps({"plans_name": plans}))
    (folder.parent / "dataset.json").write_text(json.dumps({"labels": labels}))
    write_summary(folder / "validation" / "summary.json", cases)
    checkpoint = {
        "network_weights": Network().state_dict(),
        "logging": log or log_of(EPOCHS),
        "_best_ema": np.float64(0.5),
        "current_epoch": EPOCHS,
    }
    torch.save(checkpoint, folder / "checkpoint_final.pth")
    if finetuning is not None:
        (folder / "finetuning.json").write_text(json.dumps(finetuning))
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run(*arguments: object) -> int:
    """The command's exit code."""
    try:
        main(["-d", "4", "-c", "3d_fullres", *map(str, arguments)])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_a_row_holds_the_numbers_of_its_fold(results: Path) -> None:
    log = log_of(7)
    make_fold(results, log=copy.deepcopy(log), cases={0: [1.0], **CASES})
    compare_finetuning("4", "3d_fullres")
    (row,) = rows(results)
    dice = {name: np.nanmean(CASES[value]) for name, value in LABELS.items() if value}
    assert (row["trainer"], row["plans"]) == ("nnUNetTrainer", "nnUNetPlans")
    assert (row["recipe"], row["fold"]) == ("nnUNetTrainer", "0")
    assert float(row["dice_posterior"]) == dice["posterior"]
    assert float(row["dice_anterior"]) == dice["anterior"]
    assert float(row["mean_dice"]) == pytest.approx(np.mean(list(dice.values())))
    assert row["epochs"] == "7"
    seconds = np.subtract(log["epoch_end_timestamps"], log["epoch_start_timestamps"]).sum()
    assert float(row["hours"]) == pytest.approx(seconds / 3600)
    assert int(row["trainable_parameters"]) == sum(p.numel() for p in Network().parameters())
    assert [key for key in row if key.startswith("dice_")] == ["dice_posterior", "dice_anterior"]  # the dataset's order


def test_the_fold_that_knows_names_recipe_and_trainable_parameters(results: Path) -> None:
    make_fold(results, finetuning={"recipe": {"name": "lora"}, "trainable_parameters": 17})
    compare_finetuning("4", "3d_fullres")
    (row,) = rows(results)
    assert (row["recipe"], row["trainable_parameters"]) == ("lora", "17")


def test_a_model_is_the_mean_of_its_folds(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fold(results, fold="0", cases={1: [0.2], 2: [0.4]}, log=log_of(3))
    make_fold(results, fold="1", cases={1: [0.6], 2: [0.7]}, log=log_of(5))
    comparison = compare_finetuning("4", "3d_fullres")
    (model,) = comparison.models
    assert model.dice("anterior") == pytest.approx(0.4)
    assert model.mean_dice == pytest.approx(np.mean([0.3, 0.65]))
    assert run() == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "nnUNetTrainer" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[1:5] == ["0 1", "0.4750", "0.5500", "0.4000"]
    assert cells[5] == "3 to 5"


def test_a_class_that_is_in_no_case_is_nan_and_left_out_of_the_means(results: Path) -> None:
    folder = make_fold(results, cases={1: [0.25], 2: [0.5]})
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    summary["mean"]["2"]["Dice"] = math.nan
    (folder / "validation" / "summary.json").write_text(json.dumps(summary))
    make_fold(results, fold="1", cases={1: [0.75], 2: [0.5]})
    (model,) = compare_finetuning("4", "3d_fullres").models
    first, second = rows(results)
    assert (first["dice_posterior"], first["mean_dice"]) == ("nan", "0.25")
    assert second["mean_dice"] == "0.625"
    assert model.dice("posterior") == 0.5
    assert model.mean_dice == pytest.approx((0.25 + 0.625) / 2)


def test_regions_go_by_their_names(results: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2], "enhancing": 3}
    make_fold(results, labels=labels, cases={(1, 2): [0.5], (2,): [0.25], 3: [0.75]})
    compare_finetuning("4", "3d_fullres")
    (row,) = rows(results)
    assert (row["dice_whole"], row["dice_core"], row["dice_enhancing"]) == ("0.5", "0.25", "0.75")


def test_a_class_that_a_model_does_not_know_is_empty(results: Path) -> None:
    make_fold(results, plans="A")
    make_fold(results, plans="B", labels={"background": 0, "anterior": 1}, cases={1: [0.5]})
    compare_finetuning("4", "3d_fullres")
    assert [row["dice_posterior"] == "" for row in rows(results)] == [False, True]


def test_models_of_any_origin_stand_in_one_table(results: Path) -> None:
    """Ours with its link, one from scratch, stock nnU-Net's, the fork's with long names and a trainer with `__`."""
    make_fold(results, "PretrainedTrainer", INNER)
    (results / f"PretrainedTrainer__{LONG}__3d_fullres").symlink_to(f"PretrainedTrainer__{INNER}__3d_fullres")
    make_fold(results, "PretrainedTrainer", f"{INNER}_from_scratch")
    make_fold(results)
    make_fold(results, "PretrainedTrainer_Primus", LONG)
    make_fold(results, "PretrainedTrainer_adam__nomirroring", LONG)
    compare_finetuning("4", "3d_fullres")
    assert {(row["trainer"], row["plans"]) for row in rows(results)} == {
        ("PretrainedTrainer", INNER),
        ("PretrainedTrainer", f"{INNER}_from_scratch"),
        ("nnUNetTrainer", "nnUNetPlans"),
        ("PretrainedTrainer_Primus", LONG),
        ("PretrainedTrainer_adam__nomirroring", LONG),
    }
    assert len(rows(results)) == 5


def test_a_model_that_lies_elsewhere_and_is_linked_counts(results: Path, tmp_path: Path) -> None:
    elsewhere = make_fold(tmp_path / "disk").parent
    (results / elsewhere.name).symlink_to(elsewhere)
    assert len(compare_finetuning("4", "3d_fullres").models) == 1


def test_earlier_runs_and_unfinished_folds_are_left_out(results: Path) -> None:
    fold = make_fold(results)
    make_fold(results, fold="1").rename(fold.parent / "previous_fold_0_2025_1_1")
    (fold.parent / "crossval_results_folds_0_1").mkdir()
    (fold.parent / "fold_1").mkdir()
    comparison = compare_finetuning("4", "3d_fullres")
    assert [row["fold"] for row in rows(results)] == ["0"]
    assert list(comparison.unfinished) == ["nnUNetTrainer__nnUNetPlans__3d_fullres/fold_1"]


def test_other_configurations_are_left_out(results: Path) -> None:
    make_fold(results)
    folder = make_fold(results, plans="Other").parent
    folder.rename(results / "nnUNetTrainer__Other__3d_lowres")
    compare_finetuning("4", "3d_fullres")
    assert [row["plans"] for row in rows(results)] == ["nnUNetPlans"]


@pytest.mark.parametrize("name", [INNER, LONG, f"{LONG}.json"])
def test_a_plan_is_found_by_either_of_its_names(name: str, results: Path) -> None:
    make_fold(results)
    make_fold(results, "PretrainedTrainer", INNER)
    make_fold(results, "PretrainedTrainer", f"{INNER}_from_scratch")
    compare_finetuning("4", "3d_fullres", [name])
    assert [row["plans"] for row in rows(results)] == [INNER]


@pytest.mark.parametrize("name", [INNER, LONG])
def test_a_plan_of_the_fork_is_found_by_either_of_its_names(name: str, results: Path) -> None:
    make_fold(results, "PretrainedTrainer", LONG)
    make_fold(results)
    compare_finetuning("4", "3d_fullres", [name])
    assert [row["plans"] for row in rows(results)] == [LONG]


def test_models_come_in_the_order_of_the_plans_given_and_of_the_trainers_asked_for(results: Path) -> None:
    for trainer in ("A", "B"):
        for plans in ("X", "Y"):
            make_fold(results, trainer, plans)
    compare_finetuning("4", "3d_fullres", ["Y", "X"], ["B"])
    assert [(row["trainer"], row["plans"]) for row in rows(results)] == [("B", "Y"), ("B", "X")]


def test_the_files_are_written_where_asked_and_named(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_fold(results)
    before = sorted(results.rglob("*"))
    assert run("-o", tmp_path / "new" / "folder") == 0
    files = [tmp_path / "new" / "folder" / name for name in ("comparison.csv", "comparison.png")]
    assert capsys.readouterr().out.splitlines()[-2:] == list(map(str, files))
    assert all(file.is_file() for file in files)
    assert sorted(results.rglob("*")) == before


def test_means_over_different_folds_are_pointed_out(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fold(results, plans="A")
    make_fold(results, plans="B")
    assert run() == 0
    assert "different folds" not in capsys.readouterr().out
    make_fold(results, plans="C", fold="1")
    assert run() == 0
    assert "The models have different folds: their means are over different cases." in capsys.readouterr().out


@pytest.mark.parametrize(("width", "shown"), [(80, False), (100, False), (110, True), (200, True)])
def test_numbers_are_whole_on_any_screen_and_classes_that_have_no_room_are_in_the_file(
    width: int, shown: bool, results: Path
) -> None:
    labels = {"background": 0, **{f"[organ {i}]": i for i in range(1, 4)}}  # brackets are markup to rich
    make_fold(
        results, "PretrainedTrainer", f"{INNER}_from_scratch", labels=labels, cases={i: [i / 8] for i in (1, 2, 3)}
    )
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(comparison_table(compare_finetuning("4", "3d_fullres"), console.width))
    output = capture.get()
    assert max(map(len, output.splitlines())) <= width
    assert "0.2500" in output
    assert ("0.1250" in output and "organ 3" in output) == shown
    assert ("Dice of 3 classes: see comparison.csv" in output) != shown
    assert f"{sum(p.numel() for p in Network().parameters())} │" in output
    assert sum("organ" in column for column in rows(results)[0]) == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_log(path: Path) -> None:
    torch.save({"network_weights": {"a": torch.zeros(1)}}, path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("validation/summary.json", cut, "is not valid JSON"),
        ("validation/summary.json", lambda p: p.write_text("{}"), "is no summary of nnU-Net's"),
        ("validation/summary.json", lambda p: p.write_text('{"mean": {"1": {"Dice": "?"}}}'), "is no summary"),
        ("validation/summary.json", lambda p: p.write_text('{"mean": {}}'), "has no classes"),
        ("checkpoint_final.pth", cut, "is cut off"),
        ("checkpoint_final.pth", Path.unlink, "There is no file"),
        ("checkpoint_final.pth", without_log, "has no log of nnU-Net's"),
        ("finetuning.json", lambda p: p.write_text("{"), "is not valid JSON"),
        ("finetuning.json", lambda p: p.write_text('{"trainable_parameters": "few"}'), "trainable_parameters"),
    ],
)
def test_a_damaged_fold_is_named_and_the_others_are_compared(
    file: str, damage: object, message: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_fold(results)
    damaged = make_fold(results, "PretrainedTrainer", INNER, finetuning={})
    damage(damaged / file)  # type: ignore[operator]
    assert run() == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert f"{damaged.parent.name}/fold_0: " in captured.err
    assert message in captured.err
    assert "nnUNetPlans" in captured.out
    assert [row["plans"] for row in rows(results)] == ["nnUNetPlans"]
    assert (results / "comparison.png").is_file()


def test_with_nothing_but_damaged_folds_nothing_is_written(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(make_fold(results) / "checkpoint_final.pth")
    assert run() == 1
    assert "is cut off" in capsys.readouterr().err
    assert not list(results.glob("comparison*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("4", "3d_lowres"), "no model of 3d_lowres (-c) in {}; there are models of 3d_fullres"),
        (("4", "3d_fullres", ["Nope"]), "no model of Nope (-p) in {}; there are A, nnUNetPlans"),
        (("4", "3d_fullres", ["A"], ["Other"]), "no model of Other (-tr) among those in {}; there are nnUNetTrainer"),
        (("7", "3d_fullres"), "no dataset 7 in"),
        (("4", "3d_fullres", None, None, Path(__file__)), "is a file: give a folder"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(arguments: Sequence, message: str, results: Path) -> None:
    make_fold(results)
    make_fold(results, plans="A")
    with pytest.raises(UserError) as error:
        compare_finetuning(*arguments)
    assert message.format(results) in str(error.value)


def test_without_results_or_finished_folds_that_is_said(results: Path, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_raw" / "Dataset005_Prostate").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there are no results in .*Dataset005_Prostate: train first"):
        compare_finetuning("5", "3d_fullres")
    with pytest.raises(UserError, match="no model of 3d_fullres"):
        compare_finetuning("4", "3d_fullres")
    (results / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0").mkdir(parents=True)
    with pytest.raises(UserError, match="no fold is finished"):
        compare_finetuning("4", "3d_fullres")


def test_the_thick_line_is_the_mean_as_far_as_all_folds_go() -> None:
    folds = [[0.1, 0.3, math.nan, 0.9], [0.5, math.nan, math.nan]]
    assert mean_curve(folds) == pytest.approx([0.3, 0.3, math.nan], nan_ok=True)


@pytest.mark.parametrize("num_epochs", [1, 1000])
def test_every_model_is_to_be_seen_in_the_figure(num_epochs: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    models = [
        LearningCurves(
            f"model {i}",
            [i + 0.1 * random.random(num_epochs) for _ in range(2)],
            [i + 0.1 * random.random(num_epochs) for _ in range(2)],
        )
        for i in range(len(COLOURS))
    ]
    draw_comparison(models, tmp_path / "comparison.png")
    image = np.asarray(Image.open(tmp_path / "comparison.png").convert("RGB")).astype(int)
    left, right = image[:750, : image.shape[1] // 2], image[:750, image.shape[1] // 2 :]
    for colour in COLOURS:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        for half in (left, right):
            assert (np.abs(half - rgb).max(-1) <= 3).sum() > 20
