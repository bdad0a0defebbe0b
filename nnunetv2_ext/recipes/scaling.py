"""Phases that are made: scaled to another number of epochs, or from a network's depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.phases import REST, WARMUP, Curve, Phase, phase_lengths
from nnunetv2_ext.recipes.recipe import GradualUnfreezing, Recipe, Side

EPOCHS_OF_ALL_BLOCKS = 16
"""HSF's fine-tuning guide: "16 epochs if the depth is -1, otherwise epochs = (depth + 1) * unfreeze_frequency"."""


@dataclass(frozen=True)
class Blocks:
    """How many blocks a network has that can be unfrozen one by one: stages of a U-Net, blocks of a Primus."""

    encoder: int
    decoder: int


def scaled_to(recipe: Recipe, num_epochs: int, *, warmup_epochs: int | None = None) -> Recipe:
    """The recipe with its phases stretched or shrunk in proportion.

    Every phase that had epochs keeps one at least while there are enough; else the last phases are dropped.

    Args:
        recipe: with phases that fit its own `num_epochs`.
        num_epochs: epochs in all, at least 1.
        warmup_epochs: where the user has named them: phases of that length get it, the others share what is left.
    """
    lengths = phase_lengths(recipe.phases, recipe.num_epochs, recipe.warmup_epochs)
    fixed = [warmup_epochs is not None and phase.epochs == WARMUP for phase in recipe.phases]
    given = warmup_epochs or 0
    left = num_epochs - given * sum(fixed)
    if min(left, given) < 0:  # its check says what does not fit
        return dataclasses.replace(recipe, num_epochs=num_epochs, warmup_epochs=given)
    shares = iter(_in_proportion([n for n, is_fixed in zip(lengths, fixed, strict=True) if not is_fixed], left))
    lengths = [given if is_fixed else next(shares) for is_fixed in fixed]
    phases: list[Phase] = []
    warmup = recipe.warmup_epochs
    for phase, length in zip(recipe.phases, lengths, strict=True):
        if phase.epochs == WARMUP:
            warmup = length
        if length or phase.epochs in (REST, WARMUP):
            phases.append(phase if phase.epochs in (REST, WARMUP) else dataclasses.replace(phase, epochs=length))
    return dataclasses.replace(recipe, num_epochs=num_epochs, warmup_epochs=min(warmup, num_epochs), phases=phases)


def _in_proportion(lengths: Sequence[int], total: int) -> list[int]:
    """Whole numbers with this sum, in proportion; at least 1 each while there are enough, else 1 for the first ones."""
    wanted = sum(1 for n in lengths if n)
    if total < wanted:
        ones = iter([1] * total + [0] * len(lengths))
        return [next(ones) if n else 0 for n in lengths]
    before, end, used, result = sum(lengths), 0, 0, []
    for length in lengths:
        end += length
        if length:
            wanted -= 1
            here = min(max(round(end * total / before), used + 1), total - wanted) - used
        else:
            here = 0
        used += here
        result.append(here)
    return result


def gradually_unfrozen(
    recipe: Recipe, blocks: Blocks, num_epochs: int | None = None, *, frequency_is_given: bool = False
) -> Recipe:
    """The recipe with the phases that its `gradual_unfreezing` means: the head, then a block more at a time.

    Args:
        recipe: with `gradual_unfreezing`.
        blocks: of the network.
        num_epochs: another number of epochs than the usual one; the phases are scaled in proportion,
        frequency_is_given: but not if the user has named the frequency.

    Raises:
        UserError: deeper than the network.
    """
    how = recipe.gradual_unfreezing or GradualUnfreezing()
    available = blocks.encoder if how.mode is Side.encoder else blocks.decoder
    if how.depth > available:
        raise UserError(
            f"recipe: gradual_unfreezing.depth is {how.depth}, but the {how.mode.value} has {available} blocks"
        )
    usual = EPOCHS_OF_ALL_BLOCKS if how.depth < 0 else (how.depth + 1) * how.unfreeze_frequency
    epochs = num_epochs if num_epochs is not None and frequency_is_given else usual
    deepest = min(available if how.depth < 0 else how.depth, (epochs - 1) // how.unfreeze_frequency)
    phases = [
        Phase(
            parts=_parts(how.mode, depth, available),
            epochs=REST if depth == deepest else how.unfreeze_frequency,
            curve=Curve.constant,
        )
        for depth in range(deepest + 1)
    ]
    made = dataclasses.replace(recipe, num_epochs=epochs, warmup_epochs=0, phases=phases, gradual_unfreezing=how)
    return made if num_epochs in (None, epochs) else scaled_to(made, num_epochs)


def _parts(mode: Side, depth: int, available: int) -> list[str]:
    """With the last block the whole side trains, what lies outside of blocks (a Primus' last norm) too."""
    if depth == 0:
        return ["head"]
    if mode is Side.encoder:
        return ["head", "stem", "encoder" if depth == available else f"stage:0..{depth - 1}"]
    return ["decoder"] if depth == available else ["head", f"decoder_stage:0..{depth - 1}"]
