"""One fold on several processes, by torchrun and by -num_gpus: trained, killed, stopped, continued, refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.cli import torchrun_pretrained, train_pretrained
from nnunetv2_ext.launching.elastic import TRAINING
from tests.commands import SCRIPTS, run_command
from tests.conftest import Model, Workplace, copy_of, predict
from tests.end_to_end.refusal import Refuses, contents
from tests.launching.test_elastic import free_port
from tests.processes import start, wait_for

SHORT = (
    "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "mirroring=false", "seed=1", "save_every=1",
)  # fmt: skip
MARK = "NNUNETV2_EXT_TEST"
"""In the environment of all that a training starts: torchrun's workers are in sessions of their own."""


def environment(pid: int) -> dict[str, str]:
    """A process's; empty when it has ended."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries if entry)


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Job:
    """A training of fold 0 in folders of its own, started again and again by commands of any kind."""

    def __init__(self, model: Model, root: Path, num_epochs: int = 2, *, loaders: int = 0) -> None:
        self.place = copy_of(model.workplace, root)
        self.model = Model(self.place, model.checkpoint, model.long_name, model.inner_name)
        self.mark = uuid.uuid4().hex
        self.env = {
            **self.place.env, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": str(loaders), MARK: self.mark,
        }  # fmt: skip
        self.command = (
            "-d", self.place.dataset_id, "-c", "3d_fullres", "-f", 0, "-p", model.inner_name, "-device", "cpu",
        )  # fmt: skip
        self.recipe = ("--set", f"num_epochs={num_epochs}", *SHORT)
        self.logs: list[Path] = []

    @property
    def output(self) -> str:
        return self.logs[-1].read_text()

    @property
    def errors(self) -> list[str]:
        """The lines in which our commands have complained."""
        return [line for line in self.output.splitlines() if re.match(r"(nnUNetv2_\w+|\w+\.py): error: ", line)]

    @property
    def error(self) -> str:
        """The only one of these lines."""
        assert len(self.errors) == 1, self.output
        return self.errors[0]

    def start(self, how: tuple[object, ...], *options: object) -> subprocess.Popen[str]:
        """`how`: what stands before the training's own arguments, the command's name first."""
        options = options or (self.recipe if not self.logs else ("--c",))
        self.logs.append(self.place.root / f"output_{len(self.logs)}.log")
        name, *words = map(str, how)
        return start(name, *words, *self.command, *options, env=self.env, log=self.logs[-1])

    def finish(self, how: tuple[object, ...], *options: object) -> None:
        process = self.start(how, *options)
        assert process.wait(timeout=300) == 0, self.output

    def wait_for_epoch(self, number: int, process: subprocess.Popen[str]) -> None:
        wait_for(lambda: re.search(rf"Learning rate .*epoch {number} of", self.output), process, seconds=200)

    def processes(self) -> set[int]:
        """All that the job has started and that still run."""
        pids = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal())
        return {pid for pid in pids if environment(pid).get(MARK) == self.mark}

    def worker(self, launcher: int, rank: int) -> int:
        """The process of a rank."""
        (pid,) = (p for p in self.processes() if parent(p) == launcher and environment(p).get("RANK") == str(rank))
        return pid

    def check_that_nothing_runs(self, seconds: float) -> None:
        wait_for(lambda: not self.processes(), seconds=seconds)

    def clean_up(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def checkpoint(self, name: str) -> dict:
        return torch.load(self.model.fold / f"checkpoint_{name}.pth", weights_only=True)


NewJob = Callable[..., Job]


@pytest.fixture
def new_job(planned_resenc: Model, tmp_path: Path) -> Iterator[NewJob]:
    jobs: list[Job] = []

    def make(**settings: int) -> Job:
        jobs.append(Job(planned_resenc, tmp_path / str(len(jobs)), **settings))
        return jobs[-1]

    yield make
    for job in jobs:
        job.clean_up()


def alone() -> tuple[object, ...]:
    return ("nnUNetv2_train_pretrained",)


def num_gpus(number: int) -> tuple[object, ...]:
    return ("nnUNetv2_train_pretrained", "-num_gpus", number)


def torchrun(number: int) -> tuple[object, ...]:
    """torch's own."""
    return ("torchrun", "--standalone", "--nproc_per_node", number, "-m", TRAINING)


