"""Stopping a training that no longer improves."""

from __future__ import annotations

from collections.abc import Sequence


class Plateau(Exception):  # noqa: N818  no error: the training is done
    """The score has not risen for so many epochs."""

    def __init__(self, patience: int | None) -> None:
        super().__init__(f"No new best EMA pseudo Dice for {patience} epochs (early_stop): the training ends here")


def has_plateaued(scores: Sequence[float], patience: int | None, *, last_phase_start: int) -> bool:
    """Whether the best score is so many epochs old.

    Only epochs of the last phase count: what was fixed before it has not had its turn yet.

    Args:
        scores: of every epoch so far, larger is better.
        patience: epochs, at least 1; None for never.
        last_phase_start: an epoch, from 0.
    """
    if patience is None or not scores:
        return False
    best = max(range(len(scores)), key=lambda epoch: (scores[epoch], -epoch))
    return len(scores) - max(best + 1, last_phase_start) >= patience
