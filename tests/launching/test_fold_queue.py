"""Folds in processes of their own; the folds here are small scripts that note what they see."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching import fold_progress
from nnunetv2_ext.launching.fold_outcomes import FoldOutcome, closing_table, exit_code
from nnunetv2_ext.launching.fold_progress import PROGRESS_FILE_VARIABLE, Lines, Progress, read_progress, report
from nnunetv2_ext.launching.fold_queue import parse_gpus, train_in_processes
from tests.processes import in_session, wait_for

REPOSITORY = Path(__file__).parents[2]
FOLD = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path
here, fold, began = Path(__file__).parent, sys.argv[-1], time.monotonic()
def note(name="seen", **what):
    (here / f"{name}_{fold}.tmp").write_text(json.dumps(what))
    os.replace(here / f"{name}_{fold}.tmp", here / f"{name}_{fold}.json")
"""
SAVE_AND_STOP = """\
got = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda received, frame: got.append(signal.Signals(received).name))
note(pid=os.getpid())
while not got and time.monotonic() - began < 20:
    time.sleep(0.01)
time.sleep(0.3 + 0.4 * int(fold))
note("saved", got=got)
sys.exit(75)
"""
COMMAND = """\
import sys
from pathlib import Path
from nnunetv2_ext.launching.stopping import listen
listen()
from nnunetv2_ext.launching.fold_outcomes import closing_table, exit_code
from nnunetv2_ext.launching.fold_queue import train_in_processes
parallel = int(sys.argv[1]) or None
try:
    outcomes = train_in_processes([sys.executable, "fold.py"], [0, 1, 2], parallel=parallel, logs=Path("logs"))
except KeyboardInterrupt:
    sys.exit(130)
print(closing_table(outcomes), flush=True)
sys.exit(exit_code(outcomes))
"""


def command_of(folder: Path, body: str) -> list[str]:
    """A fold's command: a script that does `body`."""
    (folder / "fold.py").write_text(FOLD + body)
    return [sys.executable, str(folder / "fold.py")]


def queue_of(folder: Path, body: str, parallel: int, **output: Any) -> subprocess.Popen[str]:
    """A process that trains folds 0, 1 and 2; `parallel` 0 is one after another with the output on the screen."""
    command_of(folder, body)
    (folder / "queue.py").write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "queue.py", str(parallel)], cwd=folder, env=environment, text=True, start_new_session=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | output),
    )  # fmt: skip


def noted(folder: Path, fold: int | str, name: str = "seen") -> dict[str, Any]:
    """What a fold noted; nothing as long as it did not."""
    path = folder / f"{name}_{fold}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def states(outcomes: list[FoldOutcome]) -> list[str]:
    return [outcome.state for outcome in outcomes]


def most_at_once(runs: list[Mapping[str, float]]) -> int:
    return max(sum(other["began"] <= run["began"] < other["ended"] for other in runs) for run in runs)


def test_a_fold_that_fails_lets_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = command_of(tmp_path, "print('I am', fold, flush=True); sys.exit(3 if fold == '1' else 0)")
    outcomes = train_in_processes(command, [0, 1, 2], logs=tmp_path / "logs")
    assert states(outcomes) == ["finished", "failed", "finished"]
    assert [outcome.code for outcome in outcomes] == [0, 3, 0]
    assert exit_code(outcomes) == 1
    assert re.findall(r"I am .|fold . *: failed \(exit code 3\)", capfd.readouterr().out) == [
        "I am 0", "I am 1", "fold 1: failed (exit code 3)", "I am 2",
    ]  # fmt: skip
    assert not (tmp_path / "logs").exists()


def test_no_more_folds_run_at_a_time_than_asked_for(tmp_path: Path) -> None:
    command = command_of(tmp_path, "time.sleep(0.4); note(began=began, ended=time.monotonic())")
    outcomes = train_in_processes(command, [4, 3, 2, 1, 0], parallel=2, logs=tmp_path)
    assert [(outcome.fold, outcome.state) for outcome in outcomes] == [(fold, "finished") for fold in range(5)]
    assert most_at_once([noted(tmp_path, fold) for fold in range(5)]) == 2
    assert all(0.4 <= outcome.seconds < 5 for outcome in outcomes)


