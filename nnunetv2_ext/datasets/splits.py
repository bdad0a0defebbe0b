"""`splits_final.json`: from what a source says of training and validation, or by subjects."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_ext.datasets.collection import TRAIN, VAL, Case

NUM_FOLDS = 5
"""nnU-Net's cross-validation."""
SEED = 12345
"""Of every random split here; nnU-Net's, of its own."""

Splits = list[dict[str, list[str]]]


def split_by_part(cases: Sequence[Case]) -> Splits | None:
    """One fold with the cases of each part; None where one of the two is empty."""
    fold = {part: sorted(case.name for case in cases if case.part == part) for part in (TRAIN, VAL)}
    return [fold] if all(fold.values()) else None


def split_by_subject(cases: Sequence[Case]) -> Splits | None:
    """Five folds (fewer, if there are fewer subjects) with all cases of a subject on the same side.

    None where there are fewer than two subjects, or one case for each, for which nnU-Net's own split does the same.
    """
    training = sorted((case for case in cases if case.part in (TRAIN, VAL)), key=lambda case: case.name)
    subjects = [case.subject for case in training]
    if len(set(subjects)) < 2 or len(set(subjects)) == len(subjects) >= NUM_FOLDS:
        return None
    from sklearn.model_selection import GroupKFold  # takes longer to import than all else here

    folds = GroupKFold(min(NUM_FOLDS, len(set(subjects))), shuffle=True, random_state=SEED)
    names = [case.name for case in training]
    return [
        {"train": [names[i] for i in train], "val": [names[i] for i in val]}
        for train, val in folds.split(names, groups=subjects)
    ]
