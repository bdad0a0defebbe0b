"""A plan of stock nnU-Net's own planner and the two tiny checkpoints, to plan with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint, read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.planning.modes import TargetSpacing
from nnunetv2_ext.planning.pretrain_info import TransferOptions
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from tests.conftest import TINY_PRIMUS, TINY_RESENC, StockModel, Workplace


@pytest.fixture(scope="session")
def stock_plan(workplace: Workplace) -> dict[str, Any]:
    """As stock nnU-Net wrote it; not to be changed."""
    return workplace.plan("nnUNetPlans")


@pytest.fixture
def base_plan(stock_plan: dict[str, Any]) -> dict[str, Any]:
    """A copy of the stock plan for one test."""
    return copy.deepcopy(stock_plan)


@pytest.fixture
def dataset_json(workplace: Workplace) -> dict[str, Any]:
    return json.loads((workplace.raw / "dataset.json").read_text())


@pytest.fixture(scope="session")
def tiny_resenc() -> PretrainedCheckpoint:
    return read_checkpoint(resolve_checkpoint_source(str(TINY_RESENC)))


@pytest.fixture(scope="session")
def tiny_primus() -> PretrainedCheckpoint:
    return read_checkpoint(resolve_checkpoint_source(str(TINY_PRIMUS)))


@pytest.fixture(scope="session")
def plain_checkpoint(plain_model: StockModel) -> PretrainedCheckpoint:
    """A PlainConvUNet that stock nnU-Net trained."""
    return read_checkpoint(resolve_checkpoint_source(str(plain_model.folder)))


@pytest.fixture(scope="session")
def residual_checkpoint(residual_model: StockModel) -> PretrainedCheckpoint:
    """A ResidualEncoderUNet that stock nnU-Net trained."""
    return read_checkpoint(resolve_checkpoint_source(str(residual_model.folder)))


@pytest.fixture
def plan_of(base_plan: dict[str, Any], dataset_json: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Makes the ptPlan of a source with its own network: `plan_of(source, labels=..., load=...)`."""

    def make(source: Path, *, labels: dict[str, Any] | None = None, **transfer: Any) -> dict[str, Any]:
        checkpoint = read_checkpoint(resolve_checkpoint_source(str(source)))
        description = dataset_json if labels is None else {**dataset_json, "labels": labels}
        options = PlanOptions("MAE", transfer=TransferOptions(**transfer))
        plan, _ = make_plan(base_plan, description, checkpoint, TargetSpacing((1, 1, 1)), options, "0" * 64)
        return json.loads(json.dumps(plan))

    return make
