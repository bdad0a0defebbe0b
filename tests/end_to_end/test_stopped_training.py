"""Trainings that signals stop, and the same command with --c, as a job script gives them."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.cli import train_pretrained
from nnunetv2_ext.launching.stopping import SIGNALS
from tests.conftest import Model
from tests.disks import fill, mounted
from tests.end_to_end.conftest import enter
from tests.end_to_end.refusal import contents
from tests.end_to_end.training_runs import COMMAND, RECIPE, Run, files, one_line, same_training, says
from tests.processes import end_all, start, wait_for


@pytest.fixture
def finished(undisturbed: Run, planned_resenc: Model, tmp_path: Path) -> Run:
    """A copy of the finished training."""
    run = Run(planned_resenc, tmp_path)
    shutil.rmtree(run.folder.parent, ignore_errors=True)
    shutil.copytree(undisturbed.folder.parent, run.folder.parent, symlinks=True)
    shutil.copytree(undisturbed.place.preprocessed, run.place.preprocessed, dirs_exist_ok=True)
    return run


IN_MID_EPOCH = says(r"epoch 2 of 2")
IN_VALIDATION = says("predicting MNI")


def test_a_training_stopped_in_mid_epoch_and_in_its_validation_ends_as_if_undisturbed(
    planned_resenc: Model, undisturbed: Run, tmp_path: Path
) -> None:
    run = Run(planned_resenc, tmp_path)
    code, _, errors = run.stop(IN_MID_EPOCH, signal.SIGUSR1, *RECIPE)
    assert code == 75
    assert one_line(errors, "stopped by SIGUSR1 in epoch 1", "checkpoint_latest.pth", "--c"), errors
    assert torch.load(run.fold / "checkpoint_latest.pth", weights_only=True)["current_epoch"] == 1

    code, output, errors = run.stop(IN_VALIDATION, signal.SIGINT, "--c", group=True)
    assert code == 75
    # as Ctrl-C in a terminal, it reaches nnU-Net's export workers too, which may complain before
    assert one_line(errors.splitlines(keepends=True)[-1], "stopped by SIGINT", "--c"), errors
    assert "Continuing from checkpoint_latest.pth: epoch 1" in output
    assert not (run.fold / "validation" / "summary.json").exists()
    before = (run.fold / "checkpoint_final.pth").stat().st_mtime_ns

    result = run.run("--c")
    assert (result.returncode, result.stderr) == (0, "")
    assert "the training is finished, what is left is its validation" in result.stdout
    assert "Epoch 1" not in result.stdout
    assert (run.fold / "checkpoint_final.pth").stat().st_mtime_ns == before
    assert same_training(run.final(), undisturbed.final())
    assert len(run.final()["logging"]["train_losses"]) == 2
    summaries = [json.loads((r.fold / "validation" / "summary.json").read_text()) for r in (run, undisturbed)]
    assert summaries[0]["foreground_mean"] == summaries[1]["foreground_mean"]
    assert sorted(p.name for p in run.fold.glob("*.pth*")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    assert not list(run.fold.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_stop_before_the_first_epoch_loses_nothing(
    number: signal.Signals, planned_resenc: Model, undisturbed: Run, tmp_path: Path
) -> None:
    run = Run(planned_resenc, tmp_path)
    code, output, errors = run.stop(says("Using device"), number, *RECIPE)
    assert code == 75
    assert one_line(errors, f"stopped by {number.name}", "--c"), errors
    assert "epoch 2 of 2" not in output
    result = run.run("--c", *RECIPE)
    assert (result.returncode, result.stderr) == (0, "")
    assert same_training(run.final(), undisturbed.final())


@pytest.mark.slow
def test_a_scheduler_that_ends_the_data_loaders_too_gets_the_same_code(planned_resenc: Model, tmp_path: Path) -> None:
    run = Run(planned_resenc, tmp_path)
    run.env["nnUNet_n_proc_DA"] = "2"
    recipe = [word.replace("num_iterations_per_epoch=2", "num_iterations_per_epoch=200") for word in RECIPE]
    code, _, errors = run.stop(says("epoch 1 of 2"), signal.SIGTERM, *recipe, group=True)
    assert code == 75
    last = errors.splitlines()[-1]  # threads of batchgenerators complain before
    assert one_line(f"{last}\n", "stopped by SIGTERM in epoch 0", "--c"), errors
    assert torch.load(run.fold / "checkpoint_latest.pth", weights_only=True)["current_epoch"] == 0


@pytest.mark.slow
def test_the_second_ctrl_c_ends_a_training_at_once(planned_resenc: Model, tmp_path: Path) -> None:
    run = Run(planned_resenc, tmp_path)
    process = start(COMMAND, *run.arguments(*RECIPE), env=run.env, log=tmp_path / "log")
    try:
        wait_for(lambda: "epoch 1 of 2" in (tmp_path / "log").read_text(), process, seconds=200)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) in (75, 130)  # the kernel makes one of two that are not yet delivered
    finally:
        end_all(process)


# a finished training


def main(run: Run, monkeypatch: pytest.MonkeyPatch, *options: object, folds: tuple[int, ...] = (0,)) -> None:
    """The command, in this process."""
    enter(replace(run.place, env=run.env), monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        train_pretrained.main(run.arguments(*options, folds=folds))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_finished_training_is_told_so_and_nothing_is_written(
    undisturbed: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(undisturbed.place)
    main(undisturbed, monkeypatch, "--c")
    assert "fold_0 is finished, its validation too: nothing is left to do" in capsys.readouterr().out
    assert contents(undisturbed.place) == before


def test_probabilities_that_were_not_wanted_before_are_made_alone(
    finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {p: s for p, s in files(finished.fold).items() if p.endswith((".pth", "finetuning.json"))}
    (finished.fold / "validation" / "summary.json").write_text('{"metric_per_case": [')  # and it is cut off
    main(finished, monkeypatch, "--c", "--npz")
    assert len(list((finished.fold / "validation").glob("*.npz"))) == 2
    assert json.loads((finished.fold / "validation" / "summary.json").read_text())["foreground_mean"]
    assert {p: s for p, s in files(finished.fold).items() if p in weights} == weights


@pytest.mark.slow
def test_a_finished_training_is_extended(finished: Run) -> None:
    result = finished.run("--c", "--set", "num_epochs=3")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Continuing from checkpoint_final.pth: epoch 2" in result.stdout
    assert finished.final()["current_epoch"] == 3
    assert "finished" in finished.run("--c").stdout


# another training at the same time


@pytest.mark.slow
def test_a_second_training_of_a_fold_is_refused_until_the_first_is_gone(
    planned_resenc: Model, undisturbed: Run, tmp_path: Path
) -> None:
    run = Run(planned_resenc, tmp_path)
    recipe = [word.replace("num_epochs=2", "num_epochs=500") for word in RECIPE]
    first = start(COMMAND, *run.arguments(*recipe, "save_every=1"), env=run.env, log=tmp_path / "log")
    try:
        wait_for((run.fold / "checkpoint_latest.pth").is_file, first, seconds=200)
        logs = len(list(run.fold.glob("training_log_*.txt")))
        second = run.run("--c")
        assert second.returncode == 1
        assert one_line(second.stderr, "another process is training", str(run.fold)), second.stderr
        assert first.poll() is None
        assert len(list(run.fold.glob("training_log_*.txt"))) == logs
    finally:
        end_all(first)
    code, output, _ = run.stop(says("epoch [0-9]+ of 500"), signal.SIGTERM, "--c")
    assert code == 75
    assert "Continuing from checkpoint_latest.pth" in output


# disks


@pytest.mark.slow
def test_a_full_disk_ends_a_training_in_one_line_and_it_goes_on_when_there_is_room(
    planned_resenc: Model, undisturbed: Run, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "size=40m") as disk:
        run = Run(planned_resenc, tmp_path / "place", results=disk)
        process = start(COMMAND, *run.arguments(*RECIPE, "save_every=1", "num_iterations_per_epoch=40"),
                        env=run.env, log=tmp_path / "log")  # fmt: skip
        try:
            wait_for(lambda: "epoch 2 of 2" in (tmp_path / "log").read_text(), process, seconds=200)
            kept = {n: (run.fold / n).read_bytes() for n in ("checkpoint_latest.pth", "checkpoint_best.pth")}
            filling = fill(disk, leave=100_000)
            assert process.wait(timeout=200) == 1
        finally:
            end_all(process)
        lines = (tmp_path / "log").read_text().splitlines()
        errors = [line for line in lines if f"{COMMAND}: error:" in line]
        assert len(errors) == 1
        assert "Traceback" not in "".join(lines)
        assert re.search(r"could not be written( to)? \(No space left on device\)", errors[0]), errors[0]
        assert "--c continues" in errors[0]
        assert {n: (run.fold / n).read_bytes() for n in kept} == kept
        assert not list(run.fold.glob(".*.tmp"))
        filling.unlink()
        result = run.run("--c")
        assert (result.returncode, result.stderr) == (0, "")
        assert run.final()["current_epoch"] == 2
        assert len(run.final()["logging"]["train_losses"]) == 2


def refused(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: object) -> str:
    before = contents(run.place)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(run, monkeypatch, *options)
    errors = capsys.readouterr().err
    assert caught.value.code == 1
    assert one_line(errors), errors
    assert contents(run.place) == before, "something was written"
    return errors


def test_a_results_folder_that_cannot_be_written_to(
    undisturbed: Run, planned_resenc: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with mounted(tmp_path / "disk", "ro,size=2m") as disk:
        run = Run(planned_resenc, tmp_path / "place", results=disk / "results")
        shutil.copytree(undisturbed.place.preprocessed, run.place.preprocessed, dirs_exist_ok=True)
        message = refused(run, monkeypatch, capsys, *RECIPE)
        assert "cannot be written to: Read-only file system" in message
        assert str(disk) in message


def test_a_results_folder_below_a_file(
    undisturbed: Run, planned_resenc: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("x")
    run = Run(planned_resenc, tmp_path / "place", results=tmp_path / "file" / "results")
    shutil.copytree(undisturbed.place.preprocessed, run.place.preprocessed, dirs_exist_ok=True)
    assert "cannot be written to: Not a directory" in refused(run, monkeypatch, capsys, *RECIPE)


# another plan or dataset


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def configuration(plan: dict) -> dict:
    return plan["configurations"]["3d_fullres"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plan: configuration(plan).update(batch_size=3), "batch_size (2 and 3)"),
        (
            lambda plan: configuration(plan).update(patch_size=[16, 32, 32]),
            "patch_size ([32, 32, 32] and [16, 32, 32])",
        ),
        (
            lambda plan: configuration(plan)["architecture"]["arch_kwargs"].update(n_conv_per_stage_decoder=[2, 2, 2]),
            "n_conv_per_stage_decoder ([1, 1, 1] and [2, 2, 2])",
        ),
    ],
)
def test_another_plan_is_refused_and_the_difference_named(
    change: Callable[[dict], object], named: str, finished: Run, planned_resenc: Model,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in (planned_resenc.inner_name, planned_resenc.long_name):
        edit(finished.place.preprocessed / f"{name}.json", change)
    assert named in refused(finished, monkeypatch, capsys, "--c")


def test_another_dataset_is_refused_and_the_difference_named(
    finished: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished.fold / "validation" / "summary.json").unlink()  # so that something is left to do
    swapped = {"labels": {"background": 0, "white_matter": 1, "grey_matter": 2}}
    edit(finished.place.preprocessed / "dataset.json", lambda d: d.update(swapped))
    message = refused(finished, monkeypatch, capsys, "--c")
    assert "labels.grey_matter (1 and 2)" in message
    assert "checkpoint_final.pth" in message
