"""Run commands as a user does: by their names, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
TINY_TRAINING = ("num_epochs=2", "num_iterations_per_epoch=3", "num_val_iterations_per_epoch=2", "mirroring=false")
"""Without mirroring every prediction, the validation's too, takes an eighth of the time."""


def run_command(
    name: str, *arguments: object, env: Mapping[str, str], check: bool = True, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a console script of this environment; with `check` a non-zero exit code fails the test with its output."""
    command = [str(SCRIPTS / name), *map(str, arguments)]
    result = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=timeout)
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\nexit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


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
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",  # spinning threads starve each other where commands share two cores
    }
