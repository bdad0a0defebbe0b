"""When a training has stopped improving: cases counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_ext.training.plateau import Plateau, has_plateaued


@pytest.mark.parametrize(
    ("scores", "patience", "start", "expected"),
    [
        ([], 1, 0, False),
        ([0.5], 1, 0, False),  # the first score is a new best one
        ([0.5, 0.4], 1, 0, True),
        ([0.5, 0.4], 2, 0, False),
        ([0.5, 0.4, 0.4], 2, 0, True),
        ([0.5, 0.4, 0.6], 1, 0, False),
        ([0.5, 0.4, 0.6, 0.6], 1, 0, True),  # as good is not better
        ([0.5, 0.5, 0.5], 2, 0, True),
        ([0.1, 0.2, 0.3, 0.4], 1, 0, False),
        ([0.9, 0.1, 0.2, 0.3], 3, 0, True),  # rising again, but not above the best
        ([0.9, 0.1, 0.2, 0.3], 4, 0, False),
        ([-2.0, -1.0, -1.5], 1, 0, True),
        # the last phase begins at epoch 2: its epochs alone count
        ([0.9, 0.1], 1, 2, False),
        ([0.9, 0.1, 0.2], 1, 2, True),
        ([0.9, 0.1, 0.2], 2, 2, False),
        ([0.9, 0.1, 0.2, 0.3], 2, 2, True),
        ([0.9, 0.1, 1.0, 0.3], 2, 2, False),
        ([0.9, 0.1, 1.0, 0.3, 0.3], 2, 2, True),
        ([0.9] * 10, 3, 20, False),  # long before the last phase
    ],
)
def test_the_best_score_is_so_many_epochs_old(
    scores: Sequence[float], patience: int, start: int, expected: bool
) -> None:
    assert has_plateaued(scores, patience, last_phase_start=start) is expected


@given(scores=st.lists(st.floats(0, 1)), start=st.integers(0, 10))
def test_without_a_patience_there_is_no_end(scores: list[float], start: int) -> None:
    assert not has_plateaued(scores, None, last_phase_start=start)


@given(scores=st.lists(st.integers(0, 5), max_size=40), patience=st.integers(1, 8), start=st.integers(0, 12))
def test_the_end_is_the_first_epoch_after_as_many_without_a_new_best(
    scores: list[int], patience: int, start: int
) -> None:
    """Counted as one does by hand, epoch for epoch."""
    best, waited, expected = -1, 0, False
    for epoch, score in enumerate(scores):
        if score > best:
            best, waited = score, 0
        elif epoch >= start:
            waited += 1
        if epoch < start:
            waited = 0
        expected = waited >= patience
    assert has_plateaued(scores, patience, last_phase_start=start) is expected


def test_the_end_is_said_in_a_line_with_its_cause() -> None:
    message = str(Plateau(7))
    assert "7 epochs (early_stop)" in message
    assert "\n" not in message
