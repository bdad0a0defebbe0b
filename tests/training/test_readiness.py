"""A plan that was edited to what cannot be trained is refused before anything is written."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.training.readiness import check_plan
from tests.conftest import Model


@pytest.fixture
def plan(planned_resenc: Model) -> dict[str, Any]:
    return copy.deepcopy(planned_resenc.workplace.plan(planned_resenc.inner_name))


def test_a_plan_as_it_was_written_is_accepted(plan: dict[str, Any], planned_primus: Model) -> None:
    check_plan(plan)
    check_plan(planned_primus.workplace.plan(planned_primus.inner_name))


@pytest.mark.parametrize("batch_size", [None, 0, -1, 1.5, "2"])
def test_a_batch_size_that_is_none_is_named(plan: dict[str, Any], batch_size: object) -> None:
    plan["configurations"]["3d_fullres"]["batch_size"] = batch_size
    with pytest.raises(UserError, match="batch_size of the plan is"):
        check_plan(plan)


def test_a_missing_batch_size_is_named(plan: dict[str, Any]) -> None:
    del plan["configurations"]["3d_fullres"]["batch_size"]
    with pytest.raises(UserError, match="batch_size of the plan is None"):
        check_plan(plan)


def test_a_patch_that_the_network_cannot_take_comes_with_the_nearest(plan: dict[str, Any]) -> None:
    plan["configurations"]["3d_fullres"]["patch_size"] = [31, 32, 32]
    with pytest.raises(UserError, match="the nearest valid sizes are 24 x 32 x 32 or 32 x 32 x 32"):
        check_plan(plan)


def test_an_even_kernel_is_named(plan: dict[str, Any]) -> None:
    plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["kernel_sizes"][1] = [2, 3, 3]
    with pytest.raises(UserError, match=r"kernel_sizes of the plan have \[2, 3, 3\]"):
        check_plan(plan)
