"""Unfinished cases lie in a sub-folder; those of dead runs go, those of others stay."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_ext.preprocessing.cases import UNFINISHED, is_complete, workspace_in
from tests.preprocessing.conftest import ENDINGS

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_over(folder: Path, name: str) -> Path:
    workspace = folder / UNFINISHED / name
    workspace.mkdir(parents=True)
    (workspace / "case.b2nd").write_bytes(b"half")
    return workspace


def test_a_case_is_complete_with_image_labels_and_properties(tmp_path: Path) -> None:
    for ending in ENDINGS:
        assert not is_complete(tmp_path, "case")
        (tmp_path / f"case{ending}").touch()
    assert is_complete(tmp_path, "case")
    assert not is_complete(tmp_path, "cas")


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


def test_what_a_dead_run_left_is_cleared(tmp_path: Path, dead_process: int) -> None:
    workspace = left_over(tmp_path, f"{HOST}-{dead_process}-x1_y2")
    with workspace_in(tmp_path):
        assert not workspace.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_running_one_is_making_stays(tmp_path: Path) -> None:
    workspace = left_over(tmp_path, f"{HOST}-{os.getpid()}-x1_y2")
    with workspace_in(tmp_path) as own:
        assert own != workspace
    assert (workspace / "case.b2nd").read_bytes() == b"half"


@pytest.mark.parametrize("host", ["another", f"{HOST}-2", f"x{HOST}"])
def test_what_another_machine_is_making_stays(host: str, tmp_path: Path, dead_process: int) -> None:
    workspace = left_over(tmp_path, f"{host}-{dead_process}-x1_y2")
    with workspace_in(tmp_path):
        pass
    assert (workspace / "case.b2nd").read_bytes() == b"half"
