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


def scaled_to(recipe: Recipe, num_epochs: int, *, warmup_is_given: bool = False) -> Recipe:
    """The recipe with its phases stretched or shrunk in proportion.

    Every phase that had epochs keeps one at least while there are enough; else the last phases are dropped.

    Args:
        recipe: with phases that fit its own `num_epochs`.
        num_epochs: epochs in all, at least 1.
        warmup_is_given: `warmup_epochs` is what the user wants: phases of that length stay, the others are scaled.
    """
    lengths = phase_lengths(recipe.phases, recipe.num_epochs, recipe.warmup_epochs)
    fixed = [warmup_is_given and phase.epochs == WARMUP for phase in recipe.phases]
    left = num_epochs - sum(n for n, is_fixed in zip(lengths, fixed, strict=True) if is_fixed)
    if left < 0:
        return dataclasses.replace(recipe, num_epochs=num_epochs)  # its check says what does not fit
    shares = iter(_in_proportion([n for n, is_fixed in zip(lengths, fixed, strict=True) if not is_fixed], left))
    lengths = [n if is_fixed else next(shares) for n, is_fixed in zip(lengths, fixed, strict=True)]
    phases: list[Phase] = []
    warmup_epochs = recipe.warmup_epochs
    for phase, length in zip(recipe.phases, lengths, strict=True):
        if phase.epochs == WARMUP and not warmup_is_given:
            warmup_epochs = length
        if length or phase.epochs in (REST, WARMUP):
            phases.append(phase if phase.epochs in (REST, WARMUP) else dataclasses.replace(phase, epochs=length))
    return dataclasses.replace(
        recipe, num_epochs=num_epochs, warmup_epochs=min(warmup_epochs, num_epochs), phases=phases
    )


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
        num_epochs: another number of epochs than the usual one; the frequency is scaled in proportion,
        frequency_is_given: but not if the user has named it.

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
    epochs, frequency = usual, how.unfreeze_frequency
    if num_epochs is not None:
        epochs = num_epochs
        frequency = frequency if frequency_is_given else max(1, round(frequency * num_epochs / usual))
    depth = available if how.depth < 0 else how.depth
    starts = [start for start in range(0, (depth + 1) * frequency, frequency) if start < epochs]
    phases = [
        Phase(
            parts=_parts(how.mode, depth),
            epochs=REST if depth == len(starts) - 1 else frequency,
            curve=Curve.constant,
        )
        for depth in range(len(starts))
    ]
    return dataclasses.replace(
        recipe,
        num_epochs=epochs,
        warmup_epochs=0,
        phases=phases,
        gradual_unfreezing=dataclasses.replace(how, unfreeze_frequency=frequency),
    )


def _parts(mode: Side, depth: int) -> list[str]:
    if depth == 0:
        return ["head"]
    last = depth - 1
    if mode is Side.encoder:
        return ["head", "stem", f"stage:0..{last}"]
    return ["head", f"decoder_stage:0..{last}"]
