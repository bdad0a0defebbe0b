"""The learning-rate schedule: the only state is the epoch."""

from __future__ import annotations

from torch.optim import Optimizer

from nnunetv2_ext.recipes.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The rate in an epoch (counted from 0): linear warm-up to the peak, then polynomial decay.

    `peak * (e + 1) / W` for e < W, then `peak * (1 - (e - W) / (E - W))^0.9`, with peak = `initial_lr`,
    W = `warmup_epochs`, E = `num_epochs` (nnssl fork's PretrainedTrainer; the decay is nnU-Net's PolyLRScheduler).
    """
    warmup = recipe.warmup_epochs
    if epoch < warmup:
        return recipe.initial_lr * (epoch + 1) / warmup
    remaining = 1 - (epoch - warmup) / max(1, recipe.num_epochs - warmup)
    return float(recipe.initial_lr * max(0.0, remaining) ** recipe.poly_exponent)


class EpochSchedule:
    """A scheduler as nnU-Net's trainer uses it: `step(epoch)` at the start of every epoch, and no state to save.

    A parameter group's own `lr_scale` (1 where it has none) multiplies the rate.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe) -> None:
        self.optimizer = optimizer
        self.recipe = recipe
        self.step(0)

    def step(self, epoch: int) -> None:
        """Set every group's rate for an epoch."""
        rate = learning_rate(self.recipe, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def get_last_lr(self) -> list[float]:
        """The rates that are set, one for each group."""
        return [group["lr"] for group in self.optimizer.param_groups]
