"""Checkpoints of full size cost planning neither time nor memory (reading them whole costs seconds and all of it)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.read_checkpoint import measure
from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from tests.synthesis import PRIMUS_M, RESENC_L, RESENC_L_SPARK, random_weights, read_manifest, synthesise


@pytest.mark.parametrize("manifest", [RESENC_L, PRIMUS_M], ids=["ResEncL", "PrimusM"])
def test_a_full_size_checkpoint_is_opened_lightly_and_holds_what_was_written(manifest: Path, tmp_path: Path) -> None:
    path = synthesise(manifest, tmp_path / "checkpoint_final.pth", seed=3)
    described = read_manifest(manifest)
    assert path.stat().st_size == pytest.approx(described["bytes"], rel=0.001)

    runs = [measure("lazy", path) for _ in range(2)]
    assert min(run["seconds"] for run in runs) < 0.5
    assert min(run["megabytes"] for run in runs) < 50
    assert runs[0]["entries"] == len(described["network_weights"])

    found = read_checkpoint(resolve_checkpoint_source(str(path)))
    assert found.adaptation_plan.raw == described["nnssl_adaptation_plan"]
    expected = random_weights(described, seed=3)
    for name, tensor in found.network_weights.items():
        assert tensor.shape == expected[name].shape
    for name in list(expected)[:20]:
        assert found.network_weights[name].equal(expected[name])
    for alias, name in list(described["shared_storage"].items())[:50]:
        assert found.network_weights[alias].data_ptr() == found.network_weights[name].data_ptr()


def test_a_sparkmae_checkpoint_is_refused_for_want_of_a_plan(tmp_path: Path) -> None:
    path = synthesise(RESENC_L_SPARK, tmp_path / "checkpoint_final.pth")
    with pytest.raises(UserError, match="SparkMAE"):
        read_checkpoint(resolve_checkpoint_source(str(path)))


def test_the_benchmark_says_how_to_run_it() -> None:
    run = subprocess.run(
        [sys.executable, "benchmarks/read_checkpoint.py", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0
    assert "--repeats" in run.stdout
