"""The job scripts: the commands that they make, and when they queue a job again. SLURM's and LSF's own are stubs."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_ext.cli import train_pretrained
from tests.processes import wait_for

SCRIPTS = Path(__file__).parents[1] / "documentation" / "job_scripts"
TORCHRUN = "nnUNetv2_torchrun_pretrained"
TRAIN = "nnUNetv2_train_pretrained"
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "32",
}
ARRAY = {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"}


def stub(folder: Path, name: str, *lines: str) -> None:
    """A command on the PATH that notes its arguments in calls.txt, and then does `lines`."""
    (folder / "bin").mkdir(exist_ok=True)
    script = folder / "bin" / name
    script.write_text("\n".join(["#!/bin/bash", f'echo "{name} $*" >> {folder}/calls.txt', *lines]) + "\n")
    script.chmod(0o755)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "LSB_"))}
    return {**kept, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **variables}


def dry_run(script: str, folder: Path, **variables: str) -> list[list[str]]:
    """The commands that the script prints."""
    stub(folder, "scontrol", '[[ "$*" == "show hostnames node[07-08]" ]] && printf "node07\\nnode08\\n"')
    result = subprocess.run(
        ["bash", str(SCRIPTS / script)], env=environment(folder, DRY_RUN="1", **variables),
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert result.stderr == ""
    return [shlex.split(line) for line in result.stdout.splitlines()]


def calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().splitlines()


def torchrun_of(command: list[str]) -> argparse.Namespace:
    """What torch's own parser makes of it."""
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(command[command.index(TORCHRUN) + 1 :])


def training_of(arguments: list[str]) -> argparse.Namespace:
    parsed = train_pretrained.parser().parse_args(arguments)
    assert (parsed.dataset, parsed.configuration) == ("999", "3d_fullres")
    assert parsed.plans.startswith("ptPlans__")
    assert parsed.continue_training
    return parsed


def options_of(script: str, prefix: str) -> list[str]:
    lines = (SCRIPTS / script).read_text().splitlines()
    return [" ".join(line.split("#", 2)[1].split()[1:]) for line in lines if line.startswith(f"#{prefix} ")]


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_scripts_are_sound_and_refuse_unset_variables(script: str) -> None:
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)
    text = (SCRIPTS / script).read_text()
    assert text.startswith("#!/bin/bash\n")
    assert "\nset -euo pipefail\n" in text


def test_slurm_starts_one_launcher_a_node_and_one_process_a_gpu(tmp_path: Path) -> None:
    (command,) = dry_run("slurm.sh", tmp_path, **SLURM)
    srun = command[: command.index(TORCHRUN)]
    assert srun[0] == "srun"
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=32"} <= set(srun)
    torchrun = torchrun_of(command)
    assert (torchrun.nnodes, torchrun.nproc_per_node) == ("2", "4")
    assert torchrun.rdzv_backend == "c10d"
    assert (torchrun.module, torchrun.training_script) == (True, "nnunetv2_ext.cli.train_pretrained")
    host, port = torchrun.rdzv_endpoint.split(":")
    assert host == "node07"
    assert 1024 < int(port) < 32768
    assert training_of(torchrun.training_script_args).folds == ["0"]
    assert not torchrun.standalone


def test_jobs_that_share_a_node_meet_at_ports_of_their_own(tmp_path: Path) -> None:
    endpoints = {
        torchrun_of(dry_run("slurm.sh", tmp_path, **{**SLURM, "SLURM_JOB_ID": job})[0]).rdzv_endpoint
        for job in ("4711", "4712")
    }
    arrays = {
        torchrun_of(dry_run("lsf.sh", tmp_path, LSB_JOBID=job, LSB_HOSTS="a b", LSB_JOBINDEX=index)[0]).rdzv_endpoint
        for job in ("4711", "4712")
        for index in ("1", "2", "5")
    }
    assert (len(endpoints), len(arrays)) == (2, 6)


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_folds.sh"])
def test_an_array_job_trains_the_fold_of_its_index(tmp_path: Path, script: str) -> None:
    (command,) = dry_run(script, tmp_path, **SLURM, **ARRAY)
    if script == "slurm.sh":
        training = training_of(torchrun_of(command).training_script_args)
    else:
        training = training_of(command[command.index(TRAIN) + 1 :])
        assert training.num_gpus == 4
    assert training.folds == ["3"]


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_folds.sh"])
def test_slurm_warns_the_processes_and_not_the_shell(script: str) -> None:
    options = options_of(script, "SBATCH")
    assert "--signal=USR1@300" in options
    assert "--requeue" in options
    assert "--open-mode=append" in options


