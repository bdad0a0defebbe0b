"""What a transfer is asked to do, as it stands in a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_ext.errors import UserError

ENCODER = "encoder"
ENCODER_AND_DECODER = "encoder+decoder"
LOAD_CHOICES = (ENCODER, ENCODER_AND_DECODER)


@dataclass(frozen=True)
class TransferRequest:
    """What to bring over, and how much has to arrive.

    Attributes:
        load: `-load`, one of `LOAD_CHOICES`; the stem belongs to the encoder.
        keep_head: `-keep_head`, the segmentation head too. That the labels are equal is for the caller to know.
        channel_map: `-cm`, for each input channel of the network the checkpoint's, or None.
        min_coverage: `-min_coverage`, the share (0 to 1) of encoder and stem parameters that must arrive.
    """

    load: str = ENCODER
    keep_head: bool = False
    channel_map: tuple[int | None, ...] | None = None
    min_coverage: float = 1.0

    def __post_init__(self) -> None:
        if self.load not in LOAD_CHOICES:
            raise UserError(f"-load takes {' or '.join(LOAD_CHOICES)}, not {self.load!r}")
        if not 0 <= self.min_coverage <= 1:
            raise UserError(f"-min_coverage is a share from 0 to 1, not {self.min_coverage:g}")
        if self.keep_head and not self.decoder:
            raise UserError(f"-keep_head needs -load {ENCODER_AND_DECODER}: a head says nothing on a fresh decoder")
        if self.channel_map is not None and all(channel is None for channel in self.channel_map):
            raise UserError("-cm maps no channel at all: name at least one of the checkpoint's, counted from 0")

    @property
    def decoder(self) -> bool:
        """Whether the decoder is asked for."""
        return self.load == ENCODER_AND_DECODER

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `pretrain_info["transfer"]` of a plan."""
        return {
            "load": self.load,
            "keep_head": self.keep_head,
            "channel_map": None if self.channel_map is None else list(self.channel_map),
            "min_coverage": self.min_coverage,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any] | None) -> TransferRequest:
        """As a plan has it; plans of the nnssl fork have nothing, which means encoder and stem, completely.

        Raises:
            UserError: a value that was edited to something else.
        """
        stored = stored or {}
        if not isinstance(stored.get("keep_head", False), bool):
            raise UserError("pretrain_info.transfer of the plan: keep_head is true or false, without quotes")
        channels = stored.get("channel_map")
        try:
            return cls(
                load=str(stored.get("load", ENCODER)),
                keep_head=bool(stored.get("keep_head", False)),
                channel_map=None if channels is None else tuple(None if c is None else int(c) for c in channels),
                min_coverage=float(stored.get("min_coverage", 1.0)),
            )
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"pretrain_info.transfer of the plan was edited to what it cannot be: {error}") from error


def parse_channel_map(words: list[str] | None) -> tuple[int | None, ...] | None:
    """`0 1 none 2` as `(0, 1, None, 2)`.

    Raises:
        UserError: anything but whole numbers from 0 and `none`.
    """
    if words is None:
        return None
    for word in words:
        if word.lower() != "none" and not word.isdecimal():
            raise UserError(f"-cm takes the checkpoint's channels, counted from 0, or none, not {word!r}")
    return tuple(None if word.lower() == "none" else int(word) for word in words)
