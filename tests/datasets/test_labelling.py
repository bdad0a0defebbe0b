"""Numbers for classes: nnU-Net's 0, 1, 2, ... from whatever values people use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.datasets.collection import Case
from nnunetv2_ext.datasets.labelling import class_of, number_classes, parse_classes, source_values
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import case_of


def case(classes: Mapping[int, str] | None = None, name: str = "a") -> Case:
    return case_of(name=name, label=Path("/nowhere/a.nii.gz"), classes=classes)


def numbers(classes: Mapping[int, str] | None, *values: int, declared: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    """Names and numbers, in the order in which `dataset.json` will have them."""
    return list(number_classes(declared, [(case(classes), values)]).numbers.items())


def test_values_without_names_are_numbered_by_size_without_a_gap() -> None:
    assert numbers(None, 0, 7, 12, 300) == [("background", 0), ("label_7", 1), ("label_12", 2), ("label_300", 3)]


def test_background_is_0_also_where_no_voxel_is() -> None:
    assert numbers(None, 5) == [("background", 0), ("label_5", 1)]


def test_declared_classes_keep_their_order_whether_they_are_found_or_not() -> None:
    classes = {1: "kidney", 2: "liver", 9: "spleen"}
    expected = [("background", 0), ("liver", 1), ("spleen", 2), ("kidney", 3)]
    assert numbers(classes, 0, 1, 9, declared=("liver", "spleen", "kidney")) == expected


def test_classes_that_are_not_declared_come_after_by_their_values() -> None:
    classes = {3: "c", 1: "z", 2: "b"}
    assert numbers(classes, 0, 1, 2, 3, declared=("c",)) == [("background", 0), ("c", 1), ("z", 2), ("b", 3)]


@pytest.mark.parametrize("declared", [("ignore", "liver", "kidney"), ()])
def test_the_ignore_label_is_the_last_as_nnunet_demands(declared: tuple[str, ...]) -> None:
    found = numbers({1: "ignore", 2: "liver", 3: "kidney"}, 0, 1, 2, 3, declared=declared)
    assert found == [("background", 0), ("liver", 1), ("kidney", 2), ("ignore", 3)]
    assert LabelManager(dict(found), regions_class_order=None).ignore_label == 3


def test_declared_background_is_not_numbered_twice() -> None:
    found = numbers({0: "background", 1: "liver"}, 0, 1, declared=("background", "liver"))
    assert found == [("background", 0), ("liver", 1)]


def test_several_values_of_one_name_have_one_number() -> None:
    classes = {1: "kidney", 2: "kidney", 5: "tumour", 6: "background"}
    labelling = number_classes(("kidney", "tumour"), [(case(classes), (0, 1, 2, 5, 6))])
    assert dict(labelling.numbers) == {"background": 0, "kidney": 1, "tumour": 2}
    assert labelling.table(case(classes), (0, 1, 2, 5, 6)) == {0: 0, 1: 1, 2: 1, 5: 2, 6: 0}


def test_cases_may_call_a_value_by_different_names() -> None:
    one, other = case({1: "liver", 2: "kidney"}, "a"), case({1: "kidney", 2: "liver"}, "b")
    labelling = number_classes(("liver", "kidney"), [(one, (0, 1, 2)), (other, (0, 1, 2))])
    assert labelling.table(one, (0, 1, 2)) == {0: 0, 1: 1, 2: 2}
    assert labelling.table(other, (0, 1, 2)) == {0: 0, 1: 2, 2: 1}
    assert source_values([(one, (0, 1, 2)), (other, (0, 1))]) == {"background": [0], "kidney": [1, 2], "liver": [1]}


@given(st.lists(st.sets(st.integers(0, 65535), max_size=6), min_size=1, max_size=4))
def test_a_value_has_the_same_number_in_every_case_and_no_number_is_left_out(found: list[set[int]]) -> None:
    cases = [(case(name=f"case_{i}"), sorted(values)) for i, values in enumerate(found)]
    foreground = sorted(set().union(*found) - {0})
    if not foreground:
        with pytest.raises(UserError):
            number_classes((), cases)
        return
    labelling = number_classes((), cases)
    assert sorted(labelling.numbers.values()) == list(range(len(foreground) + 1))
    expected = {0: 0, **{value: number for number, value in enumerate(foreground, 1)}}
    for of_case, values in cases:
        assert labelling.table(of_case, values) == {value: expected[value] for value in values}


@pytest.mark.parametrize(
    ("classes", "values"),
    [(None, (0,)), (None, ()), ({1: "background", 2: "ignore"}, (0, 1, 2))],
    ids=["background", "nothing", "background and ignore"],
)
def test_nothing_but_background_is_an_error(classes: Mapping[int, str] | None, values: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="no label holds anything but background"):
        numbers(classes, *values)


def test_a_value_without_a_name_is_a_key_error_but_0_is_background() -> None:
    assert class_of(case({1: "liver"}), 0) == "background"
    with pytest.raises(KeyError):
        class_of(case({1: "liver"}), 2)


@pytest.mark.parametrize(
    ("texts", "classes"),
    [
        ((), None),
        (("1=liver", "2=tumour"), {1: "liver", 2: "tumour"}),
        (("1=kidney", "2=kidney"), {1: "kidney", 2: "kidney"}),
        ((" 3 = left lung ",), {3: "left lung"}),
        (("007=CA2/3",), {7: "CA2/3"}),
        (("0=background", "4=a=b"), {0: "background", 4: "a=b"}),
        (("9=ignore", "8=background"), {9: "ignore", 8: "background"}),
    ],
)
def test_names_of_values_are_read(texts: tuple[str, ...], classes: dict[int, str] | None) -> None:
    assert parse_classes(texts) == classes


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("liver",), "-labels takes VALUE=NAME, such as 1=liver, not 'liver'"),
        (("1=liver", "2="), "not '2='"),
        (("=liver",), "not '=liver'"),
        (("-1=liver",), "not '-1=liver'"),
        (("1.5=liver",), "not '1.5=liver'"),
        (("liver=1",), "not 'liver=1'"),
        (("1=liver", "01=kidney"), "-labels names the value 1 twice"),
        (("0=liver",), "-labels gives 0 the name liver, but 0 is background in nnU-Net"),
    ],
)
def test_names_that_cannot_be_read_are_an_error(texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_classes(texts)
    assert said in str(caught.value)