def our_torchrun(number: int) -> tuple[object, ...]:
    return ("nnUNetv2_torchrun_pretrained", "--standalone", "--nproc_per_node", number, "--")


def files(fold: Path) -> set[str]:
    """The names of a fold's files, without the time in the log's."""
    names = (str(path.relative_to(fold)) for path in fold.rglob("*") if path.is_file())
    return {re.sub(r"training_log_[\d_]+", "training_log", name) for name in names}


def check_like_one_process(model: Model, one: Model, num_logs: int) -> None:
    """Results as those of `one`, complete; a log for each start, written by one process."""
    assert files(model.fold) == {f for f in files(one.fold) if not f.endswith(".npz") and not f.endswith(".pkl")}
    assert {p.name for p in model.folder.iterdir()} - {"logs"} == {p.name for p in one.folder.iterdir()}
    validation = model.fold / "validation"
    cases = json.loads((model.workplace.preprocessed / "splits_final.json").read_text())[0]["val"]
    assert len(cases) >= 2
    assert {p.name for p in validation.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in cases}
    summary = json.loads((validation / "summary.json").read_text())
    assert {Path(c["prediction_file"]).name for c in summary["metric_per_case"]} == {f"{c}.nii.gz" for c in cases}
    logs = sorted(model.fold.glob("training_log_*.txt"))
    assert len(logs) == num_logs
    assert logs[-1].read_text().count("Training done.") == 1


def check_log_of_epochs(job: Job, number: int) -> None:
    """Each epoch is counted once, on the way from one number of processes to another."""
    logging = job.checkpoint("final")["logging"]
    assert {len(logging[key]) for key in ("train_losses", "val_losses", "ema_fg_dice", "lrs")} == {number}


