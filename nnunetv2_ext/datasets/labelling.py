"""From the values in other people's label maps to nnU-Net's labels: 0, 1, 2, ... without a gap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nnunetv2_ext.datasets.collection import BACKGROUND, Case
from nnunetv2_ext.errors import UserError

IGNORE = "ignore"
"""nnU-Net's name for voxels that were not annotated; its label is the last one."""


@dataclass(frozen=True)
class Labelling:
    """`labels` of `dataset.json`: the number of each class, background first."""

    numbers: Mapping[str, int]

    def table(self, case: Case, values: Iterable[int]) -> dict[int, int]:
        """The number for each value of a case's label map."""
        return {value: self.numbers[class_of(case, value)] for value in values}


def class_of(case: Case, value: int) -> str:
    """The name of the class that a value of a case's label map means. Raises KeyError for a value without a name."""
    if case.classes is not None:
        return BACKGROUND if value == 0 and 0 not in case.classes else case.classes[value]
    return f"label_{value}" if value else BACKGROUND


def number_classes(class_names: Sequence[str], found: Sequence[tuple[Case, Iterable[int]]]) -> Labelling:
    """Number the classes: those that were declared in their order, others by their value.

    Args:
        class_names: declared, whether a case has them or not.
        found: cases with the values in their label maps.

    Raises:
        UserError: there is nothing but background.
    """
    names = dict.fromkeys(class_names)
    values = sorted({(value, class_of(case, value)) for case, of_case in found for value in of_case})
    names.update(dict.fromkeys(name for _, name in values))
    foreground = [name for name in names if name not in (BACKGROUND, IGNORE)]
    if not foreground:
        raise UserError("no label holds anything but background: there is nothing to learn")
    last = [IGNORE] if IGNORE in names else []
    return Labelling({name: number for number, name in enumerate([BACKGROUND, *foreground, *last])})


def source_values(found: Sequence[tuple[Case, Iterable[int]]]) -> dict[str, list[int]]:
    """For each class the values that stand for it in the cases' own label maps, ascending."""
    values: dict[str, set[int]] = {}
    for case, of_case in found:
        for value in of_case:
            values.setdefault(class_of(case, value), set()).add(value)
    return {name: sorted(of_class) for name, of_class in sorted(values.items())}


def parse_classes(texts: Sequence[str]) -> dict[int, str] | None:
    """`{1: "liver"}` for `1=liver`; several values may have one name. None for no text at all.

    Raises:
        UserError: a text of another form, a value twice, background anything but that.
    """
    classes: dict[int, str] = {}
    for text in texts:
        value, equals, name = text.partition("=")
        if not equals or not value.strip().isdecimal() or not name.strip():
            raise UserError(f"-labels takes VALUE=NAME, such as 1=liver, not {text!r}")
        if int(value) in classes:
            raise UserError(f"-labels names the value {int(value)} twice")
        classes[int(value)] = name.strip()
    if classes.get(0, BACKGROUND) != BACKGROUND:
        raise UserError(f"-labels gives 0 the name {classes[0]}, but 0 is background in nnU-Net")
    return classes or None
