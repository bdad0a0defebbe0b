"""Cases on a real Dask cluster: a scheduler and two workers on this machine, of which one is killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nnunetv2_ext.cli import preprocess_like_nnssl
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing import dask_cluster
from nnunetv2_ext.preprocessing.dask_cluster import check_scheduler
from tests.conftest import TINY_RESENC
from tests.preprocessed_folders import assert_same_folder, in_the_making
from tests.preprocessing.conftest import CASES, ENDINGS, Dataset
from tests.processes import end_all, start, wait_for

COPIES = 5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dask")


@pytest.fixture(scope="module")
def scheduler(logs: Path) -> Iterator[str]:
    """Address of a Dask scheduler."""
    address = f"127.0.0.1:{free_port()}"
    options = ("--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard", "--no-show")
    process = start("dask", "scheduler", *options, env=os.environ, log=logs / "scheduler")
    try:
        wait_for(lambda: "Scheduler at" in (logs / "scheduler").read_text(), process)
        yield address
    finally:
        end_all(process)


@pytest.fixture
def add_worker(scheduler: str, logs: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Adds a worker to the cluster, one process without a nanny; nnU-Net's folders are not set for it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}

    def add(name: str) -> subprocess.Popen[str]:
        options = ("--nworkers", 1, "--nthreads", 1, "--host", "127.0.0.1", "--no-nanny", "--no-dashboard")
        place = ("--local-directory", logs / "scratch", "--name", name)
        process = start("dask", "worker", scheduler, *options, *place, env=env, log=logs / name)
        stack.callback(end_all, process)
        wait_for(lambda: "Registered to" in (logs / name).read_text(), process)
        return process

    with ExitStack() as stack:
        yield add


@pytest.fixture
def many(dataset: Dataset) -> Dataset:
    """Each of the three cases six times."""
    for case in CASES:
        for copy in range(COPIES):
            shutil.copy(dataset.image(case), dataset.image(f"{case}_{copy}"))
            shutil.copy(dataset.label(case), dataset.label(f"{case}_{copy}"))
    return dataset


def test_a_worker_that_is_killed_in_the_middle_costs_no_case_and_changes_none(
    many: Dataset,
    scheduler: str,
    add_worker: Callable[[str], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = len(CASES) * (COPIES + 1)
    victim = add_worker("victim")
    other = many.root / "local"
    killer = subprocess.Popen([sys.executable, "-c", KILL, str(many.folder), str(victim.pid)])
    survivor = add_worker("survivor")
    summary = many.run(executor="dask", scheduler=scheduler)
    assert killer.wait(timeout=60) == 0, "the victim was met with cases done and others to do"
    assert victim.wait(timeout=10) == -signal.SIGKILL
    assert survivor.poll() is None
    # one that the victim had finished and not yet reported is found done
    assert summary.made + summary.kept == number
    assert summary.kept <= 1
    assert summary.failures == []
    assert not in_the_making(many.folder)
    assert not (many.folder / "unfinished").exists()

    monkeypatch.setenv("nnUNet_preprocessed", str(other))
    assert many.run().made == number
    for folder in (many.folder, many.records):
        assert_same_folder(folder, other / folder.parent.name / folder.name)


KILL = f"""
import os, pathlib, signal, sys, time
folder, deadline = pathlib.Path(sys.argv[1]), time.monotonic() + 120
while (done := len(list(folder.glob("*.pkl")))) < 3:
    assert time.monotonic() < deadline
    time.sleep(0.002)
os.kill(int(sys.argv[2]), signal.SIGKILL)
assert done < {len(CASES) * (COPIES + 1)}
"""


def test_a_bad_case_is_named_and_the_others_are_made(
    dataset: Dataset, scheduler: str, add_worker: Callable[[str], subprocess.Popen[str]]
) -> None:
    add_worker("single")
    dataset.image(CASES[1]).write_bytes(b"<html>log in</html>")
    summary = dataset.run(executor="dask", scheduler=scheduler)
    assert (summary.made, [o.case for o in summary.failures]) == (2, [CASES[1]])
    assert f"{CASES[1]}_0000.nii.gz is damaged" in summary.failures[0].message
    assert set(dataset.files()) == {f"{case}{e}" for case in (CASES[0], CASES[2]) for e in ENDINGS}
    again = dataset.run(executor="dask", scheduler=scheduler)
    assert (again.made, again.kept, len(again.failures)) == (0, 2, 1)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "tcp://127.0.0.1:{port}", "nowhere"])
def test_where_no_scheduler_answers_a_line_says_so(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "_SECONDS_TO_CONNECT", 2)
    address = address.format(port=free_port())
    with pytest.raises(UserError, match=r"^no Dask scheduler answers at .* \(-scheduler\)") as caught:
        check_scheduler(address)
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)


WITHOUT_DASK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("distributed", "dask"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from nnunetv2_ext.cli.preprocess_like_nnssl import main
main(sys.argv[1:])
"""


def without_dask(*options: object) -> subprocess.CompletedProcess[str]:
    arguments = ["-d", 999, "-n", "MAE", "-pc", TINY_RESENC, "--no_pbar", "-np", 1, *options]
    command = [sys.executable, "-c", WITHOUT_DASK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_without_dask_a_line_says_what_to_install_and_nothing_is_written(planned: Dataset) -> None:
    before = sorted(planned.root.rglob("*"))
    result = without_dask("-executor", "dask", "-scheduler", "127.0.0.1:8786")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert 'pip install "nnunetv2-ext[distributed]"' in result.stderr
    assert sorted(planned.root.rglob("*")) == before


def test_without_dask_cases_are_made_by_processes_of_this_machine(planned: Dataset) -> None:
    result = without_dask("-am", "like_pretrained")
    assert result.returncode == 0, result.stderr
    assert "3 cases preprocessed" in result.stdout


def test_dask_without_a_scheduler_is_refused(planned: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        preprocess_like_nnssl.main(["-d", "999", "-n", "MAE", "-pc", str(TINY_RESENC), "-executor", "dask"])
    assert left.value.code == 1
    message = capsys.readouterr().err
    assert "-executor dask and -scheduler ADDRESS go together: give both or neither" in message
    assert message.count("\n") == 1
