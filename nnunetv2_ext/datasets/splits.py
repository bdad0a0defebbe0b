"""`splits_final.json`: from what a source says of training and validation, or by subjects."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_ext.datasets.collection import TRAIN, VAL, Case
from nnunetv2_ext.datasets.wording import counted
from nnunetv2_ext.errors import UserError

NUM_FOLDS = 5
"""nnU-Net's cross-validation."""
SEED = 12345
"""Of every random split here; nnU-Net's, of its own."""

Splits = list[dict[str, list[str]]]


def split_by_part_or_subject(cases: Sequence[Case], source: object) -> Splits | None:
    """One fold with the cases of each part where some validate; else `split_by_subject`.

    Args:
        cases: all of them.
        source: that says their parts, for messages.

    Raises:
        UserError: some validate, and none is for training.
    """
    splits = split_by_part(cases)
    if splits is None and any(case.part == VAL for case in cases):
        raise UserError(f"{source}: cases are for validation, and none for training: say which train")
    return splits or split_by_subject(cases)


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


def how_to_train(splits: Splits | None, num_cases: int) -> str:
    """How many folds there are and how they are trained, for the user.

    A fold that `splits_final.json` does not have is no error of stock nnU-Net's: it draws 80 % of all cases at random
    for it (`nnUNetTrainer.do_split`), whatever the subjects. Without the file it makes five folds with sklearn's
    KFold, which raises an error with fewer cases than that.

    Args:
        splits: that the source defines.
        num_cases: for training and validation.
    """
    if splits is not None:
        return f"{counted(len(splits), 'fold')}: train with -f {' '.join(map(str, range(len(splits))))}"
    if num_cases < NUM_FOLDS:
        cases = "1 training case" if num_cases == 1 else f"{num_cases} training cases of one subject"
        return f"none: {cases} cannot be divided: train with -f all, which validates with what it trains"
    return "those that nnU-Net makes; the source defines none"