def test_a_device_gets_the_next_fold_when_its_own_ends(tmp_path: Path) -> None:
    body = """\
note(device=os.environ["CUDA_VISIBLE_DEVICES"])
while fold == "0" and not (here / "seen_3.json").exists() and time.monotonic() - began < 20:
    time.sleep(0.01)
"""
    outcomes = train_in_processes(
        command_of(tmp_path, body), [0, 1, 2, 3], parallel=2, gpus=["5", "MIG-a"], logs=tmp_path
    )
    assert states(outcomes) == ["finished"] * 4
    assert [noted(tmp_path, fold)["device"] for fold in range(4)] == ["5", "MIG-a", "MIG-a", "MIG-a"]


def test_more_folds_at_a_time_than_devices_share_them_evenly(tmp_path: Path) -> None:
    body = """\
note(device=os.environ["CUDA_VISIBLE_DEVICES"])
while len(list(here.glob("seen_*.json"))) < 4 and time.monotonic() - began < 20:
    time.sleep(0.01)
"""
    train_in_processes(command_of(tmp_path, body), [0, 1, 2, 3], parallel=4, gpus=["0", "1"], logs=tmp_path)
    assert [noted(tmp_path, fold)["device"] for fold in range(4)] == ["0", "1", "0", "1"]


@pytest.mark.parametrize("parallel", [None, 2])
def test_without_gpus_the_devices_of_the_command_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: int | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    command = command_of(tmp_path, "note(device=os.environ['CUDA_VISIBLE_DEVICES'])")
    train_in_processes(command, [0], parallel=parallel, logs=tmp_path)
    assert noted(tmp_path, 0)["device"] == "7"


def test_folds_on_the_cpu_share_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_of(tmp_path, "note(omp=os.getenv('OMP_NUM_THREADS'), own=os.getenv('NNUNETV2_EXT_THREADS'))")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    train_in_processes(command, [0, 1], parallel=2, logs=tmp_path, cpu_cores=9)
    assert noted(tmp_path, 1) == {"omp": "4", "own": "4"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    train_in_processes(command, [0, 1], parallel=2, logs=tmp_path, cpu_cores=1)
    assert noted(tmp_path, 1) == {"omp": "3", "own": "1"}
    train_in_processes(command, [0, 1], parallel=2, logs=tmp_path)
    assert noted(tmp_path, 1) == {"omp": "3", "own": None}


def test_the_output_of_a_fold_is_in_its_own_log_after_that_of_earlier_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "print('out', fold); print('err', fold, file=sys.stderr); os.system(f'echo child {fold}')"
    for _ in range(2):
        train_in_processes(command_of(tmp_path, body), [0, "all"], parallel=2, logs=tmp_path / "logs")
    for fold in ("0", "all"):
        lines = (tmp_path / "logs" / f"fold_{fold}.log").read_text().splitlines()
        assert len(lines) == 8
        for header, *said in (lines[:4], lines[4:]):
            assert re.fullmatch(rf"# \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d .*fold\.py -f {fold}", header)
            assert sorted(said) == [f"child {fold}", f"err {fold}", f"out {fold}"]
    assert not re.search(r"out \w+$|err|child", capfd.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "parallel"), [("SIGTERM", 2), ("SIGUSR1", 2), ("SIGINT", 2), ("SIGTERM", 0), ("SIGINT", 0)]
)
def test_a_signal_is_passed_on_once_and_no_other_fold_is_begun(tmp_path: Path, name: str, parallel: int) -> None:
    queue = queue_of(tmp_path, SAVE_AND_STOP, parallel)
    begun = range(parallel or 1)
    wait_for(lambda: all(noted(tmp_path, fold) for fold in begun), queue)
    queue.send_signal(signal.Signals[name])
    output, _ = queue.communicate(timeout=20)
    assert queue.returncode == 75, output
    passed_on = "SIGTERM" if name == "SIGINT" else name  # a second SIGINT would not let it save
    assert [noted(tmp_path, fold, "saved") for fold in begun] == [{"got": [passed_on]}] * len(begun)
    assert not noted(tmp_path, 2)
    for fold in range(3):
        assert re.search(rf"{fold} │ stopped │ {'75' if fold in begun else 'not begun'} ", output), output
    assert f"{name}: waiting for fold" in output


