"""`bids`: images of a BIDS dataset with label maps in its derivatives."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_ext.datasets.collection import TRAIN, Case, Collection, case_name
from nnunetv2_ext.datasets.sources.tables import rows
from nnunetv2_ext.datasets.splits import split_by_subject
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.errors import UserError

_EXTENSIONS = (".nii.gz", ".nii")
_NOT_DATA = ("derivatives", "sourcedata", "code", "stimuli", "models", re.compile(r"/\."))
"""Folders of a dataset that are not part of it (pybids's own list goes where one gives it another)."""
_SHARED = ("subject", "session", "run", "acquisition", "datatype")
"""Entities in which a label map, or another channel, must not differ from an image, as far as it has them."""


@dataclass(frozen=True)
class BidsQuery:
    """Which files of a dataset are meant.

    Attributes:
        suffixes: of the images (`T1w`), one for each channel.
        label_suffix: of the label maps: `dseg` or `mask`.
        derivatives: folder of the pipeline with the label maps, from `derivatives/` or absolute; None if there is one.
        subjects: without `sub-`; empty: all.
        sessions: without `ses-`; empty: all.
        entities: more that images must have (`acq: highres`), in BIDS's short names.
        label_entities: more that label maps must have (`desc: manual`).
    """

    suffixes: tuple[str, ...] = ("T1w",)
    label_suffix: str = "dseg"
    derivatives: str | None = None
    subjects: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    entities: Mapping[str, str] | None = None
    label_entities: Mapping[str, str] | None = None


def read_bids(root: Path, query: BidsQuery, classes: Mapping[int, str] | None = None) -> Collection:
    """One case for each subject, session and run that has the images asked for.

    Args:
        root: of the dataset, with `dataset_description.json`.
        query: which images, and which label maps.
        classes: the names of the label maps' values; None: those of the `_dseg.tsv` beside the label maps (columns
            `index` and `name`), or of no table each value is a class.

    Raises:
        UserError: no BIDS dataset, no image or label map like this, a subject that does not exist.
    """
    images = _layout(root)
    folder = _derivatives(root, query.derivatives)
    labels = _layout(folder, derivative=True)
    _check_filters(images, query)
    names = _class_table(folder) if classes is None and query.label_suffix == "dseg" else classes
    first = _files(images, query.suffixes[0], query, query.entities)
    others = [_files(images, suffix, query, query.entities) for suffix in query.suffixes[1:]]
    of_labels = _files(labels, query.label_suffix, query, query.label_entities)
    if not first:
        raise UserError(f"{root} has no image that ends in _{query.suffixes[0]}.nii.gz as asked for")
    if not of_labels:
        raise UserError(f"{folder} has no label map that ends in _{query.label_suffix}.nii.gz as asked for")
    cases = [_case(root.absolute(), image, others, of_labels, query, names) for image in first]
    return Collection(tuple(cases), tuple(query.suffixes), tuple((names or {}).values()), split_by_subject(cases))


def _case(
    root: Path, image: Any, others: Sequence[Sequence[Any]], labels: Sequence[Any], query: BidsQuery,
    classes: Mapping[int, str] | None,
) -> Case:  # fmt: skip
    entities = image.get_entities()
    problems: list[str] = []
    channels = [image]
    for files, suffix in zip((*others, labels), (*query.suffixes[1:], query.label_suffix), strict=True):
        channels += _partner(entities, files, suffix, problems)
    volumes = [] if problems else [volume_at(Path(file.path)) for file in channels]
    return Case(
        name=case_name(_stem(image.filename, query.suffixes[0])),
        row=Path(image.path).relative_to(root).as_posix(),
        subject=str(entities["subject"]),
        part=TRAIN,
        images=tuple(volumes[:-1]),
        label=volumes[-1] if volumes else None,
        classes=classes,
        problems=tuple(problems),
    )


def _layout(folder: Path, *, derivative: bool = False) -> Any:
    try:
        from bids import BIDSLayout, BIDSLayoutIndexer
    except ImportError as error:
        raise UserError('BIDS datasets need pybids: pip install "nnunetv2-ext[datasets]"') from error
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if not derivative and not (folder / "dataset_description.json").is_file():
        raise UserError(f"{folder} is no BIDS dataset: it has no dataset_description.json")
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=list(_NOT_DATA))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BIDSLayout(folder, validate=False, indexer=indexer, config=["bids", "derivatives"])


