"""`csv`: a table with the paths of images and labels, and the part of each case."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case, Collection, case_name, choose_channel_names
from nnunetv2_ext.datasets.sources.tables import rows
from nnunetv2_ext.datasets.splits import split_by_part_or_subject
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.datasets.volumes.volume import File
from nnunetv2_ext.errors import UserError

_PARTS = {
    **dict.fromkeys(("train", "training", "tr"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing", "ts"), TEST),
}


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns.

    Attributes:
        images: one for each channel: a column, or a path with columns in braces (`ct/{uuid}.nii.gz`).
        label: of label maps, likewise; an empty cell is allowed in test cases.
        split: of the part: train, val or test; None: all are training cases.
        case: of the case's name; None: it is that of the first image's file or folder.
        subject: whose cases are never divided; None: every case is its own.
    """

    images: tuple[str, ...] = ("image",)
    label: str = "label"
    split: str | None = None
    case: str | None = None
    subject: str | None = None

    @property
    def flags(self) -> dict[str, str]:
        """What chooses each column, in the order of the flags."""
        chosen = [(column, "-images") for image in self.images for column in _columns_in(image)]
        chosen += [(column, "-label") for column in _columns_in(self.label)]
        others = ((self.split, "-split"), (self.case, "-case"), (self.subject, "-subject"))
        return dict([*chosen, *((column, flag) for column, flag in others if column is not None)])


def read_csv_table(
    table: Path,
    columns: Columns,
    *,
    root: Path | None = None,
    classes: Mapping[int, str] | None = None,
    channel_names: Sequence[str] | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> Collection:
    """The cases of a table, one for each row.

    Args:
        table: CSV or TSV with a header.
        columns: what they are called.
        root: that relative paths are meant from; None: the table's folder.
        classes: the names of the label maps' values; None: each value is a class.
        channel_names: None: the columns' names; `image`, or `image_0` and so on, for paths with columns in braces.
        spacing: (z, y, x), of files that do not say it.

    Raises:
        UserError: no such table, column or root, no row, more or fewer channel names than columns.
    """
    base = table.absolute().parent if root is None else Path(os.path.expanduser(root))
    if root is not None and not base.is_dir():
        raise UserError(f"there is no folder {base} (-root)")
    names = choose_channel_names(channel_names, _usual_channel_names(columns.images))
    cases = []
    for place, row in rows(table, list(columns.flags), columns.flags):
        problems: list[str] = []
        images = [_volume(column, row, base, spacing, problems) for column in columns.images]
        part = _part(row, columns.split, problems)
        has_label = bool(_cell(row, columns.label)) or part != TEST
        label = _volume(columns.label, row, base, None, problems) if has_label else None  # it has its image's spacing
        if label is not None and any(image is not None and image.path == label.path for image in images):
            problems.append(f"{label.path} is its image and its label: correct one (-images, -label)")
        given = row[columns.case] if columns.case is not None else _stem(_cell(row, columns.images[0]))
        name = case_name(given)
        if not name:
            problems.append(f"{columns.case or columns.images[0]} is empty" if not given else f"{given!r} is no name")
        subject = given if columns.subject is None else row[columns.subject]
        if not subject and columns.subject is not None:
            problems.append(f"{columns.subject} is empty: say which subject it is (-subject)")
        cases.append(
            Case(
                name=name or place,
                row=place,
                subject=subject or place,
                part=part,
                images=tuple(volume for volume in images if volume is not None) if not problems else (),
                label=label if not problems else None,
                classes=classes,
                problems=tuple(problems),
            )
        )
    if not cases:
        raise UserError(f"{table} has no rows below its header: give each case one")
    splits = split_by_part_or_subject(cases, f"{table} ({columns.split})")
    to_rename = (
        "give names in a column (-case COLUMN)"
        if columns.case is None
        else f"give each case a name of its own in {columns.case} (-case)"
    )
    return Collection(tuple(cases), names, tuple((classes or {}).values()), splits, to_rename=to_rename)


def _columns_in(text: str) -> list[str]:
    """`["uuid"]` for `ct/{uuid}.nii.gz`, and for `uuid`."""
    return re.findall(r"\{([^{}]+)\}", text) or [text]


def _cell(row: Mapping[str, str], column: str) -> str:
    """The value of a column, or a path with those of the columns in braces; nothing where one of these is empty."""
    if column in row:
        return row[column]
    return re.sub(r"\{([^{}]+)\}", lambda m: row[m[1]], column) if all(row[c] for c in _columns_in(column)) else ""


def _usual_channel_names(images: Sequence[str]) -> tuple[str, ...]:
    paths = [image for image in images if _columns_in(image) != [image]]
    return tuple(
        image if image not in paths else "image" if len(images) == 1 else f"image_{i}" for i, image in enumerate(images)
    )


def _volume(
    column: str, row: Mapping[str, str], base: Path, spacing: tuple[float, float, float] | None, problems: list[str]
) -> File | None:
    text = _cell(row, column)
    if not text:
        problems.append(f"{column} is empty")
        return None
    path = base / os.path.expanduser(text)
    if not path.exists():
        problems.append(f"there is no file {path} ({column})")
        return None
    try:
        return volume_at(path, spacing)
    except UserError as error:
        problems.append(str(error))
        return None


def _part(row: Mapping[str, str], column: str | None, problems: list[str]) -> str:
    if column is None:
        return TRAIN
    part = _PARTS.get(row[column].lower())
    if part is None:
        problems.append(f"{column} is {row[column]!r}, where train, val or test is meant")
    return part or TRAIN


def _stem(path: str) -> str:
    """A file's name without its endings, a folder's name whole."""
    name = Path(path).name
    for ending in (".gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".gipl", ".tiff", ".tif", ".npy"):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name
