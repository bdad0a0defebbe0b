"""Which file of a BIDS dataset belongs to which image: another channel of it, or its label map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_ext.datasets.sources.bids_files import ABSENT, BidsFile
from nnunetv2_ext.datasets.wording import listed

_VISIT = ("sub", "ses")
_PARTS = ("run", "sample", "chunk", "split")
"""Entities that tell scans apart which are alike otherwise: two values are two scans, not two ways to acquire one."""
_SOURCE = (*_PARTS, "acq", "ce", "datatype", "dir", "echo", "flip", "inv", "mod", "mt", "nuc", "part", "proc", "rec",
           "stain", "task", "trc", "voi")  # fmt: skip
"""Entities that a label map has from the image that it was drawn on. Others (`desc`, `seg`, `res`) are its own."""


@dataclass(frozen=True)
class Wanted(ABC):
    """What is looked for to an image.

    Attributes:
        conditions: entities that it must have; in these it need not be like the image.
        alike: for some entities, values that say no more than that it is like the image (`space`: `orig`).
    """

    conditions: Mapping[str, str] = field(default_factory=dict)
    alike: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    @abstractmethod
    def what(self) -> str:
        """For messages."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What the user does where there is none."""

    @abstractmethod
    def flag(self, conditions: Mapping[str, str]) -> str:
        """What the user writes to have the one with these entities."""

    @abstractmethod
    def counts(self, key: str) -> bool:
        """Whether an entity is compared."""

    @abstractmethod
    def forbids(self, key: str, of_image: str | None, of_file: str | None) -> bool:
        """Whether a file that differs from an image in an entity cannot belong to it."""

    def value(self, file: BidsFile, key: str) -> str | None:
        """Of an entity, as it is compared."""
        value = file.entities.get(key)
        return None if value in self.alike.get(key, ()) else value

    def differing(self, image: BidsFile, file: BidsFile) -> list[str]:
        """The entities in which a file differs from an image of the same subject and session, as far as they count."""
        keys = [key for key in _keys(image, file) if self.counts(key)]
        if "datatype" not in image.entities or "datatype" not in file.entities:  # not all have a folder for it
            keys = [key for key in keys if key != "datatype"]
        return [key for key in keys if self.value(image, key) != self.value(file, key)]

    def free(self, image: BidsFile, file: BidsFile) -> list[str]:
        """The entities in which they differ although the user has not asked for that."""
        return [key for key in self.differing(image, file) if key not in self.conditions]

    def obstacles(self, image: BidsFile, file: BidsFile) -> list[str]:
        """Those that keep a file from belonging to an image."""
        return [
            key for key in self.free(image, file) if self.forbids(key, self.value(image, key), self.value(file, key))
        ]

    def rank(self, image: BidsFile, file: BidsFile) -> tuple[int, int, int]:
        """How well a file fits that has no obstacle: fewest entities of another value, most shared, fewest absent."""
        free = self.free(image, file)
        other = sum(self.value(image, key) is not None and self.value(file, key) is not None for key in free)
        shared = sum(file.entities.get(key) == value for key, value in image.entities.items())
        return -other, shared, -len(free)


@dataclass(frozen=True)
class WantedImage(Wanted):
    """A channel; `given` are the conditions that the user wrote to its suffix."""

    suffix: str = "T1w"
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def what(self) -> str:
        return f"{self.suffix} image"

    @property
    def remedy(self) -> str:
        return "add it, or choose the subjects and sessions that have one (-sub, -ses)"

    def flag(self, conditions: Mapping[str, str]) -> str:
        return f"-suffix {self.suffix}:{','.join(texts({**self.given, **conditions}))}"

    def counts(self, key: str) -> bool:
        return True

    def forbids(self, key: str, of_image: str | None, of_file: str | None) -> bool:
        return key == "space" or (key in _PARTS and of_image is not None and of_file is not None)


@dataclass(frozen=True)
class WantedLabel(Wanted):
    """A label map."""

    @property
    def what(self) -> str:
        return "label map"

    @property
    def remedy(self) -> str:
        return "-unlabelled skip leaves such images out, -unlabelled test makes them test cases"

    def flag(self, conditions: Mapping[str, str]) -> str:
        return f"-label_entities {' '.join(texts({**self.conditions, **conditions}))}"

    def counts(self, key: str) -> bool:
        return key in _SOURCE or key == "space"

    def forbids(self, key: str, of_image: str | None, of_file: str | None) -> bool:
        return key == "space" or of_file is not None


@dataclass(frozen=True)
class Match:
    """What was found to an image.

    Attributes:
        file: that belongs to it; None if there is none or more than one.
        differing: entities in which it differs although nothing asks for that.
        problem: why there is none; empty if there is one.
        absent: whether there is none, rather than several.
        reason: why what lies near it is not it; empty if nothing does.
    """

    file: BidsFile | None = None
    differing: tuple[str, ...] = ()
    problem: str = ""
    absent: bool = False
    reason: str = ""


