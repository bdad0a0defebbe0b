"""The keys of an HSF configuration that say which subjects train and which validate."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case
from nnunetv2_ext.datasets.splits import SEED, Splits, split_by_part_or_subject
from nnunetv2_ext.datasets.wording import counted
from nnunetv2_ext.errors import UserError

SPLIT_KEYS = ("train_ratio", "replace", "k_sample", "train_val_test_idx", "train_on_all")


def split_as_configured(cases: list[Case], content: Mapping[str, Any]) -> tuple[list[Case], Splits | None, list[str]]:
    """Divide cases by `SPLIT_KEYS`; whole subjects are drawn.

    Args:
        cases: all of them, in the order that indices count.
        content: of the file; absent keys are as if they were null.

    Returns:
        The cases with their parts, without those that are left out; `splits_final.json`; remarks for the user.

    Raises:
        UserError: a value that cannot be, an index without a case or in two lists, none for training.
    """
    ratio, k_sample, indices = (content.get(key) for key in ("train_ratio", "k_sample", "train_val_test_idx"))
    everything, with_replacement = _switch(content, "train_on_all"), _switch(content, "replace")
    ratio = 1 if ratio is None else ratio
    if type(ratio) not in (int, float) or not 0 < ratio <= 1:
        raise UserError(f"train_ratio is {ratio!r}, and must be above 0 and at most 1")
    if k_sample is not None and (type(k_sample) is not int or k_sample < 1):
        raise UserError(f"k_sample is {k_sample!r}, and must be a whole number above 0, or null")
    remarks = []
    chance = random.Random(SEED)
    if indices is not None:
        cases, left_out = _by_index(cases, indices, everything)
        if left_out:
            remarks.append(f"train_val_test_idx leave out {counted(left_out, 'case')}")
        if ratio != 1:
            remarks.append(f"train_ratio ({ratio}) is not used: train_val_test_idx say who validates")
        training = sorted({case.subject for case in cases if case.part == TRAIN})
        validation = {case.subject for case in cases if case.part == VAL}
    else:
        subjects = sorted({case.subject for case in cases})
        chance.shuffle(subjects)
        num_validation = 0 if ratio == 1 else min(max(1, round(len(subjects) * (1 - ratio))), len(subjects) - 1)
        validation, training = set(subjects[:num_validation]), sorted(subjects[num_validation:])
    drawn = _draw(training, with_replacement, k_sample, chance)
    if indices is not None and k_sample is not None and not everything and set(drawn) != set(training):
        of = f"{len(set(drawn))} of the {counted(len(training), 'subject')} that train_val_test_idx name for training"
        remarks.append(f"k_sample draws {of}: the others are in no fold")
    if ratio == 1 and indices is None:  # what was not drawn validates
        validation = set(training) - set(drawn)
    if indices is None:
        cases = [replace(case, part=VAL if case.subject in validation else TRAIN) for case in cases]
    if everything:
        drawn = sorted({case.subject for case in cases if case.part != TEST})
    if not validation or not drawn:
        return cases, split_by_part_or_subject(cases, "train_val_test_idx"), remarks
    of_subject: dict[str, list[str]] = {}
    for case in cases:
        if case.part != TEST:
            of_subject.setdefault(case.subject, []).append(case.name)
    fold = {
        "train": sorted(name for subject in drawn for name in of_subject[subject]),
        "val": sorted(name for subject in validation for name in of_subject[subject]),
    }
    return cases, [fold], remarks


def _switch(content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key)
    if value not in (True, False, None):
        raise UserError(f"{key} is {value!r}, and must be true or false")
    return bool(value)


def _draw(subjects: list[str], with_replacement: bool, k: int | None, chance: random.Random) -> list[str]:
    """Of the training subjects those to train with; one that is drawn twice counts twice."""
    if with_replacement:
        return chance.choices(subjects, k=k or len(subjects)) if subjects else []
    if k is not None and k > len(subjects):
        to_draw_from = f"{'there is' if len(subjects) == 1 else 'there are'} {counted(len(subjects), 'subject')}"
        raise UserError(f"k_sample is {k}, but {to_draw_from} to draw from: give at most that, or replace: true")
    return subjects if k is None else sorted(chance.sample(subjects, k))


def _by_index(cases: Sequence[Case], indices: Any, everything: bool) -> tuple[list[Case], int]:
    """The cases that three lists of indices name, in their parts, and how many are in none."""
    if (
        not isinstance(indices, list)
        or len(indices) != 3
        or not all(isinstance(of_part, list) and all(type(i) is int for i in of_part) for of_part in indices)
    ):
        raise UserError("train_val_test_idx must be three lists of whole numbers: training, validation, test")
    parts: dict[int, str] = {}
    for part, of_part in zip((TRAIN, VAL, TEST), indices, strict=True):
        for index in of_part:
            if not 0 <= index < len(cases):
                raise UserError(
                    f"train_val_test_idx name case {index}, and there are {len(cases)} (0 to {len(cases) - 1})"
                )
            if index in parts:
                raise UserError(f"train_val_test_idx name case {index} in {parts[index]} and in {part}")
            parts[index] = part
    if everything:
        return [replace(case, part=VAL if parts.get(i) == VAL else TRAIN) for i, case in enumerate(cases)], 0
    named = [replace(case, part=parts[i]) for i, case in enumerate(cases) if i in parts]
    return named, len(cases) - len(named)
