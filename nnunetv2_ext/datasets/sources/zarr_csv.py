"""`zarr-csv`: tables of crops out of Zarr arrays, with a mask for each, as 3D microscopy is fine-tuned on."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case, Collection, case_name, choose_channel_names
from nnunetv2_ext.datasets.sources.tables import rows
from nnunetv2_ext.datasets.splits import split_by_part_or_subject
from nnunetv2_ext.datasets.volumes.array_files import NpyFile
from nnunetv2_ext.datasets.volumes.zarr_crop import ZarrCrop, open_array
from nnunetv2_ext.errors import UserError

COLUMNS = ("ID", "corner", "source", "ref_channel", "channel", "crop_size")
CHANNEL_NAMES = ("reference", "signal")
_SPARED = {
    "ref_channel": "not needed with --no_ref",
    "channel": "not needed with --no_ref, where arrays have no axis of channels",
}

Triple = tuple[int, int, int]


def read_zarr_csv(
    root: Path,
    *,
    reference: bool = True,
    classes: Mapping[int, str] | None = None,
    channel_names: Sequence[str] | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> Collection:
    """The cases of `train.csv`, and of `val.csv` and `test.csv` where there are any.

    Args:
        root: with these tables, and a folder `train` (`val`, `test`) with the masks, `{ID}_mask.npy`.
        reference: take `ref_channel` as channel 0 and `channel` as channel 1; else `channel` alone, or the whole of an
            array without channels where that is empty.
        classes: the names of the masks' values; None: each value is a class.
        channel_names: None: `CHANNEL_NAMES`.
        spacing: along the array's three axes of space, where its metadata do not say it.

    Raises:
        UserError: there is no `train.csv` or no row in it, a column is missing, the metadata name different units,
            more or fewer channel names than channels.
    """
    if root.is_file():
        raise UserError(f"{root} is a file: give the folder that it is in, with train.csv and the masks")
    names = choose_channel_names(channel_names, CHANNEL_NAMES if reference else CHANNEL_NAMES[1:])
    cases: list[Case] = []
    for part in (TRAIN, VAL, TEST):
        table = root / f"{part}.csv"
        if part == TRAIN or table.is_file():
            cases += _read_part(root, part, table, reference, classes, spacing)
        if not cases:
            raise UserError(f"{table} has no rows: it names the crops to train with")
    units = _units(cases)
    if len(units) > 1:
        raise UserError(f"the spacings of the arrays are in different units ({', '.join(units)}): import them apart")
    return Collection(
        tuple(cases),
        names,
        tuple((classes or {}).values()),
        splits=split_by_part_or_subject(cases, root),
        remarks=tuple(f"the spacing is in {unit}s, as the OME metadata have it" for unit in units),
        described={"spacing_unit": units[0]} if units else {},
        to_rename="give each row an ID of its own",
    )


def _read_part(
    root: Path,
    part: str,
    table: Path,
    reference: bool,
    classes: Mapping[int, str] | None,
    spacing: tuple[float, float, float] | None,
) -> list[Case]:
    found = list(rows(table, COLUMNS if reference else [c for c in COLUMNS if c not in _SPARED], _SPARED))
    ids = Counter(_normal(row["ID"]) for _, row in found)
    masks = _masks(root / part)
    cases = []
    for place, row in found:
        problems: list[str] = []
        identifier = _normal(row["ID"])
        if not identifier.isdecimal():
            problems.append(f"the ID {row['ID']!r} is no whole number")
        elif ids[identifier] > 1:
            times = f"stands {ids[identifier]} times in {table.name}"
            problems.append(f"the ID {identifier} {times}: give each row its own")
        corner, size = (_triple(column, row[column], problems) for column in ("corner", "crop_size"))
        channels: list[int | None]
        if not reference and not row.get("channel"):
            channels = [None]
        else:
            named = ("ref_channel", "channel") if reference else ("channel",)
            channels = [_index(column, row[column], problems) for column in named]
        source = row["source"]
        if not source:
            problems.append("source is empty")
        elif "://" not in source:
            source = str((root / os.path.expanduser(source)).absolute())
        label = _mask(root / part, row["ID"], masks.get(identifier, []), problems)
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
                classes=classes,
                problems=tuple(problems),
            )
        )
    return cases


def _normal(identifier: str) -> str:
    """`7` for `7`, `007` and pandas' `7.0`."""
    plain = re.sub(r"\.0+$", "", identifier)
    return str(int(plain)) if plain.isdecimal() else plain


def _masks(folder: Path) -> dict[str, list[Path]]:
    """The masks of each ID: pandas takes zeros off IDs that names of files keep."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*_mask.npy")):
        found.setdefault(_normal(path.name.removesuffix("_mask.npy")), []).append(path)
    return found


def _mask(folder: Path, identifier: str, found: Sequence[Path], problems: list[str]) -> Path:
    """The mask of an ID. Two are a problem even if one is called just like it: `7` and `07` are the same number."""
    if not found:
        return folder / f"{identifier}_mask.npy"
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        problems.append(f"{names} may be the mask of the ID {identifier}: remove one")
    return found[0]


def _triple(column: str, text: str, problems: list[str]) -> Triple:
    """Three whole numbers in whatever brackets, as `[1 2 3]` or `(np.int64(1), ...)`; one for three that are equal."""
    plain = re.sub(r"[A-Za-z_][\w.]*(?=[(\[])|[()\[\]{}'\"]", " ", text)
    parts = re.split(r"[\s,;x]+", plain.strip(",; \n"))
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
        hint = "" if text else " (arrays without an axis of channels are imported with --no_ref)"
        problems.append(f"{column} is {text!r}, where the index of a channel is needed{hint}")
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
