"""Below the table of a dry run stand all problems in full, and what the dataset would be."""

from __future__ import annotations

import os
import pty

import pytest

from nnunetv2_ext.datasets import overview
from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.collection import TEST, VAL
from nnunetv2_ext.datasets.overview import print_overview, problem_lines, summary_lines
from tests.datasets.overviews import case, collection_of, found_in

NUMBERS = {"background": 0, "liver": 1, "cyst": 2}
LIVER = {1: "liver", 5: "cyst"}


def test_every_problem_is_a_line_in_full_with_the_case_and_its_row() -> None:
    long = "/data/" + "very-long-folder/" * 30 + "a.nii.gz cannot be read"
    collection = collection_of(case("a"), case("b", problems=("has no label", "is no scan")), case("c"))
    findings = {
        "a": Finding("a", problems=(long,)),
        "b": Finding("b", problems=("has no label", "is no scan")),
        "c": found_in("c"),
    }
    assert problem_lines(collection, findings) == [
        f"a (table.csv, line a): {long}",
        "b (table.csv, line b): has no label",
        "b (table.csv, line b): is no scan",
    ]


def test_a_problem_that_a_library_words_in_several_lines_is_one_line() -> None:
    findings = {"a": Finding("a", problems=("cannot be read:\n  broken\n",))}
    assert problem_lines(collection_of(case("a")), findings) == ["a (table.csv, line a): cannot be read: broken"]


def test_the_summary_counts_cases_of_every_part_subjects_and_problems() -> None:
    collection = collection_of(
        case("a", subject="P1"), case("b", subject="P1"), case("c", part=VAL), case("d", part=TEST, label=None)
    )
    findings = {name: found_in(name) for name in "abcd"}
    assert summary_lines(collection, findings, NUMBERS)[0] == "4 cases: 2 train, 1 val, 1 test; 3 subjects; no problems"
    findings["a"] = Finding("a", problems=("is broken",))
    lines = summary_lines(collection, findings, NUMBERS)
    assert lines[0] == "4 cases: 2 train, 1 val, 1 test; 3 subjects; problems in 1"
    assert lines[-1].startswith("classes of the other cases: ")


def test_the_summary_says_how_many_are_on_each_side_of_the_folds_and_which_are_in_none() -> None:
    splits = [{"train": ["a", "a", "b"], "val": ["c"]}, {"train": ["a"], "val": ["b", "c"]}]
    collection = collection_of(*map(case, "abcd"), splits=splits)
    findings = {name: found_in(name) for name in "abcd"}
    folds = "folds: 0 to 1 (1 to 3 train, of which 1 again, 1 to 2 val); 1 case in none: d"
    assert summary_lines(collection, findings, NUMBERS)[1] == folds


def test_the_summary_has_channels_and_classes_as_the_dataset_and_the_values_where_they_differ() -> None:
    made = case("a", classes={**LIVER, 9: "liver"})
    lines = summary_lines(collection_of(made), {"a": found_in("a", 0, 1, 5, 9)}, NUMBERS)
    assert lines[1:] == [
        "folds: none: 1 training case cannot be divided: train with -f all, which validates with what it trains",
        "channels: 0 image",
        "classes: 0 background, 1 liver (1, 9 in the source), 2 cyst (5 in the source)",
    ]


def test_classes_that_are_named_by_their_value_do_not_repeat_it() -> None:
    lines = summary_lines(collection_of(case("a")), {"a": found_in("a", 0, 7)}, {"background": 0, "label_7": 1})
    assert lines[-1] == "classes: 0 background, 1 label_7"


def test_background_alone_has_its_table_before_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    print_overview(collection_of(case("a")), {"a": found_in("a", 0)})
    printed = capsys.readouterr().out
    assert "background alone" in printed
    assert printed.splitlines()[-1] == "classes: 0 background"


def test_the_table_is_as_wide_as_the_terminal_and_as_its_content_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    made = case("a-case-with-a-name-of-forty-characters-or-s", classes=LIVER)
    findings = {made.name: found_in(made.name, 0, 1, 5)}
    print_overview(collection_of(made), findings)
    assert "spacing (z, y, x)  classes" in capsys.readouterr().out.splitlines()[0]
    terminal, screen = pty.openpty()
    with os.fdopen(screen, "w") as stdout, os.fdopen(terminal, "rb", buffering=0) as seen:
        monkeypatch.setattr(overview.sys, "stdout", stdout)
        print_overview(collection_of(made), findings)
        stdout.flush()
        lines = seen.read(4096).decode().splitlines()
    assert len(lines[0]) <= 60
    assert lines[2:4] == ["  size 6 x 7 x 8; spacing 2 x 1.25 x 0.5; classes 1 liver,", "  2 cyst"]
