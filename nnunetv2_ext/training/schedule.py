"""The learning-rate schedule: the recipe's phases, and the epoch as the only state."""

from __future__ import annotations

from torch.optim import Optimizer

from nnunetv2_ext.recipes.phases import Span, curve_value, span_at, spans
from nnunetv2_ext.recipes.recipe import Recipe


def recipe_spans(recipe: Recipe) -> list[Span]:
    """The recipe's phases with their places."""
    return spans(recipe.phases, recipe.num_epochs, recipe.warmup_epochs)


def batch_factor(recipe: Recipe, effective_batch: int) -> float:
    """What rates are multiplied by: `effective_batch / lr_batch` (Goyal et al. 2017, arXiv 1706.02677), or 1.

    Args:
        recipe: any.
        effective_batch: samples for one update, over all processes and accumulated batches.
    """
    return 1.0 if recipe.lr_batch is None else effective_batch / recipe.lr_batch


def learning_rate(recipe: Recipe, epoch: int, effective_batch: int = 1) -> float:
    """The rate in an epoch (counted from 0): the peak of the phase that holds it, times its curve.

    From the end of the last phase on, nothing is left of a curve that decays.
    """
    span = span_at(recipe_spans(recipe), epoch)
    length = span.end - span.start
    share = curve_value(span.phase.curve, min(epoch - span.start, length), length, recipe.poly_exponent)
    peak = span.phase.initial_lr or recipe.initial_lr
    return peak * span.phase.lr_scale * batch_factor(recipe, effective_batch) * share


class EpochSchedule:
    """A scheduler as nnU-Net's trainer uses it: `step(epoch)` at the start of every epoch, and no state to save.

    A parameter group's own `lr_scale` (1 where it has none) multiplies the rate.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe, effective_batch: int = 1) -> None:
        self.optimizer = optimizer
        self.recipe = recipe
        self.effective_batch = effective_batch
        self.step(0)

    def step(self, epoch: int) -> None:
        """Set every group's rate for an epoch."""
        rate = learning_rate(self.recipe, epoch, self.effective_batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def get_last_lr(self) -> list[float]:
        """The rates that are set, one for each group."""
        return [group["lr"] for group in self.optimizer.param_groups]
