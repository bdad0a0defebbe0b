"""How the files of a BIDS dataset are asked for."""

from __future__ import annotations

import pytest

from nnunetv2_ext.datasets.sources.bids_query import Channel, parse_channel, parse_entities, usual_channel_names
from nnunetv2_ext.errors import UserError


def test_entities_are_keys_and_values() -> None:
    assert parse_entities(["acq=highres", "run=1"]) == {"acq": "highres", "run": "1"}


@pytest.mark.parametrize("text", ["acq", "acq=", "=x", "acq=high res", "acq-highres", "Acq=x", "acq=a_b"])
def test_what_is_no_entity_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="an entity is KEY=VALUE"):
        parse_entities([text])


def test_an_entity_that_is_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="the entity acq is given twice: acq=a and acq=b"):
        parse_entities(["acq=a", "acq=b"])


@pytest.mark.parametrize("key", ["sub", "ses"])
def test_subjects_and_sessions_have_flags_of_their_own(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}=01 is no entity to choose by: .* -{key}$"):
        parse_entities([f"{key}=01"])


def test_a_channel_is_a_suffix_and_may_have_entities() -> None:
    assert parse_channel("T2w") == Channel("T2w")
    assert parse_channel("T2w:acq=space,run=1") == Channel("T2w", {"acq": "space", "run": "1"})


@pytest.mark.parametrize("text", ["", "T2w:", ":acq=a", "T2w.nii.gz", "_T2w"])
def test_what_is_no_channel_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="-suffix takes a suffix of BIDS, as T2w or T2w:acq=space,run=1, not"):
        parse_channel(text)


def test_channels_are_called_by_their_suffixes_and_by_entities_where_these_are_the_same() -> None:
    channels = [parse_channel(text) for text in ("T1w:ce=none", "T1w:ce=gd", "T2w:acq=space")]
    assert usual_channel_names(channels) == ("T1w", "T1w_ce-gd", "T2w")


def test_the_same_channel_twice_is_refused() -> None:
    with pytest.raises(UserError, match="names the same T1w twice: tell them apart, as in -suffix T1w:ce=none T1w:ce"):
        usual_channel_names([Channel("T1w"), Channel("T1w")])
