"""Curves against closed forms in numpy, lengths against sums done by hand, and lists of phases that do not fit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.phases import Curve, Phase, curve_value, phase_lengths, span_at, spans
from tests.recipes.refused import refused


def phases(*epochs: Any) -> list[Phase]:
    return [Phase(epochs=n) for n in epochs]


def shares(curve: Curve, length: int, **exponent: float) -> list[float]:
    return [curve_value(curve, epoch, length, **exponent) for epoch in range(length)]


@pytest.mark.parametrize("length", [1, 2, 7, 950])
def test_curves_equal_their_closed_forms(length: int) -> None:
    done = np.arange(length) / length
    np.testing.assert_allclose(shares(Curve.linear, length), (np.arange(length) + 1) / length, rtol=1e-12)
    np.testing.assert_allclose(shares(Curve.poly, length), (1 - done) ** 0.9, rtol=1e-12)
    np.testing.assert_allclose(shares(Curve.poly, length, exponent=2.0), (1 - done) ** 2, rtol=1e-12)
    np.testing.assert_allclose(shares(Curve.cosine, length), np.cos(np.pi * done / 2) ** 2, rtol=1e-9)
    assert shares(Curve.constant, length) == [1.0] * length


@pytest.mark.parametrize("curve", [Curve.poly, Curve.cosine])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_a_decaying_curve_starts_at_the_peak_falls_in_every_epoch_and_never_stops_the_training(
    curve: Curve, length: int
) -> None:
    values = shares(curve, length)
    assert values[0] == 1
    assert values[-1] > 0
    assert all(after < before for before, after in itertools.pairwise(values))
    assert curve_value(curve, length, length) == pytest.approx(0, abs=1e-12)


def test_poly_is_nnunets_own() -> None:
    import torch
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = PolyLRScheduler(optimizer, 1.0, 20)
    for epoch in range(20):
        schedule.step(epoch)
        assert curve_value(Curve.poly, epoch, 20) == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("epochs", "num_epochs", "warmup", "lengths"),
    [
        (["rest"], 7, 0, [7]),
        (["warmup_epochs", "rest"], 1000, 50, [50, 950]),
        (["rest", 3], 10, 0, [7, 3]),
        ([2, "rest", 3], 10, 0, [2, 5, 3]),
        ([2, 3], 5, 99, [2, 3]),  # a warm-up that no phase refers to
        (["warmup_epochs", 3], 10, 7, [7, 3]),
        (["warmup_epochs", "rest"], 10, 10, [10, 0]),
        (["warmup_epochs", "rest"], 10, 0, [0, 10]),
        ([25, 25, "warmup_epochs", "rest"], 1000, 50, [25, 25, 50, 900]),
    ],
)
def test_lengths_fill_num_epochs(epochs: Sequence[Any], num_epochs: int, warmup: int, lengths: list[int]) -> None:
    assert phase_lengths(phases(*epochs), num_epochs, warmup) == lengths


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        ([6, 5], "phases of 6 + 5 = 11 epochs are more than num_epochs (10)"),
        ([11], "phases of 11 epochs are more than num_epochs (10)"),
        ([9, "rest", 2], "phases of 9 + 2 = 11 epochs are more than num_epochs (10)"),
        (["warmup_epochs", 8], "phases of 3 + 8 = 11 epochs are more than num_epochs (10)"),
        ([4, 5], "phases of 4 + 5 = 9 epochs are fewer than num_epochs (10): give one epochs: rest"),
        (["warmup_epochs"], "phases of 3 epochs are fewer than num_epochs (10)"),
        (["rest", "rest"], "only one of the phases can have epochs: rest"),
        (["half"], "epochs of a phase is a whole number, warmup_epochs or rest, not 'half'"),
        ([2.5], "epochs of a phase is a whole number, warmup_epochs or rest, not 2.5"),
        ([True], "epochs of a phase is a whole number, warmup_epochs or rest, not True"),
        ([None], "epochs of a phase is a whole number, warmup_epochs or rest, not None"),
    ],
)
def test_phases_that_do_not_fit_are_refused_with_the_sum(epochs: Sequence[Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        phase_lengths(phases(*epochs), 10, 3)
    assert words in str(error.value)


@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), rest=st.integers(0, 5))
def test_every_epoch_lies_in_one_span_and_the_spans_follow_each_other(lengths: list[int], rest: int) -> None:
    words: list[Any] = [*lengths]
    words[rest % len(words)] = "rest"
    found = spans(phases(*words), sum(lengths), 0)
    assert [span.index for span in found] == [i for i, n in enumerate(lengths) if n]
    assert [span.end - span.start for span in found] == [n for n in lengths if n]
    expected = np.repeat(np.arange(len(lengths)), lengths)
    assert [span_at(found, epoch).index for epoch in range(sum(lengths))] == expected.tolist()
    assert span_at(found, sum(lengths) + 3) is found[-1]


def test_a_span_is_called_by_its_parts_and_curve() -> None:
    (span,) = spans([Phase(parts=["stem", "head"], epochs=3, curve=Curve.cosine)], 3, 0)
    assert span.label == "stem + head: cosine"


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("{epochs: 0}", "phases.1.epochs must be at least 1, rest or warmup_epochs, not 0"),
        ("{epochs: -3}", "phases.1.epochs must be at least 1, rest or warmup_epochs, not -3"),
        ("{epochs: 3.0}", "epochs of a phase is a whole number, warmup_epochs or rest, not 3.0"),
        ("{epochs: ten}", "epochs of a phase is a whole number, warmup_epochs or rest, not 'ten'"),
        ("{curve: exponential}", "phases.1.curve: Invalid value 'exponential', expected one of [linear, poly,"),
        ("{optimizer: reset}", "phases.1.optimizer: Invalid value 'reset', expected one of [kept, restarted]"),
        ("{lr_scale: 0}", "phases.1.lr_scale must be a positive number, not 0.0"),
        ("{lr_scale: .nan}", "phases.1.lr_scale must be a positive number, not nan"),
        ("{initial_lr: 0}", "phases.1.initial_lr must be a positive number, not 0.0"),
        ("{initial_lr: -1e-3}", "phases.1.initial_lr must be a positive number, not -0.001"),
        ("{initial_lr: .inf}", "phases.1.initial_lr must be a positive number, not inf"),
        ("{parts: []}", "phases.1.parts must be a list of at least one part, not []"),
        ("{parts: decoder}", "phases.1.parts: it takes a list, such as [a, b]"),
        ("{parts: [everything]}", "there is no part 'everything'; known: all, stem,"),
        ("{parts: [Encoder]}", "there is no part 'Encoder'; known: all, stem,"),
        ("{parts: ['stage:']}", "there is no part 'stage:'; known: all, stem,"),
        ("{parts: ['stage:1.']}", "there is no part 'stage:1.'; known: all, stem,"),
        ("{parts: ['stage:-1']}", "there is no part 'stage:-1'; known: all, stem,"),
        ("{parts: ['decoder_stage:a..b']}", "there is no part 'decoder_stage:a..b'; known: all, stem,"),
        ("{part: [all]}", "there is no phases.1.part; did you mean parts?"),
        ("{lr: 1}", "there is no phases.1.lr; did you mean lr_scale?"),
        ("all", "phases.1 must be like {parts: [all], epochs: 10}, not 'all'"),
    ],
)
def test_a_phase_that_cannot_be_is_refused_by_its_number_and_field(phase: str, words: str) -> None:
    assert words in refused(overrides=[f"phases=[{{parts: [head], epochs: rest}}, {phase}]", "num_epochs=9"])


@pytest.mark.parametrize("value", ["[]", "{}", "5", "all"])
def test_phases_are_a_list(value: str) -> None:
    assert "phases must be a list with at least one phase" in refused(overrides=[f"phases={value}"])