def test_a_fold_that_is_asked_to_stop_before_it_listens_is_stopped(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, "note(pid=os.getpid()); time.sleep(20)", 3)
    wait_for(lambda: all(noted(tmp_path, fold) for fold in range(3)), queue)
    queue.send_signal(signal.SIGTERM)
    output, _ = queue.communicate(timeout=20)
    assert queue.returncode == 75, output
    assert output.count("│ stopped │ killed by SIGTERM │") == 3


def test_a_killed_fold_has_failed_and_what_it_had_started_is_gone(tmp_path: Path) -> None:
    body = """\
print("loss 0.5")
if fold == "1":
    subprocess.Popen(["sleep", "20"])
    note(pid=os.getpid())
    time.sleep(20)
"""
    queue = queue_of(tmp_path, body, 2)
    victim = wait_for(lambda: noted(tmp_path, 1).get("pid"), queue)
    assert len(in_session(victim)) == 2
    os.kill(victim, signal.SIGKILL)
    output, _ = queue.communicate(timeout=20)
    assert queue.returncode == 1
    assert re.search(r"1 │ failed +│ killed by SIGKILL │", output), output
    assert "fold 1: killed, most likely because memory ran out; its last output: loss 0.5" in output
    assert len(re.findall(r"[02] │ finished │", output)) == 2
    assert not in_session(victim)


def test_the_second_ctrl_c_kills_the_folds_and_what_they_have_started(tmp_path: Path) -> None:
    body = """\
signal.signal(signal.SIGTERM, lambda *_: note("asked", got=True))
subprocess.Popen(["sleep", "20"])
note(pid=os.getpid())
while time.monotonic() - began < 20:
    time.sleep(0.01)
"""
    queue = queue_of(tmp_path, body, 2)
    folds = [wait_for(lambda fold=fold: noted(tmp_path, fold).get("pid"), queue) for fold in range(2)]
    queue.send_signal(signal.SIGINT)
    wait_for(lambda: all(noted(tmp_path, fold, "asked") for fold in range(2)), queue)
    assert all(len(in_session(fold)) == 2 for fold in folds)
    queue.send_signal(signal.SIGINT)
    output, _ = queue.communicate(timeout=5)
    assert queue.returncode == 130, output
    assert not any(map(in_session, folds))
    assert not list(tmp_path.glob("nnunetv2_ext_folds_*"))


def test_a_queue_that_breaks_has_its_folds_save_and_leaves_none_behind(tmp_path: Path) -> None:
    body = "if fold == '0':\n    time.sleep(1)\n    sys.exit()\n" + SAVE_AND_STOP
    queue = queue_of(tmp_path, body, 2, stderr=subprocess.PIPE)
    fold = wait_for(lambda: noted(tmp_path, 1).get("pid"), queue)
    queue.stdout.close()  # that fold 0 has ended can be told to nobody
    queue.stderr.read()
    assert queue.wait(timeout=20) not in (0, 75)
    assert noted(tmp_path, 1, "saved") == {"got": ["SIGTERM"]}
    assert not in_session(fold)


def test_a_fold_that_cannot_be_started_has_failed(tmp_path: Path) -> None:
    (tmp_path / "fold_1.log").mkdir()
    outcomes = train_in_processes(command_of(tmp_path, ""), [0, 1, 2], parallel=1, logs=tmp_path)
    assert states(outcomes) == ["finished", "failed", "finished"]
    assert outcomes[1].code is None
    table = closing_table(outcomes)
    assert re.search(r"1 │ failed +│ could not be started │", table), table
    assert "fold 1: Is a directory: " in table


