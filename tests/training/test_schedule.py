"""The schedule against its closed form, at every epoch."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_ext.recipes.resolving import recipe_for
from nnunetv2_ext.training.schedule import EpochSchedule, learning_rate


def closed_form(epoch: int, peak: float, warmup: int, epochs: int) -> float:
    """As the issue states it: `peak * (e + 1) / W`, then `peak * (1 - (e - W) / (E - W))^0.9`."""
    return peak * (epoch + 1) / warmup if epoch < warmup else peak * (1 - (epoch - warmup) / (epochs - warmup)) ** 0.9


@pytest.mark.parametrize(("family", "peak"), [("cnn", 1e-3), ("primus", 1e-4)])
def test_default_schedule_equals_the_closed_form_at_every_epoch(family: str, peak: float) -> None:
    recipe = recipe_for(family)
    for epoch in range(1000):
        assert learning_rate(recipe, epoch) == pytest.approx(closed_form(epoch, peak, 50, 1000), rel=1e-12)


@pytest.mark.parametrize(("warmup", "epochs"), [(15, 150), (1, 2), (3, 10)])
def test_other_lengths_equal_the_closed_form(warmup: int, epochs: int) -> None:
    recipe = recipe_for("cnn", [f"num_epochs={epochs}", f"warmup_epochs={warmup}", "initial_lr=0.5"])
    for epoch in range(epochs):
        assert learning_rate(recipe, epoch) == pytest.approx(closed_form(epoch, 0.5, warmup, epochs), rel=1e-12)


def test_the_last_epoch_still_trains() -> None:
    assert learning_rate(recipe_for("cnn"), 999) > 0


def test_without_warmup_the_first_epoch_has_the_peak() -> None:
    assert learning_rate(recipe_for("cnn", ["warmup_epochs=0"]), 0) == 1e-3


def test_warmup_of_all_epochs_never_decays() -> None:
    recipe = recipe_for("cnn", ["num_epochs=4", "warmup_epochs=4"])
    assert [learning_rate(recipe, e) for e in range(4)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])


def test_the_scheduler_sets_every_group_by_its_own_scale_and_has_no_memory() -> None:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))]},
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = EpochSchedule(optimizer, recipe_for("cnn"))
    for epoch in (0, 700, 3):
        schedule.step(epoch)
        expected = closed_form(epoch, 1e-3, 50, 1000)
        assert schedule.get_last_lr() == pytest.approx([expected, 0.1 * expected])
