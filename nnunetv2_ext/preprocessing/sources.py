"""The raw files that a case is made from: which they are, and whether they have changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import flush_to_disk, sha256
from nnunetv2_ext.nnunet_folders import raw_folder, read_json


@dataclass(frozen=True)
class RawCase:
    """A training case of the raw dataset: one image file per channel, and its label."""

    name: str
    images: tuple[Path, ...]
    label: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The images in order of their channels, then the label."""
        return (*self.images, self.label)


def raw_cases(dataset: str) -> tuple[dict[str, Any], list[RawCase]]:
    """A dataset's description and its training cases, as nnU-Net finds them.

    Raises:
        UserError: no raw data, no cases, or images without a label.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw = raw_folder(dataset)
    description = read_json(raw / "dataset.json")
    try:
        found = get_filenames_of_train_images_and_targets(str(raw), read_json(raw / "dataset.json"))
    except FileNotFoundError:  # no imagesTr
        found = {}
    cases = [RawCase(str(n), tuple(map(Path, files["images"])), Path(files["label"])) for n, files in found.items()]
    if not cases:
        raise UserError(f"{raw} has no training cases (imagesTr, labelsTr)")
    if unlabelled := [case for case in cases if not case.label.is_file()]:
        more = f" (nor for {len(unlabelled) - 1} more cases)" if len(unlabelled) > 1 else ""
        raise UserError(f"there is no label {unlabelled[0].label} for its images in imagesTr{more}")
    return description, cases


State = list[dict[str, Any]]
"""Of each of a case's files: name, size in bytes and time of modification in ns; in a record its sha256 too."""


def look_at(files: Sequence[Path]) -> State:
    """Name, size and time of files, without reading them."""
    stats = [(path.name, path.stat()) for path in files]
    return [{"file": name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for name, stat in stats]


def with_hashes(state: State, files: Sequence[Path]) -> State:
    """Add what the files hold, which a new time or another place does not change."""
    return [{**entry, "sha256": sha256(path)} for entry, path in zip(state, files, strict=True)]


@dataclass(frozen=True)
class Record:
    """What a preprocessed case was made from.

    Attributes:
        sources: the state of its files, with their hashes.
        labels: `labels` of the `dataset.json` at that time, which decide what its `class_locations` are.
        complete: False while the files of the case are being put in their place.
    """

    sources: State
    labels: Mapping[str, Any]
    complete: bool = True

    @classmethod
    def read(cls, folder: Path, case: str) -> Record | None:
        """Of a case in a folder; None where there is none: stock nnU-Net has preprocessed it, for example."""
        try:
            content = read_json(_record_file(folder, case))
            return cls(content["sources"], content["labels"], content["complete"])
        except (UserError, KeyError):
            return None

    def write(self, folder: Path, case: str, scratch: Path) -> None:
        """Whole or not at all; made in `scratch`, a folder of the caller's own on the same file system."""
        target = _record_file(folder, case)
        target.parent.mkdir(exist_ok=True)
        made = scratch / target.name
        content = {"complete": self.complete, "labels": self.labels, "sources": self.sources}
        made.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        flush_to_disk(made)
        os.replace(made, target)

    def has_times_of(self, state: State, labels: Mapping[str, Any]) -> bool:
        """Whether files with these names, sizes and times are, as far as can be told without reading them, the same."""
        known = [{k: v for k, v in entry.items() if k != "sha256"} for entry in self.sources]
        return self.complete and self.labels == labels and known == state

    def has_content_of(self, state: State, labels: Mapping[str, Any]) -> bool:
        """Whether files with these hashes hold the same."""
        hashes = [[entry["sha256"] for entry in entries] for entries in (self.sources, state)]
        return self.complete and self.labels == labels and hashes[0] == hashes[1]


def _record_file(folder: Path, case: str) -> Path:
    """Beside the folder of cases, since nnU-Net rejects strange files in it."""
    return folder.with_name(f"{folder.name}.sources") / f"{case}.json"
