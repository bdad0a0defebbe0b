"""`csv`: a table with the paths of images and labels, and the part of each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.datasets.collection import TEST, TRAIN, VAL, Case, Collection, case_name
from nnunetv2_ext.datasets.sources.tables import rows
from nnunetv2_ext.datasets.splits import split_by_part, split_by_subject
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.datasets.volumes.volume import Volume
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
        images: one for each channel.
        label: of label maps; an empty cell is allowed in test cases.
        split: of the part: train, val or test; None: all are training cases.
        case: of the case's name; None: it is that of the first image's file or folder.
        subject: whose cases are never divided; None: every case is its own.
    """

    images: tuple[str, ...] = ("image",)
    label: str = "label"
    split: str | None = None
    case: str | None = None
    subject: str | None = None


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
        channel_names: None: the columns' names.
        spacing: (z, y, x), of files that do not say it.

    Raises:
        UserError: no such table or column, more or fewer channel names than columns.
    """
    base = root if root is not None else table.absolute().parent
    if channel_names and len(channel_names) != len(columns.images):
        of_columns = f"{len(columns.images)} columns of images ({', '.join(columns.images)})"
        raise UserError(f"there are {len(channel_names)} channel names ({', '.join(channel_names)}) for {of_columns}")
    optional = [name for name in (columns.split, columns.case, columns.subject) if name is not None]
    cases = []
    for place, row in rows(table, [*columns.images, columns.label, *optional]):
        problems: list[str] = []
        images = [_volume(column, row[column], base, spacing, problems) for column in columns.images]
        part = _part(row, columns.split, problems)
        has_label = bool(row[columns.label]) or part != TEST
        label = _volume(columns.label, row[columns.label], base, spacing, problems) if has_label else None
        given = row[columns.case] if columns.case is not None else _stem(row[columns.images[0]])
        name = case_name(given)
        if not name:
            problems.append(f"{columns.case or columns.images[0]} is empty" if not given else f"{given!r} is no name")
        cases.append(
            Case(
                name=name or place,
                row=place,
                subject=(row[columns.subject] if columns.subject is not None else "") or given or place,
                part=part,
                images=tuple(volume for volume in images if volume is not None) if not problems else (),
                label=label if not problems else None,
                classes=classes,
                problems=tuple(problems),
            )
        )
    splits = split_by_part(cases)
    if splits is None:
        splits = split_by_subject(cases)
    return Collection(tuple(cases), tuple(channel_names or columns.images), tuple((classes or {}).values()), splits)


def _volume(
    column: str, text: str, base: Path, spacing: tuple[float, float, float] | None, problems: list[str]
) -> Volume | None:
    if not text:
        problems.append(f"{column} is empty")
        return None
    path = base / text
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