def test_away_from_a_terminal_a_fold_has_a_line_for_start_and_end_and_few_between(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = """\
from nnunetv2_ext.launching.fold_progress import report
note(file=os.environ["NNUNETV2_EXT_PROGRESS_FILE"], launcher=os.environ["NNUNETV2_EXT_LAUNCHER"])
for epoch in range(1, 5):
    report(epoch, 10, None if epoch == 1 else 0.5, "training")
    time.sleep(0.25)
sys.exit(int(fold))
"""
    train_in_processes(command_of(tmp_path, body), [0, 1], parallel=2, gpus=["3"], logs=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    for fold, end in ((0, "finished"), (1, r"failed \(exit code 1\)")):
        own = [line for line in lines if line.startswith(f"fold {fold}: ")]
        assert own[0] == f"fold {fold}: started on GPU 3, output in {tmp_path / f'fold_{fold}.log'}"
        assert re.fullmatch(rf"fold {fold}: training, epoch [1-4]/10(, EMA pseudo Dice 0\.5000)?", own[1])
        assert re.fullmatch(rf"fold {fold}: {end} after 0:00:0\d", own[2])
        assert len(own) == 3
        assert int(noted(tmp_path, fold)["launcher"]) == os.getpid()
        assert not Path(noted(tmp_path, fold)["file"]).parent.exists()
    assert len(lines) == 6


def test_a_line_is_for_what_has_changed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fold_progress, "_SECONDS_BETWEEN_LINES", 0.0)
    lines = Lines()
    for fold, epoch in ((0, 1), (0, 1), (1, 1), (0, 2), (1, 1), (0, 2)):
        lines.progressed(fold, Progress(epoch, 9, None, "training"))
    assert capsys.readouterr().out.splitlines() == [
        "fold 0: training, epoch 1/9", "fold 1: training, epoch 1/9", "fold 0: training, epoch 2/9",
    ]  # fmt: skip


def test_on_a_terminal_every_fold_has_one_line_that_is_drawn_over(tmp_path: Path) -> None:
    body = """\
from nnunetv2_ext.launching.fold_progress import report
report(7, 10, 0.625, "validating")
time.sleep(1)
sys.exit(3 if fold == "1" else 0)
"""
    ours, its = pty.openpty()
    queue = queue_of(tmp_path, body, 2, stdout=its, stderr=its)
    os.close(its)
    screen = b""
    while True:
        try:
            screen += os.read(ours, 4096)
        except OSError:  # Linux says so when the last writer has closed
            break
    os.close(ours)
    assert queue.wait(timeout=20) == 1
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    assert re.search(r"fold 0 validating .* epoch 7/10 .*0:00:0\d", text), text
    assert "fold 2 waiting" in text
    last = [re.search(rf".*(fold {fold} \w+ ).*", text.rpartition("┏")[0], re.DOTALL)[1] for fold in range(3)]
    assert last == ["fold 0 finished ", "fold 1 failed ", "fold 2 finished "]
    assert b"\x1b[1A" in screen  # the cursor went up, to draw over
    assert "started" not in text


def test_the_closing_table_says_what_became_of_every_fold() -> None:
    log = Path("/results/model/logs")
    outcomes = [
        FoldOutcome(0, "skipped"),
        FoldOutcome(1, "finished", 0, 3723.4, log / "fold_1.log"),
        FoldOutcome(2, "stopped", 75, 59.6, log / "fold_2.log"),
        FoldOutcome(3, "failed", -11, 2.0, log / "fold_3.log", "loss [nan] " + "x" * 500),
        FoldOutcome("all", "stopped"),
    ]
    lines = closing_table(outcomes, width=80).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [
        ["0", "skipped", "", "", ""],
        ["1", "finished", "0", "1:02:03", "fold_1.log"],
        ["2", "stopped", "75", "0:01:00", "fold_2.log"],
        ["3", "failed", "killed by SIGSEGV", "0:00:02", "fold_3.log"],
        ["all", "stopped", "not begun", "", ""],
    ]
    assert lines[-2:] == [f"Logs: {log}", "fold 3: loss [nan] " + "x" * 378 + "..."]
    assert max(map(len, lines[:-1])) <= 80


def test_why_a_fold_failed_is_the_last_line_of_this_run_s_log(tmp_path: Path) -> None:
    command = command_of(tmp_path, "print('first'); sys.exit('\\x1b[31mno memory\\x1b[0m\\n\\n')")
    assert train_in_processes(command, [0], parallel=1, logs=tmp_path)[0].note == "no memory"
    command = command_of(tmp_path, "sys.exit(1)")
    assert train_in_processes(command, [0], parallel=1, logs=tmp_path)[0].note == ""


def test_skipped_folds_are_told_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    command = command_of(tmp_path, "note()")
    outcomes = train_in_processes(command, [10, 2], skipped=["all", 3], parallel=1, logs=tmp_path)
    assert [(outcome.fold, outcome.state) for outcome in outcomes] == [
        (2, "finished"), (3, "skipped"), (10, "finished"), ("all", "skipped"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([], 0),
        (["finished", "skipped"], 0),
        (["finished", "stopped", "skipped"], 75),
        (["stopped", "failed", "finished"], 1),
    ],
)
def test_the_exit_code_tells_failed_from_stopped_from_done(ends: list[str], code: int) -> None:
    assert exit_code([FoldOutcome(fold, state) for fold, state in enumerate(ends)]) == code


def test_a_fold_after_another_has_all_listed_devices_and_reports_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "of_another_queue.json"))
    body = f"note(device=os.environ['CUDA_VISIBLE_DEVICES'], file=os.getenv({PROGRESS_FILE_VARIABLE!r}))"
    train_in_processes(command_of(tmp_path, body), [0], gpus=["2", "3"], logs=tmp_path)
    assert noted(tmp_path, 0) == {"device": "2,3", "file": None}


