"""Unfinished cases lie in a sub-folder; those of dead runs go, those of others stay."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_ext.preprocessing.workspace import UNFINISHED, clear_abandoned, others_at_work, workspace_in

HOST = socket.gethostname()
LONG_AGO = 25 * 3600
RUN = """
import sys, time
from pathlib import Path
from nnunetv2_ext.preprocessing.workspace import workspace_in
with workspace_in(Path(sys.argv[1])) as workspace:
    (workspace / "case.b2nd").write_bytes(b"half")
    print(workspace, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with a workspace in the same folder."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def left_over(folder: Path, name: str, *, silent_for: float = 0, with_lock: bool = True) -> Path:
    """What a run that is no more would have left, as its machine shows it to this one."""
    workspace = folder / UNFINISHED / name
    workspace.mkdir(parents=True)
    (workspace / "case.b2nd").write_bytes(b"half")
    if with_lock:
        (workspace / "lock").touch()
    os.utime(workspace, (time.time() - silent_for,) * 2)
    return workspace


def test_the_workspace_is_below_the_folder_and_gone_afterwards(tmp_path: Path) -> None:
    with workspace_in(tmp_path) as workspace:
        assert workspace.parent.parent == tmp_path
        (workspace / "case.b2nd").write_bytes(b"half")
        assert [p for p in tmp_path.iterdir() if p.is_file()] == []
    assert list(tmp_path.iterdir()) == []


def test_the_workspace_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), workspace_in(tmp_path) as workspace:  # noqa: PT012
        (workspace / "case.b2nd").write_bytes(b"half")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_what_a_running_one_is_making_stays(tmp_path: Path, running: tuple[subprocess.Popen[str], Path]) -> None:
    clear_abandoned(tmp_path)
    assert (running[1] / "case.b2nd").read_bytes() == b"half"


def test_what_a_running_one_is_making_stays_however_long_it_takes(
    tmp_path: Path, running: tuple[subprocess.Popen[str], Path]
) -> None:
    os.utime(running[1], (time.time() - LONG_AGO,) * 2)
    clear_abandoned(tmp_path)
    assert running[1].exists()


def test_what_a_killed_one_left_is_cleared(tmp_path: Path, running: tuple[subprocess.Popen[str], Path]) -> None:
    running[0].kill()
    running[0].wait()
    assert running[1].exists()
    clear_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["another", f"{HOST}-2", f"x{HOST}"])
def test_what_another_machine_is_making_stays(host: str, tmp_path: Path) -> None:
    workspace = left_over(tmp_path, f"{host}-x1_y2")
    clear_abandoned(tmp_path)
    assert (workspace / "case.b2nd").read_bytes() == b"half"


def test_what_another_machine_left_a_day_ago_is_cleared(tmp_path: Path) -> None:
    left_over(tmp_path, "another-x1_y2", silent_for=LONG_AGO)
    clear_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_only_just_begun_stays(tmp_path: Path) -> None:
    workspace = left_over(tmp_path, f"{HOST}-x1_y2", with_lock=False)
    clear_abandoned(tmp_path)
    assert workspace.exists()


def test_runs_see_each_other_and_the_first_to_end_leaves_the_other_alone(tmp_path: Path) -> None:
    with workspace_in(tmp_path) as one:
        assert not others_at_work(one)
        with workspace_in(tmp_path) as other:
            assert one != other
            assert others_at_work(one)
            assert others_at_work(other)
        assert not others_at_work(one)
        assert one.exists()
    assert list(tmp_path.iterdir()) == []


def test_clearing_a_folder_that_is_not_there_or_has_nothing_unfinished_does_nothing(tmp_path: Path) -> None:
    clear_abandoned(tmp_path / "nowhere")
    (tmp_path / "case.b2nd").touch()
    clear_abandoned(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["case.b2nd"]
