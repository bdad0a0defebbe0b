"""Signals end a command with code 75 and one line, now or when it can, in small processes that get real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nnunetv2_ext.launching import stopping
from tests.processes import end_all

PRELUDE = """
import os, sys, time
from nnunetv2_ext.cli._command import Parser, run
from nnunetv2_ext.launching.stopping import deferred, leave_note, listen, requested_by

def say(text):
    print(text, flush=True)

def until_asked():
    while requested_by() is None:
        time.sleep(0.01)
"""
ENDING = """
listen()
run(Parser(prog="training"), command, [], interrupted="--c continues")
"""


@contextmanager
def running(body: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A command of this body, once it has said `ready`."""
    code = f"{PRELUDE}\ndef command(args):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n{ENDING}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        end_all(process)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_where_nothing_can_be_lost_a_signal_ends_at_once(number: signal.Signals) -> None:
    with running("say('ready')\ntime.sleep(60)") as process:
        process.send_signal(number)
        assert ended(process) == (75, "", f"training: error: stopped by {number.name}: --c continues\n")


ITERATIONS = """
with deferred():
    for step in range(1000):
        say('ready' if step == 0 else f'step {step}')
        time.sleep(0.05)
        if requested_by():
            say('saved')
            break
"""


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_where_it_is_deferred_the_iteration_ends_and_its_result_is_saved(number: signal.Signals) -> None:
    with running(ITERATIONS) as process:
        process.send_signal(number)
        code, output, errors = ended(process)
        assert (code, errors) == (75, f"training: error: stopped by {number.name}: --c continues\n")
        assert output.endswith("saved\n")


def test_the_second_ctrl_c_ends_at_once() -> None:
    body = "with deferred():\n    say('ready')\n    until_asked()\n    say('asked')\n    time.sleep(60)\n"
    with running(body) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "", "training: error: interrupted: --c continues\n")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_that_warns_more_than_once_does_not_interrupt_the_saving(second: signal.Signals) -> None:
    body = """
        with deferred():
            say('ready')
            until_asked()
            say('asked')
            time.sleep(0.5)
            say('saved')
    """
    with running(body) as process:
        process.send_signal(signal.SIGUSR1)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(second)
        code, output, errors = ended(process)
        assert (code, output) == (75, "saved\n")
        assert errors == "training: error: stopped by SIGUSR1: --c continues\n"


def test_a_second_signal_does_not_interrupt_the_leaving() -> None:
    body = """
        try:
            say('ready')
            time.sleep(60)
        finally:
            say('leaving')
            time.sleep(0.5)
            say('left')
    """
    with running(body) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "leaving\n"
        process.send_signal(signal.SIGTERM)
        code, output, errors = ended(process)
        assert (code, output) == (75, "left\n")
        assert errors.count("\n") == 1


def test_what_catches_every_exception_does_not_go_on() -> None:
    body = """
        say('ready')
        for _ in range(100):
            try:
                time.sleep(1)
            except Exception:
                say('goes on')
    """
    with running(body) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process)[:2] == (75, "")


def test_an_error_inside_is_not_hidden_by_a_signal() -> None:
    body = "with deferred():\n    say('ready')\n    until_asked()\n    raise ZeroDivisionError\n"
    with running(body) as process:
        process.send_signal(signal.SIGTERM)
        code, _, errors = ended(process)
        assert code == 1
        assert "ZeroDivisionError" in errors


def test_a_forked_worker_leaves_ctrl_c_to_its_parent_and_ends_with_sigterm() -> None:
    body = """
        child = os.fork()
        if child == 0:
            say(f'ready\\n{os.getpid()}')
            time.sleep(60)
        _, status = os.waitpid(child, 0)
        say(f'the worker ended with {os.waitstatus_to_exitcode(status)}')
    """
    with running(body) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        os.kill(child, signal.SIGINT)
        os.kill(child, signal.SIGUSR1)
        os.kill(child, signal.SIGTERM)
        assert ended(process) == (0, f"the worker ended with {-signal.SIGTERM}\n", "")


def test_ctrl_c_in_a_terminal_goes_to_the_whole_group_and_is_one_line() -> None:
    body = """
        from multiprocessing import get_context
        with get_context('fork').Pool(2) as pool, deferred():
            result = pool.map_async(time.sleep, [0.5, 0.5])
            say('ready')
            result.get()
            say('whole')
    """
    with running(body) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert ended(process) == (75, "whole\n", "training: error: stopped by SIGINT: --c continues\n")


def test_a_rank_that_was_stopped_leaves_a_note_for_its_launcher(tmp_path: Path) -> None:
    for rank in ("0", "3"):
        with running("say('ready')\nleave_note()", **{stopping.NOTES_FOLDER: str(tmp_path), "RANK": rank}) as process:
            assert ended(process) == (0, "", "")
    assert sorted(os.listdir(tmp_path)) == ["0", "3"]


def test_another_thread_leaves_the_handlers_alone() -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    thread = threading.Thread(target=stopping.listen)
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
