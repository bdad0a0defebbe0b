"""`zarr-csv`: tables of crops out of Zarr arrays, with a mask for each, as 3D microscopy is fine-tuned on."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case, Collection, case_name
from nnunetv2_ext.datasets.sources.tables import rows
from nnunetv2_ext.datasets.splits import split_by_part
from nnunetv2_ext.datasets.volumes.array_files import NpyFile
from nnunetv2_ext.datasets.volumes.zarr_crop import ZarrCrop, open_array
from nnunetv2_ext.errors import UserError

COLUMNS = ("ID", "corner", "source", "ref_channel", "channel", "crop_size")
CHANNEL_NAMES = ("reference", "signal")

Triple = tuple[int, int, int]


def read_zarr_csv(
    root: Path, *, reference: bool = True, spacing: tuple[float, float, float] | None = None
) -> Collection:
    """The cases of `train.csv`, and of `val.csv` and `test.csv` where there are any.

    Args:
        root: with these tables, and a folder `train` (`val`, `test`) with the masks, `{ID}_mask.npy`.
        reference: take `ref_channel` as channel 0 and `channel` as channel 1; else `channel` alone.
        spacing: along the array's three axes of space, where its metadata do not say it.

    Raises:
        UserError: there is no `train.csv`, a column is missing, the metadata name different units.
    """
    cases: list[Case] = []
    for part in (TRAIN, VAL, TEST):
        table = root / f"{part}.csv"
        if part == TRAIN or table.is_file():
            cases += _read_part(root, part, table, reference, spacing)
    names = CHANNEL_NAMES if reference else CHANNEL_NAMES[1:]
    units = _units(cases)
    if len(units) > 1:
        raise UserError(f"the spacings of the arrays are in different units ({', '.join(units)}): import them apart")
    return Collection(
        tuple(cases),
        names,
        splits=split_by_part(cases),
        remarks=tuple(f"the spacing is in {unit}s, as the OME metadata have it" for unit in units),
        described={"spacing_unit": units[0]} if units else {},
    )


def _read_part(
    root: Path, part: str, table: Path, reference: bool, spacing: tuple[float, float, float] | None
) -> list[Case]:
    needed = COLUMNS if reference else tuple(column for column in COLUMNS if column != "ref_channel")
    found = list(rows(table, needed))
    ids = Counter(_normal(row["ID"]) for _, row in found)
    cases = []
    for place, row in found:
        problems: list[str] = []
        identifier = _normal(row["ID"])
        if not identifier.isdecimal():
            problems.append(f"the ID {row['ID']!r} is no whole number")
        elif ids[identifier] > 1:
            problems.append(f"the ID {identifier} stands {ids[identifier]} times in {table.name}")
        corner, size = (_triple(column, row[column], problems) for column in ("corner", "crop_size"))
        channels = [_index(c, row[c], problems) for c in (("ref_channel",) if reference else ()) + ("channel",)]
        source = row["source"]
        if not source:
            problems.append("source is empty")
        elif "://" not in source:
            source = str((root / source).absolute())
        label = root / part / f"{row['ID']}_mask.npy"
        if not label.is_file():
            label = root / part / f"{identifier}_mask.npy"
        has_label = part != TEST or label.is_file()
        volumes = tuple(ZarrCrop(source, channel, corner, size, spacing) for channel in channels)
        cases.append(
            Case(
                name=case_name(part, identifier.zfill(5)),
                row=place,
                subject=place if problems else f"{part} {identifier}",
                part=part,
                images=() if problems else volumes,
                label=NpyFile(label.absolute()) if has_label and not problems else None,
                problems=tuple(problems),
            )
        )
    return cases


def _normal(identifier: str) -> str:
    """`7` for `7`, `007` and pandas' `7.0`."""
    plain = re.sub(r"\.0+$", "", identifier)
    return str(int(plain)) if plain.isdecimal() else plain


def _triple(column: str, text: str, problems: list[str]) -> Triple:
    """Three whole numbers in whatever brackets; one for three that are equal."""
    parts = re.split(r"[\s,;]+", text.strip("()[]{},; "))
    values = [int(float(part)) for part in parts if re.fullmatch(r"-?\d+(\.0*)?", part)]
    if column == "crop_size" and len(values) == len(parts) == 1:
        values, parts = values * 3, parts * 3
    if not len(values) == len(parts) == 3:
        problems.append(f"{column} is {text!r}, where three whole numbers are needed")
        return 0, 0, 0
    return values[0], values[1], values[2]


def _index(column: str, text: str, problems: list[str]) -> int:
    plain = re.sub(r"\.0+$", "", text)
    if not plain.isdecimal():
        problems.append(f"{column} is {text!r}, where the index of a channel is needed")
        return 0
    return int(plain)


def _units(cases: list[Case]) -> list[str]:
    """The units of the spacings in the metadata; arrays that cannot be opened are a matter of their cases."""
    units = set()
    for source in {v.source for case in cases for v in case.images if isinstance(v, ZarrCrop)}:
        try:
            units.add(open_array(source)[1].unit)
        except UserError:
            continue
    return sorted(unit for unit in units if unit)
