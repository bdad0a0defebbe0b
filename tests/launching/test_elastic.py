"""The launcher of several processes, with workers that are scripts of a few lines; everything meets on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching.elastic import launch
from tests.processes import end_all, in_session, wait_for

LAUNCHER = """
import sys
from nnunetv2_ext.cli._command import Parser, run
from nnunetv2_ext.launching.elastic import launch
from nnunetv2_ext.launching.stopping import listen

def start(_):
    raise SystemExit(launch(sys.argv[1:]))

listen()
run(Parser(prog="launcher"), start, [], interrupted="--c continues")
"""
WORKER = """
import os, signal, sys, time
from pathlib import Path
from nnunetv2_ext.launching import stopping

mode, rank, folder = sys.argv[1], os.environ["RANK"], Path(sys.argv[2])
got = []
if mode == "saves":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda n, _: got.append(signal.Signals(n).name))
(folder / f"started{rank}").write_text(str(os.getpid()))
if mode == "finishes":
    threads = "OMP_NUM_THREADS" in os.environ
    os.write(1, f"{rank} {os.environ['WORLD_SIZE']} {os.environ['LOCAL_RANK']} {threads}\\n".encode())
elif mode == "fails":
    if rank == "0":
        sys.stderr.write("what is wrong, in one line\\n")
    sys.exit(1)
elif mode == "saves":  # all leave when the first has saved
    while not got:
        time.sleep(0.01)
    if rank == "0":
        time.sleep(3)
        (folder / "saved").write_text(" ".join(got))
    while not (folder / "saved").exists():
        time.sleep(0.01)
    sys.exit(75)
elif mode == "one_stops" and rank == "0":
    while not (folder / "started1").exists():
        time.sleep(0.01)
    sys.exit(75)
elif mode == "leaves_first":
    while not (folder.parent / "late" / "listens").exists():
        time.sleep(0.01)
    sys.exit(75)
elif mode == "leaves_late":
    signal.signal(signal.SIGTERM, lambda n, _: None)
    (folder / "listens").touch()
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        time.sleep(0.1)
    stopping.leave_note()
    sys.exit(75)
else:
    time.sleep(120)
