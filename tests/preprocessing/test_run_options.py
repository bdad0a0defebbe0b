"""Which flags go together, each mistake in a line."""

from __future__ import annotations

from typing import Any

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.run_options import RunOptions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_processes": 1},
        {"preprocess": False},
        {"executor": "dask", "scheduler": "127.0.0.1:8786"},
        {"part": 0, "num_parts": 1},
        {"part": 3, "num_parts": 4, "preview": True, "overwrite": True},
    ],
)
def test_these_go_together(options: dict[str, Any]) -> None:
    RunOptions(**options).check()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_processes": 0}, "-np must be at least 1, not 0"),
        ({"executor": "dask"}, "-executor dask and -scheduler ADDRESS go together"),
        ({"scheduler": "127.0.0.1:8786"}, "-executor dask and -scheduler ADDRESS go together"),
        ({"part": 0}, "-part I and -num_parts N go together"),
        ({"num_parts": 2}, "-part I and -num_parts N go together"),
        ({"part": 2, "num_parts": 2}, "-part counts from 0 to 1 of -num_parts 2, not 2"),
        ({"part": -1, "num_parts": 2}, "-part counts from 0 to 1 of -num_parts 2, not -1"),
        ({"preprocess": False, "preview": True}, "--preview is about preprocessing, which --no_pp leaves out"),
        ({"preprocess": False, "part": 0, "num_parts": 2}, "-part is about preprocessing"),
        ({"preprocess": False, "executor": "dask", "scheduler": "h:1"}, "-executor dask is about preprocessing"),
    ],
)
def test_these_do_not(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        RunOptions(**options).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_parts", [0, -1])
def test_no_parts_are_refused_in_words_that_make_sense(num_parts: int) -> None:
    with pytest.raises(UserError, match=r"-num_parts .*at least 1"):
        RunOptions(part=0, num_parts=num_parts).check()
