"""Checkpoints of full size cost planning neither time nor memory (reading them whole costs seconds and all of it)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.read_checkpoint import measure
from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.checkpoints.reading import WEIGHTS, read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.planning.given_architecture import GivenArchitecture, described
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
    assert found.plan.raw == described["nnssl_adaptation_plan"]
    expected = random_weights(described, seed=3)
    for name, tensor in found.network_weights.items():
        assert tensor.shape == expected[name].shape
    for name in list(expected)[:20]:
        assert found.network_weights[name].equal(expected[name])
    for alias, name in list(described["shared_storage"].items())[:50]:
        assert found.network_weights[alias].data_ptr() == found.network_weights[name].data_ptr()


def test_a_sparkmae_checkpoint_is_described_by_its_architecture_s_name(tmp_path: Path) -> None:
    path = synthesise(RESENC_L_SPARK, tmp_path / "checkpoint_final.pth")
    found = read_checkpoint(resolve_checkpoint_source(str(path)))
    assert (found.kind, found.adaptation_plan) == (WEIGHTS, None)
    assert list(found.network_weights) == list(read_manifest(RESENC_L_SPARK)["network_weights"])

    plan = described(found, GivenArchitecture("ResEncL", patch_size=(160, 160, 160))).plan
    theirs = AdaptationPlan.from_dict(read_manifest(RESENC_L)["nnssl_adaptation_plan"])
    assert (plan.key_to_encoder, plan.key_to_stem) == (theirs.key_to_encoder, theirs.key_to_stem)
    assert plan.pretrain_num_input_channels == 1


def test_the_benchmark_says_how_to_run_it() -> None:
    run = subprocess.run(
        [sys.executable, "benchmarks/read_checkpoint.py", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0
    assert "--repeats" in run.stdout
