"""Files of weights that carry no plan, made from the tiny checkpoints' own tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.conftest import TINY_PRIMUS, TINY_RESENC


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's own tensors, read by torch alone; aliases share storage."""
    return dict(torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"])


def raw_plan(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adaptation_plan.json").read_text())


def plain_file(path: Path, folder: Path = TINY_RESENC, root: str = "") -> Path:
    """`state_dict` with nothing else, every name below wrappers' prefixes."""
    torch.save({"state_dict": {f"{root}{n}": t for n, t in tensors_of(folder).items()}}, path)
    return path


def spark_file(path: Path) -> Path:
    """As SparkMAE leaves it: no plan, and aliases that disagree, of which the forward pass used `all_modules`."""
    weights = tensors_of(TINY_RESENC)
    stale = {n: t.clone() if "all_modules" in n else torch.full_like(t, 7.0) for n, t in weights.items()}
    kept = {n: weights[n].clone() if has_no_alias(n, weights) else t for n, t in stale.items()}
    spark = {n: t for n, t in kept.items() if n.startswith("encoder.")}
    torch.save({"network_weights": kept, "spark_weights": spark, "trainer_name": "SparkMAETrainer"}, path)
    return path


def has_no_alias(name: str, weights: dict[str, torch.Tensor]) -> bool:
    """Whether no `all_modules` name holds the same tensor."""
    address = weights[name].data_ptr()
    return not any("all_modules" in other for other, tensor in weights.items() if tensor.data_ptr() == address)


def adaptation_plan_file(path: Path, folder: Path = TINY_RESENC, **changes: Any) -> Path:
    path.write_text(json.dumps({**raw_plan(folder), **changes}))
    return path


__all__ = ["TINY_PRIMUS", "TINY_RESENC", "adaptation_plan_file", "plain_file", "raw_plan", "spark_file", "tensors_of"]