def run_job(script: str, folder: Path, *srun: str, state: str = "RUNNING", **variables: str) -> int:
    stub(folder, "srun", *srun)
    stub(
        folder, "scontrol",
        '[[ "$*" == "show hostnames"* ]] && printf "node07\\nnode08\\n"',
        f'[[ "$*" == "show job"* ]] && echo "   JobState={state} Reason=None"',
        "true",
    )  # fmt: skip
    job = subprocess.run(
        ["bash", str(SCRIPTS / script)], env=environment(folder, **{**SLURM, **variables}),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return job.returncode


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_folds.sh"])
@pytest.mark.parametrize("code", [0, 1, 75, 137])
def test_only_a_stopped_training_is_queued_again(tmp_path: Path, script: str, code: int) -> None:
    assert run_job(script, tmp_path, f"exit {code}") == code
    requeued = [call for call in calls(tmp_path) if "requeue" in call]
    assert requeued == (["scontrol requeue 4711"] if code == 75 else [])


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_folds.sh"])
def test_an_array_job_queues_its_own_element_again(tmp_path: Path, script: str) -> None:
    run_job(script, tmp_path, "exit 75", **ARRAY)
    assert calls(tmp_path)[-1] == "scontrol requeue 4711_3"


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_folds.sh"])
def test_a_cancelled_job_and_an_endless_one_are_not_queued_again(tmp_path: Path, script: str) -> None:
    assert run_job(script, tmp_path, "exit 75", state="CANCELLED") == 75
    assert run_job(script, tmp_path, "exit 75", SLURM_RESTART_COUNT="50") == 75
    assert not any("requeue" in call for call in calls(tmp_path))


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_folds.sh"])
def test_the_shell_outlives_slurms_sigterm_and_queues_the_job_again(tmp_path: Path, script: str) -> None:
    assert run_job(script, tmp_path, "kill -TERM $PPID", "sleep 1", "exit 75") == 75
    assert calls(tmp_path)[-1] == "scontrol requeue 4711"


@pytest.mark.parametrize(
    "hosts",
    [
        {"LSB_HOSTS": "hostB hostB hostA hostA"},
        {"LSB_MCPU_HOSTS": "hostB 2 hostA 2"},
    ],
)
def test_lsf_starts_one_launcher_a_host(tmp_path: Path, hosts: dict[str, str]) -> None:
    here, others = dry_run("lsf.sh", tmp_path, LSB_JOBID="815", LSB_JOBINDEX="0", **hosts)
    torchrun = torchrun_of(here)
    assert (torchrun.nnodes, torchrun.nproc_per_node) == ("2", "4")
    assert torchrun.rdzv_endpoint.split(":")[0] == "hostB"
    assert training_of(torchrun.training_script_args).folds == ["0"]
    assert others == ["blaunch", "-z", "hostA", *here]


def test_lsf_on_one_host_needs_no_blaunch_and_an_array_counts_from_one(tmp_path: Path) -> None:
    (command,) = dry_run("lsf.sh", tmp_path, LSB_JOBID="815", LSB_JOBINDEX="5", LSB_HOSTS="hostB hostB")
    torchrun = torchrun_of(command)
    assert torchrun.nnodes == "1"
    assert training_of(torchrun.training_script_args).folds == ["4"]


def test_lsf_warns_with_a_signal_of_ours_and_queues_again_what_was_stopped() -> None:
    options = options_of("lsf.sh", "BSUB")
    assert {"-wa USR1", "-wt 5", "-r", "-Q 75"} <= set(options)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_lsf_ends_with_the_code_of_the_training(tmp_path: Path, code: int) -> None:
    stub(tmp_path, TORCHRUN, f"exit {code}")
    stub(tmp_path, "blaunch", "exit 1")
    job = subprocess.run(
        ["bash", str(SCRIPTS / "lsf.sh")], env=environment(tmp_path, LSB_JOBID="1", LSB_HOSTS="a b"), timeout=60
    )
    assert job.returncode == code


@pytest.mark.parametrize("warning", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_lsf_passes_a_signal_on_and_waits_until_all_have_saved(tmp_path: Path, warning: signal.Signals) -> None:
    (tmp_path / "launcher.py").write_text(
        "import pathlib, signal, sys, time\n"
        "got = []\n"
        "signal.signal(signal.SIGUSR1, lambda n, _: got.append(n))\n"
        f"pathlib.Path({str(tmp_path)!r}, 'ready').touch()\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(1)\n"
        f"pathlib.Path({str(tmp_path)!r}, 'saved').touch()\n"
        "sys.exit(75)\n"
    )
    stub(tmp_path, TORCHRUN, f"exec {sys.executable} {tmp_path}/launcher.py")
    stub(tmp_path, "blaunch", f"touch {tmp_path}/blaunched", f"until [[ -e {tmp_path}/saved ]]; do sleep 0.1; done")
    job = subprocess.Popen(
        ["bash", str(SCRIPTS / "lsf.sh")], env=environment(tmp_path, LSB_JOBID="1", LSB_HOSTS="a b"),
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: (tmp_path / "ready").exists() and (tmp_path / "blaunched").exists(), seconds=20)
        time.sleep(0.2)
        job.send_signal(warning)
        assert job.wait(timeout=20) == 75
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    assert (tmp_path / "saved").exists()
