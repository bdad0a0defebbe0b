"""`ca_type`: the classes of all data sets together are the finest that anybody has told apart, and no finer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest

from nnunetv2_ext.datasets.sources.merged_fields import common_classes, name_in, parse_ca_type
from nnunetv2_ext.errors import UserError

CA_TYPES = ("1/2/3", "1/23", "12/3", "13/2", "123")


def common(ca_types: Mapping[str, str], names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, tuple[str, ...]]]:
    return common_classes({name: parse_ca_type(text, name) for name, text in ca_types.items()}, names)


def usual_names(ca_type: str) -> list[str]:
    """`["DG", "CA1", "CA2/3"]` for `1/23`."""
    return ["DG", *(f"CA{'/'.join(group)}" for group in ca_type.split("/"))]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("1/2/3", [("1",), ("2",), ("3",)]),
        ("1/23", [("1",), ("2", "3")]),
        ("32/1", [("2", "3"), ("1",)]),
        ("12/3", [("1", "2"), ("3",)]),
        ("123", [("1", "2", "3")]),
        (" 1 / 23 ", [("1",), ("2", "3")]),
        ("1/2", [("1",), ("2",)]),
    ],
)
def test_a_ca_type_is_groups_of_fields(text: str, groups: list[tuple[str, ...]]) -> None:
    assert parse_ca_type(text, "clark") == groups


@pytest.mark.parametrize("text", ["", "/", "1//23", "1/", "1/24", "0/1", "1/22", "12/23", "1-23", "CA1/CA23", "None"])
def test_what_is_no_ca_type_is_refused_with_its_data_set(text: str) -> None:
    with pytest.raises(UserError, match=r"^ca_type of clark is .* where 1/2/3, 1/23, 12/3 or 123 is meant"):
        parse_ca_type(text, "clark")


@pytest.mark.parametrize("name", ["CA2/3", "CA23", "ca2/3", "CA2-3", "CA2+3", "CA2+CA3", "CA2/CA3", "CA 2 / 3"])
def test_a_merged_class_is_found_however_it_is_spelled(name: str) -> None:
    assert name_in(["DG", "CA1", name], ("2", "3"), "clark") == name


@pytest.mark.parametrize("name", ["CA", "CA123", "CA1/2/3", "ca1-2-3"])
def test_all_three_fields_in_one_are_found(name: str) -> None:
    assert name_in(["DG", name], ("1", "2", "3"), "clark") == name


def test_a_single_field_may_be_missing_but_a_merged_class_may_not() -> None:
    assert name_in(["DG", "CA1"], ("2",), "clark") is None
    with pytest.raises(UserError, match=r"^ca_type of clark says that CA2 and CA3 are one class, .* DG, CA1$"):
        name_in(["DG", "CA1"], ("2", "3"), "clark")


@pytest.mark.parametrize(
    ("ca_type", "names", "extra"),
    [
        ("1/2/3", ["CA1", "CA2/3"], "CA2/3"),
        ("1/23", ["CA1", "CA2/3", "CA2"], "CA2"),
        ("123", ["CA", "CA1"], "CA1"),
    ],
)
def test_names_that_contradict_the_ca_type_are_refused(ca_type: str, names: list[str], extra: str) -> None:
    with pytest.raises(UserError, match=rf"^labels_names of clark have {extra}, which is no class of its ca_type$"):
        common({"clark": ca_type}, {"clark": names})


def test_a_merged_class_stands_for_the_fields_that_another_data_set_tells_apart() -> None:
    assert common(
        {"coarse": "1/23", "fine": "1/2/3"},
        {"coarse": ["DG", "CA2/3", "CA1"], "fine": ["CA1", "CA2", "CA3", "DG"]},
    ) == {
        "coarse": {"CA1": ("CA1",), "CA2/3": ("CA2", "CA3")},
        "fine": {"CA1": ("CA1",), "CA2": ("CA2",), "CA3": ("CA3",)},
    }


def test_a_class_that_nobody_divides_stays_one() -> None:
    merged = {"CA1": ("CA1",), "CA2/3": ("CA2/3",)}
    assert common(
        {"a": "1/23", "b": "1/23"}, {"a": ["CA1", "CA2/3"], "b": ["CA1", "CA2/3"]}
    ) == {"a": merged, "b": merged}  # fmt: skip


def test_one_class_has_one_name_however_each_data_set_spells_it() -> None:
    classes = common({"a": "1/23", "b": "1/23"}, {"a": ["CA1", "CA2/3"], "b": ["ca1", "CA23"]})
    assert classes["b"] == {"ca1": ("CA1",), "CA23": ("CA2/3",)}


def test_groups_that_overlap_are_divided_into_fields_that_nobody_has_alone() -> None:
    assert common({"a": "12/3", "b": "1/23"}, {"a": ["CA1/2", "CA3"], "b": ["CA1", "CA2/3"]}) == {
        "a": {"CA1/2": ("CA1", "CA2"), "CA3": ("CA3",)},
        "b": {"CA1": ("CA1",), "CA2/3": ("CA2", "CA3")},
    }


@pytest.mark.parametrize("ca_types", [*itertools.combinations_with_replacement(CA_TYPES, 3)])
def test_fields_are_one_class_if_and_only_if_no_data_set_tells_them_apart(ca_types: tuple[str, ...]) -> None:
    of_dataset = {f"set{i}": text for i, text in enumerate(ca_types)}
    result = common(of_dataset, {name: usual_names(text) for name, text in of_dataset.items()})
    for dataset, text in of_dataset.items():
        for group in text.split("/"):
            name = f"CA{'/'.join(group)}"
            parts = [frozenset(part.removeprefix("CA").split("/")) for part in result[dataset][name]]
            assert sorted(itertools.chain(*parts)) == sorted(group)
            for a, b in itertools.combinations(group, 2):
                apart = any(not any({a, b} <= set(g) for g in other.split("/")) for other in ca_types)
                assert any({a, b} <= part for part in parts) is not apart
