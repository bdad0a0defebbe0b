"""Splits: everyone on one side, nobody on both."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case
from nnunetv2_ext.datasets.split_files import folds_line
from nnunetv2_ext.datasets.splits import how_to_train, split_by_part, split_by_part_or_subject, split_by_subject
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import case_of

PARTS = st.sampled_from([TRAIN, VAL, TEST])


def cases_of(*subjects: str, part: str = TRAIN) -> list[Case]:
    return [case_of(name=f"case_{i:03d}", subject=subject, part=part) for i, subject in enumerate(subjects)]


@given(st.lists(PARTS, max_size=8))
def test_the_one_fold_by_part_holds_what_the_source_says(parts: list[str]) -> None:
    cases = [case_of(name=f"case_{i}", part=part) for i, part in enumerate(parts)]
    split = split_by_part(cases[::-1])
    train, val = ([case.name for case in cases if case.part == part] for part in (TRAIN, VAL))
    assert split == ([{"train": train, "val": val}] if train and val else None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ABCDEFGH"), PARTS), max_size=24))
def test_no_subject_is_ever_on_both_sides_and_every_case_validates_once(drawn: list[tuple[str, str]]) -> None:
    cases = [case_of(name=f"case_{i:03d}", subject=subject, part=part) for i, (subject, part) in enumerate(drawn)]
    training = {case.name: case.subject for case in cases if case.part != TEST}
    subjects = set(training.values())
    split = split_by_subject(cases)
    if split is None:
        assert len(subjects) < 2 or (len(subjects) == len(training) >= 5)
        return
    assert len(split) == min(5, len(subjects))
    for fold in split:
        assert set(fold) == {"train", "val"}
        assert fold["train"]
        assert fold["val"]
        assert sorted(fold["train"] + fold["val"]) == sorted(training)
        assert not {training[name] for name in fold["train"]} & {training[name] for name in fold["val"]}
    assert sorted(chain.from_iterable(fold["val"] for fold in split)) == sorted(training)


def test_folds_are_drawn_the_same_way_whatever_the_order_of_the_cases() -> None:
    cases = cases_of(*"AABBCCDDEEFFGG")
    assert split_by_subject(cases) == split_by_subject(cases[::-1]) is not None


def test_folds_are_as_large_as_subjects_allow() -> None:
    split = split_by_subject(cases_of(*(subject for subject in "ABCDEFGHIJ" for _ in range(3))))
    assert split is not None
    assert [len(fold["val"]) for fold in split] == [6] * 5


@pytest.mark.parametrize(
    "cases",
    [
        [],
        cases_of("A", "A", "A"),
        cases_of(*"ABCDE"),
        cases_of(*"ABCDEFGHIJ"),
        cases_of(*"AABBCCDD", part=TEST),
        [*cases_of("A", "A"), *cases_of("B", "B", part=TEST)],
    ],
    ids=["no case", "one subject", "five of one case", "ten of one case", "test cases", "one subject is no test"],
)
def test_where_subjects_do_not_matter_nnunet_splits_itself(cases: list[Case]) -> None:
    assert split_by_subject(cases) is None


def test_fewer_than_five_cases_are_split_here_for_nnunet_cannot() -> None:
    split = split_by_subject(cases_of(*"ABC"))
    assert split is not None
    assert [len(fold["val"]) for fold in split] == [1, 1, 1]


def test_a_validating_case_counts_as_one_of_training() -> None:
    split = split_by_subject([*cases_of("A", "A", "B"), case_of(name="other", subject="B", part=VAL)])
    assert split is not None
    assert {tuple(fold["val"]) for fold in split} == {("case_000", "case_001"), ("case_002", "other")}


def test_parts_go_before_subjects_and_subjects_divide_where_nothing_validates() -> None:
    val = case_of(name="v", subject="C", part=VAL)
    assert split_by_part_or_subject([*cases_of("A", "B"), val], "train.csv") == [
        {"train": ["case_000", "case_001"], "val": ["v"]}
    ]
    assert split_by_part_or_subject(cases_of("A", "B"), "train.csv") == split_by_subject(cases_of("A", "B")) is not None


def test_cases_that_all_validate_are_refused() -> None:
    cases = [case_of(name="v", part=VAL), case_of(name="t", part=TEST)]
    with pytest.raises(UserError, match=r"^t\.csv \(split\): cases are for validation, and none for training"):
        split_by_part_or_subject(cases, "t.csv (split)")


@pytest.mark.parametrize("number", range(1, 7))
def test_all_is_advised_where_stock_nnunet_cannot_make_folds(number: int) -> None:
    try:
        generate_crossval_split([f"case_{i}" for i in range(number)])
    except ValueError:
        assert "train with -f all" in how_to_train(None, number)
    else:
        assert how_to_train(None, number) == "those that nnU-Net makes; the source defines none"


def test_folds_are_named_as_they_are_trained() -> None:
    fold = {"train": ["a"], "val": ["b"]}
    assert how_to_train([fold], 2) == "1 fold: train with -f 0"
    assert how_to_train([fold] * 3, 3) == "3 folds: train with -f 0 1 2"


def test_the_import_names_the_folds_unless_nnunet_or_the_user_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    path = tmp_path / "Dataset001_A" / "splits_final.json"
    assert folds_line("Dataset001_A", [{"train": ["a"], "val": ["b"]}], 2) == f"{path}: 1 fold: train with -f 0"
    assert folds_line("Dataset001_A", None, 5) is None
    assert "train with -f all" in (folds_line("Dataset001_A", None, 4) or "")
    path.parent.mkdir()
    path.write_text("[]")
    assert folds_line("Dataset001_A", None, 4) is None
