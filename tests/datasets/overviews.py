"""Cases that nobody reads, and what might have been found in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_ext.datasets.checking import Finding
from nnunetv2_ext.datasets.collection import TRAIN, Case, Collection
from nnunetv2_ext.datasets.volumes.array_files import NpyFile
from nnunetv2_ext.datasets.volumes.volume import Geometry

_FILE = NpyFile(Path("/nowhere.npy"))
_GEOMETRY = Geometry((8, 7, 6), (0.5, 1.25, 2.0))


def case(
    name: str,
    *,
    part: str = TRAIN,
    subject: str = "",
    classes: Mapping[int, str] | None = None,
    label: NpyFile | None = _FILE,
    **more: Any,
) -> Case:
    """A case of its own subject, unless one is given."""
    return Case(name, f"table.csv, line {name}", subject or name, part, (_FILE,), label, classes, **more)


def collection_of(*cases: Case, **more: Any) -> Collection:
    return Collection(cases, ("image",), **more)


def found_in(name: str, *values: int) -> Finding:
    return Finding(name, _GEOMETRY, values=values)
