"""What an importer has found: cases with their images, labels and parts. Nothing of it has been read yet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nnunetv2_ext.datasets.volumes.identity import identity
from nnunetv2_ext.datasets.volumes.volume import Volume
from nnunetv2_ext.datasets.wording import counted
from nnunetv2_ext.errors import UserError

TRAIN, VAL, TEST = "train", "val", "test"
BACKGROUND = "background"


@dataclass(frozen=True)
class Case:
    """One case of the dataset to be.

    Attributes:
        name: nnU-Net's, without channel and ending.
        row: where the source has it, for messages (`train.csv, line 3`).
        subject: the cases of one are never divided between training and validation.
        part: TRAIN, VAL (both are training cases of nnU-Net, told apart by the split) or TEST.
        images: one for each channel.
        label: None for a test case without.
        classes: of a label's values: the name of each, and `background` for what is left out. None: every value is a
            class of its own.
        merged: groups of class names that were annotated as the first of them; see the loss `marginal`.
        problems: why it cannot be imported, found without opening a file; empty if all is well.
        index: by which the source's own settings name it; None where they name no cases by number.
    """

    name: str
    row: str
    subject: str
    part: str
    images: tuple[Volume, ...] = ()
    label: Volume | None = None
    classes: Mapping[int, str] | None = None
    merged: tuple[tuple[str, ...], ...] = ()
    problems: tuple[str, ...] = ()
    index: int | None = None

    @property
    def title(self) -> str:
        """For messages: its name and where the source has it, which is said once where it has no name."""
        return self.name if self.name == self.row else f"{self.name} ({self.row})"


@dataclass(frozen=True)
class Collection:
    """All cases of a source.

    Attributes:
        cases: in the source's order.
        channel_names: one for each channel; nnU-Net chooses the normalization by them ("CT").
        class_names: those that exist whether a case has them or not, in the order of their numbers.
        splits: `splits_final.json`, if the source says which cases are for training and which for validation.
        remarks: what the user should know about how the source was understood.
        described: more for `dataset.json`.
        to_rename: what the user does about a name that stands twice.
    """

    cases: tuple[Case, ...]
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    splits: list[dict[str, list[str]]] | None = None
    remarks: tuple[str, ...] = ()
    described: Mapping[str, Any] = field(default_factory=dict)
    to_rename: str = "rename one"

    def checked(self) -> Collection:
        """With the problems that only all cases together show: a name twice, a subject or an image in two parts."""
        names = Counter(case.name for case in self.cases)
        # not all file systems tell `P1` and `p1` apart
        alike: dict[str, set[str]] = {}
        for name in names:
            alike.setdefault(name.lower(), set()).add(name)
        other_parts = _in_other_parts(self.cases)
        parts: dict[str, set[str]] = {}
        for case in self.cases:
            parts.setdefault(case.subject, set()).add(case.part)
        cases = []
        for case in self.cases:
            problems = list(case.problems)
            if names[case.name] > 1:
                problems.append(f"the name {case.name} stands {names[case.name]} times in the source: {self.to_rename}")
            if len(alike[case.name.lower()]) > 1:
                both = " and ".join(sorted(alike[case.name.lower()]))
                problems.append(f"the names {both} differ only in capital letters: {self.to_rename}")
            problems += _same_channels(case)
            if len(parts[case.subject]) > 1:
                problems.append(f"subject {case.subject} is in {' and in '.join(sorted(parts[case.subject]))}")
            elif (other := other_parts.get(id(case))) is not None:
                problems.append(
                    f"its image ({case.part}) is that of {other.name} too ({other.part}): remove one, or put both into "
                    "the same part"
                )
            if case.part != TEST and case.label is None and not case.problems:
                problems.append("has no label")
            cases.append(replace(case, problems=tuple(problems)))
        return replace(self, cases=tuple(cases))

    @property
    def training_cases(self) -> list[Case]:
        return [case for case in self.cases if case.part != TEST]


def _in_other_parts(cases: Sequence[Case]) -> dict[int, Case]:
    """For the cases (by `id`) whose first image is that of a case in another part: that case."""
    first: dict[Hashable, dict[str, Case]] = {}
    images = [(case, identity(case.images[0])) for case in cases if case.images]
    for case, image in images:
        first.setdefault(image, {}).setdefault(case.part, case)
    return {
        id(case): next(other for part, other in first[image].items() if part != case.part)
        for case, image in images
        if len(first[image]) > 1
    }


def _same_channels(case: Case) -> list[str]:
    """Problems with images that are two channels of a case."""
    channels: dict[Hashable, int] = {}
    problems = []
    for number, image in enumerate(case.images):
        other = channels.setdefault(identity(image), number)
        if other != number:
            problems.append(f"channels {other} and {number} are the same image, {image.where}: correct one")
    return problems


def choose_channel_names(given: Sequence[str] | None, usual: Sequence[str]) -> tuple[str, ...]:
    """The names that the user gives to the channels, if any; else `usual`.

    Raises:
        UserError: another number, or a name twice that chooses no normalization (two phases of `CT` are both that).
    """
    if given and len(given) != len(usual):
        channels = f"{counted(len(usual), 'channel')} ({', '.join(usual)})"
        names = f"{counted(len(given), 'name')} ({', '.join(given)})"
        raise UserError(f"-channels gives {names} for {channels}: give one for each")
    if twice := [name for name, number in Counter(given or ()).items() if number > 1]:
        from nnunetv2.preprocessing.normalization import map_channel_name_to_normalization as normalization  # slow

        if twice[0].casefold() not in normalization.channel_name_to_normalization_mapping:
            raise UserError(f"-channels gives the name {twice[0]} to two channels: give each its own")
    return tuple(given or usual)


def case_name(*parts: object) -> str:
    """A name that nnU-Net and all file systems take: parts joined by `_`, with `-` for letters that some do not.

    Names are told apart by `Collection.checked`, should two become one.
    """
    names = (re.sub(r"[^A-Za-z0-9._-]+", "-", str(part)).strip("-._") for part in parts)
    return "_".join(name for name in names if name)