"""


def start(folder: Path, mode: str, *options: str) -> subprocess.Popen[str]:
    """A launcher of two workers, in a session of its own, that listens to Ctrl-C."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "launcher.py").write_text(LAUNCHER)
    (folder / "worker.py").write_text(WORKER)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_NUM", "TORCH", "PET_"))}
    options = options or ("--standalone", "--nproc_per_node", "2")
    return subprocess.Popen(
        [sys.executable, "launcher.py", *options, "worker.py", mode, str(folder)],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        end_all(process)
    return process.returncode, out, err


def worker_pids(folder: Path) -> list[int]:
    files = [folder / "started0", folder / "started1"]
    return [int(file.read_text()) for file in files if file.exists() and file.read_text()]


def all_started(folder: Path) -> bool:
    return len(worker_pids(folder)) == 2


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int, str, str, float]]:
    """Three launchers side by side; each is sent another signal when its workers run."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("SIGUSR1", "SIGTERM", "SIGINT")}
    launchers = {name: start(folder, "saves") for name, folder in folders.items()}
    results = {}
    for name, process in launchers.items():
        wait_for(lambda name=name: all_started(folders[name]), process)  # type: ignore[misc]
        if name == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.send_signal(signal.Signals[name])
    sent = time.monotonic()
    for name, process in launchers.items():
        results[name] = (folders[name], *end_of(process), time.monotonic() - sent)
    return results


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_workers_that_a_signal_stops_have_time_to_save_and_the_code_says_so(
    stopped: dict[str, tuple[Path, int, str, str, float]], name: str
) -> None:
    folder, code, out, err, seconds = stopped[name]
    assert code == 75
    assert (folder / "saved").read_text() == name, "the worker got it once"
    assert (out, err) == ("", "")
    assert 2.5 < seconds < 40


def test_finished_workers_are_a_finished_job_and_their_output_comes_through(tmp_path: Path) -> None:
    code, out, err = end_of(start(tmp_path, "finishes"))
    assert code == 0
    assert sorted(out.splitlines()) == ["0 2 0 True", "1 2 1 True"]
    assert err == ""


def test_a_workers_error_is_the_jobs_and_only_the_worker_speaks(tmp_path: Path) -> None:
    code, out, err = end_of(start(tmp_path, "fails"))
    assert code == 1
    assert (out, err) == ("", "what is wrong, in one line\n")


def test_a_worker_that_stops_takes_the_others_with_it(tmp_path: Path) -> None:
    code, out, err = end_of(start(tmp_path, "one_stops"))
    assert code == 75
    assert (out, err) == ("", "")


def test_a_killed_worker_ends_the_job_with_a_line_and_the_others(tmp_path: Path) -> None:
    process = start(tmp_path, "waits")
    wait_for(lambda: all_started(tmp_path), process)
    first, second = worker_pids(tmp_path)
    os.kill(second, signal.SIGKILL)
    code, out, err = end_of(process)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("launcher: error: process 1 of 2 was ended by SIGKILL")
    assert "memory" in line
    assert "--c continues" in line
    assert not in_session(first)


def test_an_unreachable_rendezvous_is_one_line_within_the_given_time(tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    options = ("--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint)
    begin = time.monotonic()
    code, out, err = end_of(start(tmp_path, "waits", *options, "--rdzv_conf", "join_timeout=4,is_host=0"))
    assert time.monotonic() - begin < 4 + 15, "the time, and that to load torch"
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"launcher: error: {endpoint}, where 2 nodes were to meet, could not be reached within 4 s")
    assert not worker_pids(tmp_path)


@pytest.mark.slow
def test_a_signal_while_the_node_waits_for_others_is_a_stop(tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    process = start(tmp_path, "waits", "--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint)
    wait_for(lambda: is_open(endpoint), process)
    process.send_signal(signal.SIGTERM)
    code, out, err = end_of(process)
    assert (code, out) == (75, "")
    (line,) = err.splitlines()
    assert "stopped by SIGTERM" in line


@pytest.mark.slow
def test_a_stop_is_none_the_less_one_where_the_node_at_which_all_meet_leaves_first(tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    options = ("--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint, "--rdzv_id", "7")
    host = start(tmp_path / "first", "leaves_first", *options)
    wait_for(lambda: is_open(endpoint), host)
    guest = start(tmp_path / "late", "leaves_late", *options)
    assert end_of(host) == (75, "", "")
    assert guest.poll() is None, "it waits for its worker"
    assert end_of(guest) == (75, "", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--standalone", "--nproc_per_node", "two", "x.py"], "two"),
        (["--standalone", "--nproc_per_node", "0", "x.py"], "--nproc_per_node 0"),
        (["--nnodes", "a:b", "x.py"], "a"),
        (["--standalone"], "training_script"),
        (["--nnodes", "2", "--rdzv_conf", "join_timeout=soon", "x.py"], "join_timeout=soon"),
        (["--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "host:port", "x.py"], "host:port"),
        (["--standalone", "--max_restarts", "-1", "x.py"], "max_restarts"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_started(
    arguments: list[str], says: str, another_child: subprocess.Popen[bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    environment = dict(os.environ)
    with pytest.raises(UserError, match="wrong arguments of torchrun") as error:
        launch(arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment
    assert another_child.poll() is None


@pytest.fixture
def another_child() -> Iterator[subprocess.Popen[bytes]]:
    """Of the process that launches, and no worker."""
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child
        child.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def is_open(endpoint: str) -> bool:
    """Whether a process of this machine listens there."""
    port = f"{int(endpoint.rpartition(':')[2]):04X}"
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return any(line[1].endswith(f":{port}") and line[3] == "0A" for line in lines)
