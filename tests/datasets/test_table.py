"""Nothing of the table of cases is cut off, whatever the screen; it says names of classes, folds and indices."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import pytest

from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL
from nnunetv2_ext.datasets.table import case_table
from nnunetv2_ext.datasets.volumes.volume import Geometry
from tests.datasets.overviews import case, collection_of, found_in

NUMBERS = {"background": 0, "liver": 1, "cyst": 2}
LIVER = {1: "liver", 5: "cyst"}


def cells(lines: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table of which every row is one line, by the places of its titles."""
    titles = [(m.group().strip(), m.start()) for m in re.finditer(r"\S+( \S+)*", lines[0])]
    ends = [start for _, start in titles[1:]] + [None]
    return [
        {title: line[start:end].strip() for (title, start), end in zip(titles, ends, strict=True)} for line in lines[1:]
    ]


def words(lines: Sequence[str]) -> str:
    return " ".join(" ".join(lines).split())


def test_a_row_says_what_was_found_in_its_case() -> None:
    collection = collection_of(case("a", classes=LIVER), case("b", part=TEST, label=None))
    findings = {
        "a": Finding("a", Geometry((8, 7, 6), (0.5, 1.25, 2.0)), values=(0, 1, 5)),
        "b": Finding("b", Geometry((8, 7, 6), (0.5, 1.25, 2.0))),
    }
    first, second = cells(case_table(collection, findings, NUMBERS))
    assert first == {
        "case": "a",
        "part": "train",
        "size (z, y, x)": "6 x 7 x 8",
        "spacing (z, y, x)": "2 x 1.25 x 0.5",
        "classes": "1 liver, 2 cyst",
    }
    assert (second["part"], second["classes"]) == ("test", "no label")


def test_a_case_with_problems_has_its_row_and_points_to_them() -> None:
    collection = collection_of(case("a"), case("b"))
    findings = {"a": Finding("a", problems=("there is no file",)), "b": found_in("b", 0)}
    first, second = cells(case_table(collection, findings, NUMBERS))
    assert (first["size (z, y, x)"], first["classes"]) == ("", "see below")
    assert second["classes"] == "background alone"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (range(1, 13), "all 12"),
        (range(2, 12), "all 12 but 1 c1, 12 c12"),
        (range(1, 8), "1 c1, 2 c2, 3 c3 and 4 more"),
        (range(4, 8), "4 c4, 5 c5, 6 c6, 7 c7"),
    ],
)
def test_a_long_list_of_classes_is_counted_so_that_cases_can_be_told_apart(values: Sequence[int], said: str) -> None:
    classes = {value: f"c{value}" for value in range(1, 13)}
    numbers = {"background": 0, **{name: value for value, name in classes.items()}}
    table = case_table(collection_of(case("a", classes=classes)), {"a": found_in("a", *values)}, numbers)
    assert cells(table)[0]["classes"] == said


def test_merged_classes_are_shown_together() -> None:
    merged = case("a", classes={1: "CA2"}, merged=(("CA2", "CA3"),))
    table = case_table(collection_of(merged), {"a": found_in("a", 0, 1)}, {"background": 0, "CA2": 1, "CA3": 2})
    assert cells(table)[0]["classes"] == "1 CA2+CA3"


def test_the_fold_is_the_one_in_which_a_case_validates() -> None:
    names = "abcd"
    splits = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a", "b"]}]
    collection = collection_of(*map(case, "abc"), case("d", part=TEST), splits=splits)
    rows = cells(case_table(collection, {name: found_in(name) for name in names}, NUMBERS))
    assert [row["val fold"] for row in rows] == ["1", "0 1", "-", ""]


def test_without_a_split_there_are_no_folds() -> None:
    (title, *_) = case_table(collection_of(case("a")), {"a": found_in("a")}, NUMBERS)
    assert "fold" not in title