def match_files(
    images: Sequence[BidsFile], files: Sequence[BidsFile], wanted: Wanted, of_image: WantedImage
) -> list[Match]:
    """What belongs to each image, in their order.

    Of the files of an image's subject and session that are not forbidden the one that fits best does. One file is not
    given to two images: it belongs to the one that has its very entities; if there is no such one, nothing is guessed.

    Args:
        images: first channels.
        files: that fulfil the conditions.
        wanted: the rules for them.
        of_image: how the images were chosen, for messages.
    """
    visits: dict[tuple[str, str | None], list[BidsFile]] = {}
    for file in files:
        visits.setdefault(file.visit, []).append(file)
    best = [_best(image, visits.get(image.visit, ()), wanted) for image in images]
    claims: dict[Path, list[BidsFile]] = {}
    for image, fitting in zip(images, best, strict=True):
        for file in fitting if len(fitting) == 1 else ():
            claims.setdefault(file.path, []).append(image)
    matches = []
    for image, fitting in zip(images, best, strict=True):
        if len(fitting) > 1:
            matches.append(Match(problem=f"{len(fitting)} {wanted.what}s fit it, {_choice(fitting, wanted)}"))
        elif not fitting:
            others = [file for file in visits.get(image.visit, ()) if file.path != image.path]
            matches.append(_none(wanted, _why_not(image, others, wanted)))
        else:
            matches.append(_given(image, fitting[0], claims[fitting[0].path], wanted, of_image))
    return matches


def _best(image: BidsFile, files: Sequence[BidsFile], wanted: Wanted) -> list[BidsFile]:
    """Those that fit an image, and none of them worse than another."""
    fitting = [file for file in files if file.path != image.path and not wanted.obstacles(image, file)]
    ranks = [wanted.rank(image, file) for file in fitting]
    return [file for file, rank in zip(fitting, ranks, strict=True) if rank == max(ranks)]


def _given(
    image: BidsFile, file: BidsFile, claimants: Sequence[BidsFile], wanted: Wanted, of_image: WantedImage
) -> Match:
    owners = _owners(file, claimants, wanted)
    if all(owner.stem == image.stem for owner in owners):
        return Match(file, tuple(wanted.free(image, file)))
    if len(owners) == 1:
        return _none(wanted, f"{file.name} is that of {owners[0].name}")
    what = f"{file.name} fits {len(owners)} {of_image.what}s, {_choice(owners, of_image)}"
    return Match(problem=what)


def _owners(file: BidsFile, claimants: Sequence[BidsFile], wanted: Wanted) -> Sequence[BidsFile]:
    """The image that a file belongs to, of those that it fits best; all of them if nothing tells them apart."""
    for differing in (wanted.differing, wanted.free):
        exact = [image for image in claimants if not differing(image, file)]
        if len({image.stem for image in exact}) == 1:
            return exact
    return claimants


def _none(wanted: Wanted, reason: str) -> Match:
    why = f" ({reason})" if reason else ""
    return Match(problem=f"there is no {wanted.what} for it{why}: {wanted.remedy}", absent=True, reason=reason)


def _why_not(image: BidsFile, others: Sequence[BidsFile], wanted: Wanted) -> str:
    if not others:
        return ""
    obstacles = [(file, wanted.obstacles(image, file)) for file in others]
    nearest, keys = min(obstacles, key=lambda pair: len(pair[1]))
    conditions = {key: nearest.entities.get(key, ABSENT) for key in keys}
    return f"{nearest.name} differs in {' and '.join(keys)}, {wanted.flag(conditions)} takes it nevertheless"


def _choice(files: Sequence[BidsFile], wanted: Wanted) -> str:
    """How files differ, and what to write to have the first of them."""
    names = listed([file.name for file in files])
    keys = [key for key in _keys(*files) if len({file.entities.get(key) for file in files}) > 1]
    if not keys and len({file.path.parent for file in files}) > 1:
        return f"in {listed([str(file.path.parent) for file in files])} ({names}): name the folder (-derivatives)"
    if not keys:
        return f"of the same entities ({names}): remove all but one"
    conditions = {key: files[0].entities.get(key, ABSENT) for key in keys}
    return f"which differ in {' and '.join(keys)} ({names}): choose, as in {wanted.flag(conditions)}"


def _keys(*files: BidsFile) -> list[str]:
    """The entities of any, beside subject and session."""
    return [key for key in dict.fromkeys(key for file in files for key in file.entities) if key not in _VISIT]


def texts(conditions: Mapping[str, str]) -> list[str]:
    """`acq=space` for each, as the user writes it."""
    return [f"{key}={value}" for key, value in conditions.items()]
