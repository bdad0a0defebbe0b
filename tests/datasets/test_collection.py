"""What only all cases together show, and names of cases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_ext.datasets.collection import (
    TEST,
    TRAIN,
    VAL,
    Case,
    Collection,
    case_name,
    choose_channel_names,
)
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import case_of

LABEL = Path("/nowhere/label.nii.gz")


def problems_of(*cases: Case) -> list[tuple[str, ...]]:
    return [case.problems for case in Collection(cases, ("CT",)).checked().cases]


def test_cases_without_problems_stay_as_they_are() -> None:
    cases = (
        case_of(label=LABEL, name="a", subject="1"),
        case_of(label=LABEL, name="b", subject="1"),
        case_of(label=LABEL, name="c", subject="2", part=VAL),
        case_of(name="d", subject="3", part=TEST),
    )
    collection = Collection(cases, ("CT",))
    assert collection.checked() == collection


def test_a_name_that_stands_twice_is_a_problem_of_both() -> None:
    twice = ("the name a stands 2 times in the source: rename one",)
    found = problems_of(*(case_of(label=LABEL, name=name, subject="1") for name in ("a", "b", "a")))
    assert found == [twice, (), twice]


@pytest.mark.parametrize(
    ("parts", "said"),
    [((TRAIN, VAL), "train and in val"), ((TRAIN, TEST), "test and in train"), ((VAL, TEST), "test and in val")],
)
def test_a_subject_in_two_parts_is_a_problem_of_all_its_cases(parts: tuple[str, str], said: str) -> None:
    first, second = parts
    found = problems_of(
        case_of(label=LABEL, name="a", subject="1", part=first),
        case_of(label=LABEL, name="b", subject="2", part=first),
        case_of(label=LABEL, name="c", subject="1", part=second),
    )
    assert found == [(f"subject 1 is in {said}",), (), (f"subject 1 is in {said}",)]


def test_a_training_case_needs_a_label_and_a_test_case_none() -> None:
    found = problems_of(*(case_of(name=part, part=part) for part in (TRAIN, VAL, TEST)))
    assert found == [("has no label",), ("has no label",), ()]


def test_problems_that_are_known_come_first_and_explain_a_missing_label() -> None:
    found = problems_of(*(case_of(name="a", subject="1", problems=("image is empty",)) for _ in range(2)))
    assert found == [("image is empty", "the name a stands 2 times in the source: rename one")] * 2


def test_a_source_says_what_to_do_about_a_name_that_stands_twice() -> None:
    cases = tuple(case_of(label=LABEL, name="a") for _ in range(2))
    (first, second) = Collection(cases, ("CT",), to_rename="take another column (-case)").checked().cases
    assert first.problems == ("the name a stands 2 times in the source: take another column (-case)",)
    assert second.problems == first.problems


def test_channel_names_are_the_user_s_if_there_is_one_for_each() -> None:
    assert choose_channel_names(None, ("t1", "t2")) == ("t1", "t2")
    assert choose_channel_names(["CT", "PET"], ("t1", "t2")) == ("CT", "PET")
    with pytest.raises(
        UserError, match=r"^-channels gives 1 name \(CT\) for 2 channels \(t1, t2\): give one for each$"
    ):
        choose_channel_names(["CT"], ("t1", "t2"))


def test_two_channels_have_two_names_unless_these_choose_the_normalization() -> None:
    assert choose_channel_names(["CT", "CT"], ("arterial", "venous")) == ("CT", "CT")
    with pytest.raises(UserError, match=r"^-channels gives the name T1 to two channels: give each its own$"):
        choose_channel_names(["T1", "T1"], ("a", "b"))


def test_names_that_differ_only_in_capital_letters_are_a_problem_of_both() -> None:
    alike = ("the names P1 and p1 differ only in capital letters: rename one",)
    found = problems_of(*(case_of(label=LABEL, name=name, subject="1") for name in ("p1", "P2", "P1")))
    assert found == [alike, (), alike]


def test_an_image_that_is_two_channels_is_a_problem() -> None:
    case = case_of(Path("/data/a.nii.gz"), Path("/data/b.nii.gz"), Path("/data/../data/a.nii.gz"), label=LABEL)
    assert problems_of(case) == [
        ("channels 0 and 2 are the same image, /data/../data/a.nii.gz: correct one",),
    ]  # fmt: skip


@pytest.mark.parametrize("part", [VAL, TEST])
def test_an_image_that_is_trained_and_not_trained_with_is_a_problem_however_its_path_is_written(
    part: str, tmp_path: Path
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "link").symlink_to("scans")
    found = problems_of(
        case_of(tmp_path / "scans/a.nii.gz", label=LABEL, name="a"),
        case_of(tmp_path / "scans/b.nii.gz", label=LABEL, name="b", part=part),
        case_of(tmp_path / "link/a.nii.gz", label=LABEL, name="c", part=part),
        case_of(tmp_path / "link/../scans/b.nii.gz", label=LABEL, name="d", part=part),
    )
    fix = "remove one, or put both into the same part"
    assert found == [
        (f"its image (train) is that of c too ({part}): {fix}",),
        (),
        (f"its image ({part}) is that of a too (train): {fix}",),
        (),
    ]


def test_a_case_without_a_name_is_called_by_its_row_once() -> None:
    assert case_of(name="a").title == "a (table.csv, line a)"
    assert Case("t.csv, line 2", "t.csv, line 2", "s", TRAIN).title == "t.csv, line 2"


def test_cases_of_training_are_those_that_are_not_for_test() -> None:
    cases = tuple(case_of(name=part, part=part) for part in (TRAIN, TEST, VAL))
    assert [case.part for case in Collection(cases, ("CT",)).training_cases] == [TRAIN, VAL]


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("sub-01_ses-2",), "sub-01_ses-2"),
        (("clark", "01", "right t2"), "clark_01_right-t2"),
        (("a/b\\c:d",), "a-b-c-d"),
        ((" a  b ",), "a-b"),
        ((".hidden",), "hidden"),
        (("train", 7), "train_7"),
        (("a", "", "b"), "a_b"),
        (("Schädel",), "Sch-del"),
        (("v1.2",), "v1.2"),
        (("头", "01"), "01"),
        (("",), ""),
        (("..",), ""),
    ],
)
def test_a_name_keeps_what_all_file_systems_take(parts: tuple[object, ...], name: str) -> None:
    assert case_name(*parts) == name


@given(st.lists(st.text(), max_size=3))
def test_a_name_is_none_or_one_that_files_can_have(parts: list[str]) -> None:
    name = case_name(*parts)
    assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?", name)
    assert case_name(name) == name
