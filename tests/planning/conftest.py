"""A plan of stock nnU-Net's own planner and the two tiny checkpoints, to plan with."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint, read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from tests.conftest import TINY_PRIMUS, TINY_RESENC, Workplace


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
