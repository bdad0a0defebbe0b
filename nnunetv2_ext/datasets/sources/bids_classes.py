"""Names of classes from BIDS's lookup tables (`*dseg.tsv`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_ext.datasets.collection import BACKGROUND
from nnunetv2_ext.datasets.sources.bids_files import BidsFile, entities_of
from nnunetv2_ext.datasets.sources.tables import rows
from nnunetv2_ext.datasets.wording import listed
from nnunetv2_ext.errors import UserError

Classes = Mapping[int, str]
_REMEDY = "name the classes (-labels)"


def classes_of_labels(folder: Path, labels: Sequence[BidsFile]) -> dict[Path, Classes | None]:
    """For each label map the names of its values, None where no table gives any.

    By BIDS's principle of inheritance: a table is for the label maps in its folder and below that have all entities of
    its name, and the nearest one counts (https://bids-specification.readthedocs.io, "The Inheritance Principle").

    Args:
        folder: of the pipeline.
        labels: in it.

    Raises:
        UserError: tables are there, but which one is meant cannot be told; a table cannot be read.
    """
    in_folder: dict[Path, list[Path]] = {}
    read: dict[Path, Classes] = {}
    found: dict[Path, Classes | None] = {}
    for label in labels:
        chain = [parent for parent in label.path.parents if parent == folder or folder in parent.parents]
        for directory in chain:
            if directory not in in_folder:
                in_folder[directory] = sorted(directory.glob("*dseg.tsv"))
        table = _table_of(label, [in_folder[directory] for directory in chain], folder)
        if table is not None and table not in read:
            read[table] = _read_table(table)
        found[label.path] = read[table] if table is not None else None
    return found


def names_in_order(classes: Sequence[Classes | None]) -> tuple[str, ...]:
    """All names, those of the smallest values first."""
    pairs = {pair: None for of_case in classes for pair in (of_case or {}).items()}
    return tuple(dict.fromkeys(name for _, name in sorted(pairs, key=lambda pair: pair[0])))


def remarks_on_names(tables: Sequence[Classes | None]) -> list[str]:
    """A line about the names that a table gives to several values, which become one class."""
    values: dict[str, dict[int, None]] = {}
    for classes in tables:
        names = Counter((classes or {}).values())
        for value, name in (classes or {}).items():
            if names[name] > 1 and name != BACKGROUND:
                values.setdefault(name, {})[value] = None
    if not values:
        return []
    twice = "; ".join(f"{name}: {listed(sorted(of_name))}" for name, of_name in values.items())
    return [f"dseg.tsv gives one name to several indices, which become one class ({twice})"]


def _table_of(label: BidsFile, chain: Sequence[Sequence[Path]], folder: Path) -> Path | None:
    for tables in chain:
        of_tables = {table: entities_of(table.name) for table in tables}
        fitting = [t for t, entities in of_tables.items() if entities.items() <= label.entities.items()]
        closest = [t for t in fitting if len(of_tables[t]) == max(len(of_tables[other]) for other in fitting)]
        if len(closest) > 1:
            names = listed([table.name for table in closest])
            raise UserError(f"{closest[0].parent} has {names}, which are all for {label.name}: {_REMEDY}")
        if closest:
            return closest[0]
    if others := [table.name for tables in chain for table in tables]:
        raise UserError(f"{folder} has {listed(others)}, but no table for {label.name} by its entities: {_REMEDY}")
    return None


def _read_table(table: Path) -> Classes:
    found: dict[int, str] = {}
    for place, row in rows(table, ["index", "name"]):
        if not row["index"].isdecimal():
            raise UserError(f"{table.parent / place}: the index is {row['index']!r}, where a whole number is needed")
        if not row["name"] or int(row["index"]) in found:
            what = "two names" if row["name"] else "no name"
            raise UserError(f"{table.parent / place}: the index {row['index']} has {what}")
        found[int(row["index"])] = row["name"]
    return {value: BACKGROUND if value == 0 else name for value, name in found.items()}
