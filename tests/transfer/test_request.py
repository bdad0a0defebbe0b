"""What a transfer may be asked to do, and how that is written into a plan and read again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.transfer.request import LOAD_CHOICES, TransferRequest, parse_channel_map

CHANNELS = st.none() | st.lists(st.none() | st.integers(0, 9), min_size=1).filter(
    lambda m: any(c is not None for c in m)
)


@given(st.sampled_from(LOAD_CHOICES), st.booleans(), CHANNELS, st.floats(0, 1))
def test_a_plan_keeps_every_request(
    load: str, keep_head: bool, channel_map: list[int | None] | None, min_coverage: float
) -> None:
    channels = None if channel_map is None else tuple(channel_map)
    request = TransferRequest(load, keep_head and load == "encoder+decoder", channels, min_coverage)
    assert TransferRequest.from_dict(json.loads(json.dumps(request.as_dict()))) == request


@pytest.mark.parametrize("stored", [None, {}])
def test_a_plan_that_says_nothing_asks_for_encoder_and_stem_completely(stored: dict | None) -> None:
    assert TransferRequest.from_dict(stored) == TransferRequest("encoder", False, None, 1.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"load": "decoder"}, "-load takes encoder or encoder\\+decoder, not 'decoder'"),
        ({"min_coverage": 1.5}, "-min_coverage is a share from 0 to 1, not 1.5"),
        ({"min_coverage": -0.1}, "-min_coverage is a share from 0 to 1, not -0.1"),
        ({"min_coverage": float("nan")}, "-min_coverage is a share from 0 to 1, not nan"),
        ({"keep_head": True}, "-keep_head needs -load encoder\\+decoder"),
        ({"channel_map": (None, None)}, "-cm maps no channel at all"),
        ({"channel_map": ()}, "-cm maps no channel at all"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_option_named(values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TransferRequest(**values)
    with pytest.raises(UserError, match=words):
        TransferRequest.from_dict(values)


@pytest.mark.parametrize(
    "stored", [{"channel_map": ["first"]}, {"channel_map": 3}, {"min_coverage": "much"}, {"min_coverage": None}]
)
def test_a_plan_that_was_edited_to_something_else_is_refused(stored: dict) -> None:
    with pytest.raises(UserError, match=r"pretrain_info\.transfer of the plan was edited to what it cannot be"):
        TransferRequest.from_dict(stored)


@pytest.mark.parametrize(
    ("words", "channels"),
    [(None, None), (["0", "1", "none", "2"], (0, 1, None, 2)), (["None", "10"], (None, 10)), (["NONE"], (None,))],
)
def test_a_channel_map_is_read_from_its_words(words: list[str] | None, channels: tuple | None) -> None:
    assert parse_channel_map(words) == channels


@pytest.mark.parametrize("word", ["-1", "1.5", "T1", "", "0x1", "1e0", " 1"])
def test_other_words_in_a_channel_map_are_refused_by_name(word: str) -> None:
    with pytest.raises(UserError, match="-cm takes the checkpoint's channels, counted from 0, or none, not") as caught:
        parse_channel_map(["0", word])
    assert repr(word) in str(caught.value)
