"""Phases: a schedule is a list of them, and the only state is the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from nnunetv2_ext.errors import UserError

REST = "rest"
WARMUP = "warmup_epochs"


class Curve(Enum):
    """How the learning rate runs through a phase."""

    linear = "linear"
    poly = "poly"
    cosine = "cosine"
    constant = "constant"


class OptimizerState(Enum):
    """Whether momentum and moments go on at the start of a phase."""

    kept = "kept"
    restarted = "restarted"


@dataclass
class Phase:
    """Some epochs in which the same parts train."""

    parts: list[str] = field(default_factory=lambda: ["all"], metadata={"help": "what trains; all else is fixed"})
    epochs: Any = field(default=REST, metadata={"help": f"a number, {WARMUP} (the recipe's), or {REST}"})
    curve: Curve = field(default=Curve.poly, metadata={"help": "linear (warm-up), poly, cosine or constant"})
    lr_scale: float = field(default=1.0, metadata={"help": "the phase's peak as a multiple of initial_lr"})
    initial_lr: float | None = field(default=None, metadata={"help": "its peak, if not the recipe's"})
    optimizer: OptimizerState = field(
        default=OptimizerState.kept, metadata={"help": "kept, or restarted: momentum and moments begin anew"}
    )


@dataclass(frozen=True)
class Span:
    """A phase with its place in the training: epochs `start` to below `end`, counted from 0."""

    index: int
    phase: Phase
    start: int
    end: int

    @property
    def label(self) -> str:
        """For logs and figures: `decoder + head: poly`."""
        return f"{' + '.join(self.phase.parts)}: {self.phase.curve.value}"


def curve_value(curve: Curve, epoch: int, epochs: int, exponent: float = 0.9) -> float:
    """The share of the peak rate in an epoch (from 0) of a phase of so many epochs.

    `linear`: (e + 1) / n, which reaches the peak in the last epoch (nnssl fork's warm-up).
    `poly`: (1 - e / n)^exponent (nnU-Net's PolyLRScheduler; Chen et al. 2017, arXiv 1606.00915).
    `cosine`: (1 + cos(pi * e / n)) / 2 (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts).
    `constant`: 1.
    """
    if curve is Curve.linear:
        return (epoch + 1) / epochs
    if curve is Curve.poly:
        return float((1 - epoch / epochs) ** exponent)
    if curve is Curve.cosine:
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return 1.0


def phase_lengths(phases: Sequence[Phase], num_epochs: int, warmup_epochs: int) -> list[int]:
    """Epochs of each phase; their sum is `num_epochs`. A phase that gets none has 0.

    Raises:
        UserError: more than one `rest`, an `epochs` that is neither number nor word, or a sum that does not fit.
    """
    given = [_epochs(phase.epochs, warmup_epochs) for phase in phases]
    if sum(n is None for n in given) > 1:
        raise UserError(f"recipe: only one of the phases can have epochs: {REST}")
    fixed = sum(n for n in given if n is not None)
    numbers = [str(n) for n in given if n is not None]
    terms = f"{' + '.join(numbers)} = {fixed}" if len(numbers) > 1 else str(fixed)
    if fixed > num_epochs:
        raise UserError(f"recipe: phases of {terms} epochs are more than num_epochs ({num_epochs})")
    if None not in given and fixed < num_epochs:
        raise UserError(
            f"recipe: phases of {terms} epochs are fewer than num_epochs ({num_epochs}): give one epochs: {REST}"
        )
    return [num_epochs - fixed if n is None else n for n in given]


def spans(phases: Sequence[Phase], num_epochs: int, warmup_epochs: int) -> list[Span]:
    """The phases that have epochs, with their places."""
    found: list[Span] = []
    start = 0
    for index, (phase, length) in enumerate(zip(phases, phase_lengths(phases, num_epochs, warmup_epochs), strict=True)):
        if length:
            found.append(Span(index, phase, start, start + length))
        start += length
    return found


def span_at(all_spans: Sequence[Span], epoch: int) -> Span:
    """The phase that holds an epoch; the last one from its end on."""
    return next((s for s in all_spans if epoch < s.end), all_spans[-1])


def _epochs(value: Any, warmup_epochs: int) -> int | None:
    """None for the rest."""
    if value == REST:
        return None
    if value == WARMUP:
        return warmup_epochs
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"recipe: epochs of a phase is a whole number, {WARMUP} or {REST}, not {value!r}")
    return value
