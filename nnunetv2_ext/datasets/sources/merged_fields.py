"""HSF's `ca_type`: which of the hippocampal fields CA1, CA2 and CA3 a data set's annotators told apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nnunetv2_ext.errors import UserError

Fields = tuple[str, ...]
"""Numbers of CA fields that are one class: `("2", "3")`."""
_FIELDS = ("1", "2", "3")
_IS_FIELD = re.compile(r"ca[123]([/+-]?(ca)?[123])*")


def parse_ca_type(text: str, dataset: str) -> list[Fields]:
    """`[("1",), ("2", "3")]` for `1/23`. Raises UserError for anything but a partition of 1, 2, 3 or a part of them."""
    groups = [tuple(group.strip()) for group in text.split("/")]
    fields = [field for group in groups for field in group]
    if not all(groups) or len(set(fields)) != len(fields) or not set(fields) <= set(_FIELDS):
        raise UserError(
            f"ca_type of {dataset} is {text!r}, where 1/2/3, 1/23, 12/3 or 123 is meant (fields CA1 to CA3)"
        )
    return [tuple(sorted(group)) for group in groups]


def name_in(names: Sequence[str], fields: Fields, dataset: str) -> str | None:
    """The class that stands for `fields` among a data set's names; None for a single field that is not there.

    Raises:
        UserError: fields that were annotated as one have no class.
    """
    joined = ["/".join(fields), "".join(fields), "-".join(fields), "+".join(fields)]
    known = {f"ca{j}" for j in joined} | {"+".join(f"ca{f}" for f in fields), "/".join(f"ca{f}" for f in fields)}
    if fields == _FIELDS:
        known.add("ca")
    for name in names:
        if name.lower().replace(" ", "") in known:
            return name
    if len(fields) == 1:
        return None
    raise UserError(
        f"ca_type of {dataset} says that CA{' and CA'.join(fields)} are one class, but labels_names have none of "
        f"{', '.join(f'CA{j}' for j in joined[:2])}: they are {', '.join(names)}"
    )


def common_classes(
    ca_types: Mapping[str, Sequence[Fields]], names: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """For each data set and each of its CA classes, the classes of all data sets together that it consists of.

    Two fields are one class in the end if no data set tells them apart. A class that another data set divides stands
    for several: its voxels may be any of them.

    Args:
        ca_types: by data set, from `parse_ca_type`.
        names: by data set, all its class names.

    Returns:
        By data set and its name of a class: one name, or those of the classes that are merged in it.

    Raises:
        UserError: a data set's names are not those of its fields.
    """
    own: dict[str, dict[Fields, str]] = {}
    for dataset, groups in ca_types.items():
        named = {group: name_in(names[dataset], group, dataset) for group in groups}
        own[dataset] = {group: name for group, name in named.items() if name is not None}
        of_fields = [name for name in names[dataset] if _IS_FIELD.fullmatch(name.lower().replace(" ", ""))]
        if others := [name for name in of_fields if name not in own[dataset].values()]:
            raise UserError(f"labels_names of {dataset} have {others[0]}, which is no class of its ca_type")
    common: dict[Fields, str] = {}
    for fields in _finest(own):
        of_datasets = [groups[fields] for groups in own.values() if fields in groups]
        common[fields] = of_datasets[0] if of_datasets else f"CA{'/'.join(fields)}"
    return {
        dataset: {
            name: tuple(common[fields] for fields in common if set(fields) <= set(group))
            for group, name in groups.items()
        }
        for dataset, groups in own.items()
    }


def _finest(own: Mapping[str, Mapping[Fields, str]]) -> list[Fields]:
    """The common refinement of all data sets' groups."""
    where: dict[tuple[Fields | None, ...], list[str]] = {}
    for field in _FIELDS:
        groups = tuple(next((g for g in named if field in g), None) for named in own.values())
        if any(group is not None for group in groups):
            where.setdefault(groups, []).append(field)
    return [tuple(fields) for fields in where.values()]