def test_subjects_are_shown_where_one_has_several_cases() -> None:
    findings = {name: found_in(name) for name in "abc"}
    several = collection_of(case("a", subject="P1"), case("b", subject="P1"), case("c", subject="P2"))
    assert [row["subject"] for row in cells(case_table(several, findings, NUMBERS))] == ["P1", "P1", "P2"]
    assert "subject" not in case_table(collection_of(*map(case, "abc")), findings, NUMBERS)[0]


def test_the_index_is_the_sources_own_whatever_cases_are_left_out() -> None:
    collection = collection_of(case("a", index=3), case("b", index=11))
    table = case_table(collection, {name: found_in(name) for name in "ab"}, NUMBERS)
    assert [line.split()[:2] for line in table] == [["index", "case"], ["3", "a"], ["11", "b"]]


LONG = "a-case-with-a-very-long-name-of-its-own_and_more_of_it_than_a_screen_has_in_a_line_by_far_session-baseline"


def long_table(width: int | None) -> list[str]:
    classes = {1: "left hippocampus proper", 2: "right hippocampus proper", 3: "subiculum"}
    made = [
        case(name, classes=classes, subject="a subject with several cases", part=part, index=index)
        for index, (name, part) in enumerate((("short", TRAIN), (LONG, VAL)))
    ]
    collection = collection_of(*made, splits=[{"train": ["short"], "val": [LONG]}])
    numbers = {"background": 0, **{name: number for number, name in classes.items()}}
    return case_table(collection, {c.name: found_in(c.name, 0, 1, 2, 3) for c in made}, numbers, width)


@pytest.mark.parametrize("width", [40, 80, 120, 200, 300, None])
def test_nothing_is_cut_off_on_any_screen(width: int | None) -> None:
    text = words(long_table(width))
    for value in ("short", LONG, "a subject with several cases", "6 x 7 x 8", "2 x 1.25 x 0.5"):
        assert value in text
    for name in ("1 left hippocampus proper", "2 right hippocampus proper", "3 subiculum"):
        assert text.count(name) == 2


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_line_is_longer_than_the_screen_unless_a_name_is(width: int) -> None:
    too_long = [line for line in long_table(width) if len(line) > width]
    assert all(LONG in line for line in too_long)
    made = [case(f"sub{i:02d}_left", subject=f"sub{i // 2}", classes=LIVER, index=i) for i in range(4)]
    findings = {c.name: found_in(c.name, 0, 1, 5) for c in made}
    splits = [{"train": [], "val": [c.name for c in made]}]
    assert max(map(len, case_table(collection_of(*made, splits=splits), findings, NUMBERS, width))) <= width


def test_every_case_is_one_line_without_a_frame_where_there_is_no_screen() -> None:
    table = long_table(None)
    assert len(table) == 3
    assert "".join(table).isascii()
    assert [line for line in table if line != line.rstrip()] == []


def test_columns_are_aligned_under_characters_of_two_cells() -> None:
    collection = collection_of(case("肝臓", part=TEST), case("abcd"))
    table = case_table(collection, {name: found_in(name) for name in ("肝臓", "abcd")}, NUMBERS)
    assert table[1].index("test") + 2 == table[2].index("train")


def test_brackets_in_names_stay() -> None:
    table = case_table(collection_of(case("a", classes={1: "[bold] /x]"})), {"a": found_in("a", 1)}, {"[bold] /x]": 1})
    assert cells(table)[0]["classes"] == "1 [bold] /x]"


def test_thousands_of_cases_take_no_more_than_a_moment() -> None:
    made = [case(f"case_{i:05d}", subject=f"sub{i // 2}", classes=LIVER) for i in range(4000)]
    splits = [{"train": [c.name for c in made[fold::5]], "val": [c.name for c in made[fold::5]]} for fold in range(5)]
    findings = {c.name: found_in(c.name, 0, 1, 5) for c in made}
    start = time.perf_counter()
    table = case_table(collection_of(*made, splits=splits), findings, NUMBERS, 80)
    assert time.perf_counter() - start < 5
    assert len(table) == 1 + 2 * 4000
