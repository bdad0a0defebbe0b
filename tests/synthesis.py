"""Write checkpoints of full size, with random weights, from the manifests in `tests/data`.

A manifest holds what a real file of several hundred megabytes is made of, apart from its numbers: names, types, shapes,
which names share storage, the adaptation plan.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).parent / "data"
RESENC_L = DATA / "ResEncL_MAE.manifest.json.gz"
PRIMUS_M = DATA / "PrimusM_MAE.manifest.json.gz"
RESENC_L_SPARK = DATA / "ResEncL_SparkMAE_no_plan.manifest.json.gz"

_REST_OF_A_TRAINING: dict[str, Any] = {
    "optimizer_state": {"state": {}, "param_groups": []},
    "grad_scaler_state": None,
    "logging": {"ema_loss": [1.0, 0.5], "train_losses": [1.0, 0.5], "epoch_start_timestamps": [0.0, 1.0]},
    "_best_ema": 0.5,
    "current_epoch": 1000,
    "init_args": {"fold": "all", "configuration_name": "onemmiso"},
}


def read_manifest(manifest_path: Path) -> dict[str, Any]:
    """The manifest as a dict: `network_weights` (name to dtype and shape), `shared_storage` (alias to name), ..."""
    with gzip.open(manifest_path, "rt", encoding="utf-8") as file:
        return json.load(file)


def synthesise(manifest_path: Path, out_path: Path, seed: int = 0) -> Path:
    """Write the checkpoint that a manifest describes, every tensor drawn from a normal distribution (std 0.02).

    Args:
        manifest_path: One of `RESENC_L`, `PRIMUS_M`, `RESENC_L_SPARK`.
        out_path: File to write; its folder must exist.
        seed: The same seed gives the same weights.

    Returns:
        `out_path`.
    """
    manifest = read_manifest(manifest_path)
    weights = random_weights(manifest, seed)
    content = {key: _REST_OF_A_TRAINING[key] for key in manifest["top_level_keys"] if key in _REST_OF_A_TRAINING}
    content["network_weights"] = weights
    content["trainer_name"] = manifest["trainer_name"]
    if "spark_weights" in manifest["top_level_keys"]:
        content["spark_weights"] = {key: weights[key] for key in weights if key.startswith("encoder.")}
    if manifest["nnssl_adaptation_plan"] is not None:
        content["nnssl_adaptation_plan"] = manifest["nnssl_adaptation_plan"]
    missing = set(manifest["top_level_keys"]) ^ set(content)
    if missing:
        raise ValueError(f"The manifest names parts that this module does not know: {sorted(missing)}")
    torch.save({key: content[key] for key in manifest["top_level_keys"]}, out_path)
    return out_path


def random_weights(manifest: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """`network_weights` in the manifest's order; aliases are views of one storage, as in the original."""
    generator = torch.Generator().manual_seed(seed)
    aliases = manifest["shared_storage"]
    drawn: dict[str, torch.Tensor] = {}
    for name, (dtype, shape) in manifest["network_weights"].items():
        if name not in aliases:
            values = torch.empty(math.prod(shape)).normal_(0, 0.02, generator=generator)
            drawn[name] = values.reshape(shape).to(getattr(torch, dtype))
    return {
        name: drawn[aliases.get(name, name)].view(shape) for name, (_, shape) in manifest["network_weights"].items()
    }
