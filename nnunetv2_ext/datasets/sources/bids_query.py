"""Which files of a BIDS dataset are meant, and how that is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from nnunetv2_ext.datasets.sources.bids_files import ABSENT
from nnunetv2_ext.errors import UserError


@dataclass(frozen=True)
class Channel:
    """The images of one channel: their suffix (`T2w`), and entities that tell them from others (`acq: space`)."""

    suffix: str
    entities: Mapping[str, str] = field(default_factory=dict)


class Unlabelled(Enum):
    """What becomes of images without a label map."""

    ERROR = "error"
    SKIP = "skip"
    TEST = "test"


@dataclass(frozen=True)
class BidsQuery:
    """Which files of a dataset are meant.

    Attributes:
        channels: of the images.
        label_suffix: of the label maps: `dseg` or `mask`.
        derivatives: folder of the pipeline with the label maps, from `derivatives/` or absolute; None if there is one.
        subjects: without `sub-`; empty: all.
        sessions: without `ses-`; empty: all.
        entities: more that the images of all channels must have, in BIDS's short names; `none`: that they must not
            have. A channel's own go before.
        label_entities: more that label maps must have (`desc: manual`).
        unlabelled: what becomes of images without a label map.
    """

    channels: tuple[Channel, ...] = (Channel("T1w"),)
    label_suffix: str = "dseg"
    derivatives: str | None = None
    subjects: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    entities: Mapping[str, str] = field(default_factory=dict)
    label_entities: Mapping[str, str] = field(default_factory=dict)
    unlabelled: Unlabelled = Unlabelled.ERROR

    def conditions(self, channel: Channel) -> dict[str, str]:
        """All entities that a channel's images must have."""
        return {**self.entities, **channel.entities}


def usual_channel_names(channels: Sequence[Channel]) -> tuple[str, ...]:
    """The suffixes; `T1w_ce-gd` where channels share one.

    Raises:
        UserError: two channels are the same.
    """
    suffixes = [channel.suffix for channel in channels]
    for i, channel in enumerate(channels):
        if channel in channels[:i]:
            apart = f"{channel.suffix}:ce=none {channel.suffix}:ce=gd"
            raise UserError(f"-suffix names the same {channel.suffix} twice: tell them apart, as in -suffix {apart}")
    return tuple(_long_name(c) if suffixes.count(c.suffix) > 1 else c.suffix for c in channels)


def _long_name(channel: Channel) -> str:
    own = (f"{key}-{value}" for key, value in channel.entities.items() if value != ABSENT)
    return "_".join([channel.suffix, *own])


def parse_channel(text: str) -> Channel:
    """`T2w`, or `T2w:acq=space,run=1`. Raises UserError for a text of another form."""
    suffix, colon, entities = text.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9]+", suffix) or (colon and not entities):
        raise UserError(f"-suffix takes a suffix of BIDS, as T2w or T2w:acq=space,run=1, not {text!r}")
    return Channel(suffix, parse_entities(entities.split(",") if colon else ()))


def parse_entities(texts: Sequence[str]) -> dict[str, str]:
    """`{"acq": "highres"}` for `acq=highres`. Raises UserError for a text of another form, or an entity twice."""
    entities: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[a-z]+", key) or not re.fullmatch(r"[A-Za-z0-9+]+", value):
            raise UserError(
                f"an entity is KEY=VALUE in BIDS's short names, as acq=highres, or acq=none for images without acq, "
                f"not {text!r}"
            )
        if key in ("sub", "ses"):
            raise UserError(f"{text} is no entity to choose by: subjects and sessions are chosen with -{key}")
        if key in entities:
            raise UserError(f"the entity {key} is given twice: {key}={entities[key]} and {text}")
        entities[key] = value
    return entities