def _derivatives(root: Path, wanted: str | None) -> Path:
    base = root / "derivatives"
    if wanted is not None:
        folder = base / wanted
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder} (-derivatives)")
        return folder
    pipelines = sorted(p for p in base.glob("[!.]*") if p.is_dir())
    if not pipelines:
        raise UserError(f"{base} has no pipeline with label maps")
    if any(p.name.startswith("sub-") for p in pipelines):
        return base
    if len(pipelines) > 1:
        raise UserError(f"{base} has {', '.join(p.name for p in pipelines)}: say which has the labels (-derivatives)")
    return pipelines[0]


def _check_filters(layout: Any, query: BidsQuery) -> None:
    for what, wanted, known in (
        ("subject", query.subjects, layout.get_subjects()),
        ("session", query.sessions, layout.get_sessions()),
    ):
        if absent := [value for value in wanted if value not in known]:
            raise UserError(f"{layout.root} has no {what} {absent[0]}; it has {', '.join(known) or 'none'}")


def _files(layout: Any, suffix: str, query: BidsQuery, more: Mapping[str, str] | None) -> list[Any]:
    filters: dict[str, Any] = {"suffix": suffix, "extension": list(_EXTENSIONS)}
    if query.subjects:
        filters["subject"] = list(query.subjects)
    if query.sessions:
        filters["session"] = list(query.sessions)
    found = sorted(layout.get(**filters), key=lambda file: file.path)
    of_subjects = [file for file in found if "subject" in file.get_entities()]  # a template has none
    return [file for file in of_subjects if all(f"_{k}-{v}_" in f"_{file.filename}" for k, v in (more or {}).items())]


def _partner(entities: Mapping[str, Any], files: Sequence[Any], suffix: str, problems: list[str]) -> list[Any]:
    """The one file of the same subject and session that differs in no other entity either, as far as it has them."""
    fitting = []
    for file in files:
        own = file.get_entities()
        if all(own.get(key) == entities.get(key) for key in ("subject", "session")) and all(
            own.get(key, entities.get(key)) == entities.get(key) for key in _SHARED
        ):
            fitting.append(file)
    if len(fitting) > 1:  # of those that fit, one may have the very same entities
        alike = [f for f in fitting if all(f.get_entities().get(key) == entities.get(key) for key in _SHARED)]
        fitting = alike or fitting
    if not fitting:
        problems.append(f"there is no file with suffix {suffix} for it")
    elif len(fitting) > 1:
        names = ", ".join(file.filename for file in fitting[:3])
        problems.append(f"{len(fitting)} files with suffix {suffix} fit it: {names}; choose by entities")
    return fitting[:1]


def _stem(filename: str, suffix: str) -> str:
    return re.sub(rf"_{re.escape(suffix)}\.nii(\.gz)?$", "", filename)


def _class_table(folder: Path) -> dict[int, str] | None:
    """Of BIDS's lookup table for all label maps of a pipeline; None if there is none."""
    tables = sorted(folder.glob("*dseg.tsv"))
    if not tables:
        return None
    if len(tables) > 1:
        raise UserError(f"{folder} has the tables {', '.join(t.name for t in tables)}: name the classes (-labels)")
    found: dict[int, str] = {}
    for place, row in rows(tables[0], ["index", "name"]):
        if not row["index"].isdecimal():
            raise UserError(f"{tables[0]}, {place}: the index is {row['index']!r}, where a whole number is needed")
        if not row["name"] or int(row["index"]) in found:
            what = "two names" if row["name"] else "no name"
            raise UserError(f"{tables[0]}, {place}: the index {row['index']} has {what}")
        found[int(row["index"])] = row["name"]
    return {value: "background" if value == 0 else name for value, name in found.items()}


def parse_entities(texts: Sequence[str]) -> dict[str, str]:
    """`{"acq": "highres"}` for `acq=highres`. Raises UserError for a text of another form."""
    entities = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[a-z]+", key) or not re.fullmatch(r"[A-Za-z0-9]+", value):
            raise UserError(f"an entity is KEY=VALUE in BIDS's short names, such as acq=highres, not {text!r}")
        entities[key] = value
    return entities
