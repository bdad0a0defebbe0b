"""Weights of full size come from the file into the network without a second copy of them in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.transfer import ALLOWANCE, VERIFIED, largest_tensor, measure
from tests.synthesis import PRIMUS_M, RESENC_L, synthesise


@pytest.mark.parametrize("manifest", [RESENC_L, PRIMUS_M], ids=["ResEncL", "PrimusM"])
def test_a_full_size_transfer_needs_the_network_its_largest_tensor_and_100_megabytes(
    manifest: Path, tmp_path: Path
) -> None:
    path = synthesise(manifest, tmp_path / "checkpoint_final.pth")
    run = measure(VERIFIED, path, manifest)

    assert ALLOWANCE == 100
    assert run["network"] > 400
    assert run["network"] < run["peak"] <= run["network"] + largest_tensor(manifest) + ALLOWANCE
