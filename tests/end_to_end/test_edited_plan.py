"""A plan that somebody edited so that too little of the checkpoint fits: the training ends before its first epoch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import TINY_TRAINING, run_command
from tests.conftest import Model, Workplace, copy_of


@pytest.fixture
def place(planned_resenc: Model, tmp_path: Path) -> Workplace:
    return copy_of(planned_resenc.workplace, tmp_path)


def edit(place: Workplace, model: Model, change: Callable[[dict], object]) -> None:
    for name in (model.long_name, model.inner_name):
        plan = place.plan(name)
        change(plan)
        (place.preprocessed / f"{name}.json").write_text(json.dumps(plan))


def refused_training(place: Workplace, model: Model) -> subprocess.CompletedProcess[str]:
    result = run_command(
        "nnUNetv2_train_pretrained", 999, "3d_fullres", 3, "-p", model.inner_name, "-device", "cpu",
        "--set", *TINY_TRAINING, env={**place.env, "nnUNet_n_proc_DA": "0"}, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Epoch 0" not in result.stdout
    assert not (place.results / model.folder.name).exists()
    return result


def test_a_network_made_wider_takes_less_than_must_arrive(place: Workplace, planned_resenc: Model) -> None:
    def widen(plan: dict) -> None:
        plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"][1] = 24

    edit(place, planned_resenc, widen)
    result = refused_training(place, planned_resenc)
    assert "must (-min_coverage)" in result.stderr
    assert "of another width (encoder.stages.1" in result.stderr


@pytest.mark.slow
def test_a_request_that_makes_no_sense(place: Workplace, planned_resenc: Model) -> None:
    edit(place, planned_resenc, lambda plan: plan["pretrain_info"]["transfer"].update(load="all"))
    assert "-load takes encoder or encoder+decoder, not 'all'" in refused_training(place, planned_resenc).stderr