def test_a_killed_worker_ends_the_job_with_one_line_and_it_continues_to_the_end(
    new_job: NewJob, resenc_model: Model
) -> None:
    job = new_job()
    process = job.start(num_gpus(2))
    job.wait_for_epoch(2, process)
    os.kill(job.worker(process.pid, 1), signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(timeout=60) == 1
    assert time.monotonic() - killed < 45
    line = job.error
    assert "process 1 of 2 was ended by SIGKILL" in line
    assert "--c continues" in line
    assert "Traceback" not in job.output
    job.check_that_nothing_runs(seconds=5)
    job.finish(num_gpus(2))
    assert "Continuing from checkpoint_latest.pth: epoch 1" in job.output
    check_like_one_process(job.model, resenc_model, num_logs=2)
    check_log_of_epochs(job, 2)
    assert job.output.count("nnUNetv2_predict") == 1
    assert not job.errors


@pytest.mark.slow
def test_two_then_one_then_four_processes_train_one_fold(new_job: NewJob, resenc_model: Model, tmp_path: Path) -> None:
    job = new_job(num_epochs=4)
    process = job.start(torchrun(2))
    job.wait_for_epoch(2, process)
    process.send_signal(signal.SIGTERM)  # torch's own launcher passes it on
    assert process.wait(timeout=60) != 0
    job.check_that_nothing_runs(seconds=10)
    assert "Stopped by SIGTERM in epoch 1: its start is in checkpoint_latest.pth" in job.output
    assert job.checkpoint("latest")["current_epoch"] == 1
    process = job.start(alone())
    job.wait_for_epoch(3, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert job.checkpoint("latest")["current_epoch"] == 2
    job.finish(torchrun(4))
    assert "Continuing from checkpoint_latest.pth: epoch 2" in job.output
    assert "4 processes are more than the plan's batch size of 2" in job.output
    check_log_of_epochs(job, 4)
    check_like_one_process(job.model, resenc_model, num_logs=3)
    predicted = predict(job.model, tmp_path / "predicted")
    assert len(list(predicted.glob("*.nii.gz"))) == len(list((job.place.raw / "imagesTs").glob("*_0000.nii.gz")))


@pytest.mark.slow
@pytest.mark.parametrize("how", [torchrun, our_torchrun], ids=lambda how: how.__name__)
def test_torchrun_trains_as_one_process_does(
    how: Callable[[int], tuple[object, ...]], new_job: NewJob, resenc_model: Model
) -> None:
    job = new_job()
    job.finish(how(2))
    check_like_one_process(job.model, resenc_model, num_logs=1)
    check_log_of_epochs(job, 2)
    assert job.output.count("nnUNetv2_predict") == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", [torchrun, our_torchrun, num_gpus], ids=lambda how: how.__name__)
@pytest.mark.parametrize("loaders", [0, 2])
def test_a_killed_launcher_takes_all_with_it_and_the_training_continues(
    how: Callable[[int], tuple[object, ...]], loaders: int, new_job: NewJob
) -> None:
    job = new_job(loaders=loaders)
    process = job.start(how(2))
    job.wait_for_epoch(2, process)
    assert len(job.processes()) >= 1 + 2 + 2 * loaders
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=10) == -signal.SIGKILL
    job.check_that_nothing_runs(seconds=10)
    job.finish(how(2))
    assert "Continuing from checkpoint_latest.pth: epoch 1" in job.output
    check_log_of_epochs(job, 2)


@pytest.mark.slow
@pytest.mark.parametrize("loaders", [0, 2])
def test_a_killed_worker_of_torchrun_ends_the_job(loaders: int, new_job: NewJob) -> None:
    job = new_job(loaders=loaders)
    process = job.start(our_torchrun(2))
    job.wait_for_epoch(2, process)
    os.kill(job.worker(process.pid, 0), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    line = job.error
    assert line.startswith("nnUNetv2_torchrun_pretrained: error: process 0 of 2 was ended by SIGKILL")
    job.check_that_nothing_runs(seconds=5)
    job.finish(alone())
    check_log_of_epochs(job, 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", [torchrun, our_torchrun, num_gpus], ids=lambda how: how.__name__)
def test_a_signal_to_the_launcher_saves_with_data_loaders_too(
    how: Callable[[int], tuple[object, ...]], new_job: NewJob
) -> None:
    job = new_job(loaders=2)
    process = job.start(how(2))
    job.wait_for_epoch(2, process)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=90)
    assert code != 0 if how is torchrun else code == 75, job.output
    job.check_that_nothing_runs(seconds=10)
    assert job.checkpoint("latest")["current_epoch"] == 1
    job.finish(alone())
    assert "Continuing from checkpoint_latest.pth: epoch 1" in job.output
    check_log_of_epochs(job, 2)


# two processes that were started by hand, as on two nodes


def by_hand(place: Workplace, command: tuple[object, ...], *changes: Mapping[str, str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of a process for each of `changes` to the environment; they are to meet."""
    port = str(free_port())
    processes = []
    for rank, change in enumerate(changes):
        env = {
            **place.env, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "RANK": str(rank),
            "WORLD_SIZE": str(len(changes)), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        name, *arguments = command
        processes.append(subprocess.Popen(
            [str(SCRIPTS / str(name)), *map(str, arguments)],
            env=env | dict(change), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ))  # fmt: skip
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]


def refusal_of(ends: list[tuple[int, str, str]]) -> str:
    """The one line; the first rank writes it and all leave with code 1."""
    assert [code for code, _, _ in ends] == [1] * len(ends), ends
    (_, _, first), *others = ends
    assert first.count("\n") == 1, first
    assert [error for _, _, error in others] == [""] * len(others)
    return first


def test_ranks_with_another_plan_are_refused_by_the_entry(new_job: NewJob) -> None:
    job, other = new_job(), new_job()
    for path in other.place.preprocessed.glob("ptPlans*tiny*.json"):
        plan = json.loads(path.read_text())
        plan["configurations"]["3d_fullres"]["batch_size"] = 4
        path.write_text(json.dumps(plan))
    before = contents(job.place), contents(other.place)
    command = ("nnUNetv2_train_pretrained", *job.command, *job.recipe)
    line = refusal_of(by_hand(job.place, command, {}, {"nnUNet_preprocessed": other.env["nnUNet_preprocessed"]}))
    assert "batch_size" in line
    assert "rank 1" in line
    assert (contents(job.place), contents(other.place)) == before


@pytest.mark.slow
def test_ranks_with_another_results_folder_are_refused(new_job: NewJob, tmp_path: Path) -> None:
    job = new_job()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = ("nnUNetv2_train_pretrained", *job.command, *job.recipe)
    line = refusal_of(by_hand(job.place, command, {}, {"nnUNet_results": str(elsewhere)}))
    assert "nnUNet_results must be shared" in line
    assert "rank 1" in line
    assert not list(elsewhere.rglob("*"))
    assert not list(job.model.folder.rglob(".seen_by_all_*"))


def test_a_first_node_that_does_not_answer_is_one_line_in_time(new_job: NewJob) -> None:
    job = new_job()
    env = {
        **job.env, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    before = contents(job.place)
    begin = time.monotonic()
    result = run_command(*alone(), *job.command, *job.recipe, "-ddp_timeout", 5, env=env, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    line = result.stderr
    seconds = int(re.search(r"within (\d+) s", line)[1])  # type: ignore[index]
    assert 4 <= seconds <= 15
    assert time.monotonic() - begin < seconds + 60, "and the time to load torch"
    for text in ("rank 1 of 2 could not meet the others at 127.0.0.1", env["MASTER_PORT"]):
        assert text in line
    assert contents(job.place) == before


# refused before anything is started


@pytest.fixture(scope="module")
def place(planned_resenc: Model, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A plan that has never been trained with."""
    return copy_of(planned_resenc.workplace, tmp_path_factory.mktemp("bad_processes"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-num_gpus", 0), "-num_gpus must be at least 1"),
        (("-num_gpus", 2, "-device", "mps"), "-device mps"),
        (("-num_gpus", 2, "-parallel_folds", 2), "-num_gpus"),
        (("-ddp_timeout", 0), "-ddp_timeout is a number of seconds above 0"),
        (("-ddp_timeout", -3), "-ddp_timeout"),
    ],
)
def test_a_bad_number_of_processes_or_seconds(
    options: tuple[object, ...], expected: str, refused: Refuses, planned_resenc: Model
) -> None:
    command = ("-d", 999, "-c", "3d_fullres", "-f", 0, "-p", planned_resenc.inner_name)
    device = () if "-device" in options else ("-device", "cpu")
    refused(train_pretrained.main, [*command, *device, *options], expected)


@pytest.mark.skipif(torch.cuda.device_count() > 2, reason="there are as many GPUs")
def test_more_processes_than_gpus(refused: Refuses, planned_resenc: Model) -> None:
    command = ("-d", 999, "-c", "3d_fullres", "-f", 0, "-p", planned_resenc.inner_name)
    refused(train_pretrained.main, [*command, "-num_gpus", 3, "-device", "cuda"], "GPU")


@pytest.mark.parametrize("option", ["-num_gpus", "-parallel_folds"])
def test_processes_that_torchrun_has_started_start_no_others(
    option: str, refused: Refuses, planned_resenc: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    command = ("-d", 999, "-c", "3d_fullres", "-f", 0, "-p", planned_resenc.inner_name, "-device", "cpu")
    refused(train_pretrained.main, [*command, option, 2], option, "torchrun")


def test_our_torchrun_without_a_training(refused: Refuses) -> None:
    refused(torchrun_pretrained.main, ["--standalone", "--nproc_per_node", 2], "nnUNetv2_train_pretrained", "--")
    refused(torchrun_pretrained.main, ["--standalone", "--", "-c", "3d_fullres", "--hlep"], "--hlep")
