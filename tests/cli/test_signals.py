"""Ctrl-C and SIGTERM, sent once or by the impatient: one line, and the exit code of the signal."""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from collections.abc import Iterator

import pytest

from nnunetv2_ext.cli._command import Parser, one_signal_is_enough, run

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """As they were, after a test; a command that was stopped leaves them off."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("number", SIGNALS)
def test_one_line_says_how_to_go_on_however_often_a_signal_is_sent(
    number: signal.Signals, times: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = []

    def command(_: Namespace) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:  # as workers are ended
            for _ in range(times - 1):
                os.kill(os.getpid(), number)
            ended.append(True)

    with pytest.raises(SystemExit) as exit_info, one_signal_is_enough():
        run(Parser(prog="command"), command, [], interrupted="the same command goes on")
    for _ in range(times - 1):  # while the interpreter leaves
        os.kill(os.getpid(), number)
    assert ended == [True]
    assert exit_info.value.code == 128 + number
    assert capsys.readouterr().err == "command: error: interrupted: the same command goes on\n"


def test_a_command_that_ends_by_itself_leaves_signals_as_they_were() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with one_signal_is_enough():
        run(Parser(prog="command"), lambda _: None, [], interrupted="")
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