def test_what_a_fold_reports_is_read_as_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "progress.json"
    assert read_progress(file) is None
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(file))
    report(3, 1000, 0.71, "training")
    assert json.loads(file.read_text()) == {"epoch": 3, "num_epochs": 1000, "ema_dice": 0.71, "state": "training"}
    report(1000, 1000, float("nan"), "validating")
    assert read_progress(file) == Progress(1000, 1000, None, "validating")
    assert list(tmp_path.iterdir()) == [file]
    file.write_text("[]")
    assert read_progress(file) is None


def test_a_report_that_nobody_can_read_disturbs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "gone" / "progress.json"))
    report(1, 2, 0.5, "training")
    monkeypatch.delenv(PROGRESS_FILE_VARIABLE)
    monkeypatch.chdir(tmp_path)
    report(1, 2, 0.5, "training")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "visible", "devices"),
    [
        (None, "1", []),
        ("0", None, ["0"]),
        ("1, 00", None, ["1", "0"]),
        ("GPU-8932f937-d72c,MIG-GPU-8932f937/1/0", None, ["GPU-8932f937-d72c", "MIG-GPU-8932f937/1/0"]),
        ("1,0", "4,5", ["5", "4"]),
        ("1,GPU-abc", "GPU-def,MIG-1", ["MIG-1", "GPU-abc"]),
    ],
)
def test_gpus_are_counted_among_those_that_the_command_sees(
    text: str | None, visible: str | None, devices: list[str]
) -> None:
    assert parse_gpus(text, visible=visible, num_gpus=2) == devices


@pytest.mark.parametrize(
    ("text", "visible", "message"),
    [
        ("", None, "separated by commas"),
        ("0,,1", None, "separated by commas"),
        ("0 1", None, "separated by commas"),
        ("-1", None, "separated by commas"),
        ("cuda:0", None, "separated by commas"),
        ("0\n1", None, "separated by commas"),
        ("²", None, "separated by commas"),
        ("0,1,00", None, "twice"),
        ("0,4", "4,5", "no GPU 4: torch sees 2 GPU(s), counted from 0 under CUDA_VISIBLE_DEVICES=4,5"),
        ("2", None, "no GPU 2: torch sees 2 GPU(s)"),
        ("1", "0,-1,1", "torch sees 1 GPU(s)"),
        ("0", "", "torch sees no GPU"),
        ("0,GPU-a", "GPU-a", "twice"),
    ],
)
def test_a_list_of_gpus_that_makes_no_sense_is_refused_in_one_line(
    text: str, visible: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        parse_gpus(text, visible=visible, num_gpus=2)
    assert "\n" not in str(refused.value)


def test_a_queue_waits_for_nothing_when_there_is_nothing_to_train(tmp_path: Path) -> None:
    began = time.monotonic()
    assert states(train_in_processes(["false"], [], skipped=[0], parallel=3, logs=tmp_path)) == ["skipped"]
    assert time.monotonic() - began < 1
