"""Run commands as a user does: by their names, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.command_server import CommandServer

SCRIPTS = Path(sys.executable).parent
TINY_TRAINING = ("num_epochs=2", "num_iterations_per_epoch=3", "num_val_iterations_per_epoch=2", "mirroring=false")
"""Without mirroring every prediction, the validation's too, takes an eighth of the time."""
_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
"""Spinning threads starve each other where commands share two cores."""


def run_command(
    name: str, *arguments: object, env: Mapping[str, str], check: bool = True, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a console script of this environment; with `check` a non-zero exit code fails the test with its output.

    The first time it is started as a user starts it, later as a copy of a process that has libraries imported already.
    """
    command = [str(SCRIPTS / name), *map(str, arguments)]
    if name.startswith("nnUNetv2_") and name in _STARTED and _server().can_run(env):
        result = _run_copy(command, env, timeout)
    else:
        result = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=timeout)
        _STARTED.add(name)
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\nexit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


_STARTED: set[str] = set()


@cache
def _server() -> CommandServer:
    return CommandServer({**os.environ, **_THREADS})


def _run_copy(command: Sequence[str], env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        code = _server().run(command, env, stdout.fileno(), stderr.fileno(), timeout)
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, code, stdout.read(), stderr.read())


def nnunet_environment(root: Path) -> dict[str, str]:
    """The environment of a user with three nnU-Net folders below `root` and this environment's scripts on the path."""
    folders = {v: str(root / v) for v in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "nnssl_", "HF_"))}
    return {
        **kept,
        **folders,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "XDG_CACHE_HOME": str(root / "cache"),
        **_THREADS,
    }
