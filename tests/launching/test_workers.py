"""Whom a launcher takes for its workers, with processes that sleep."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nnunetv2_ext.launching.workers import Workers
from tests.processes import wait_for


class Sleepers:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, in_session: bool) -> subprocess.Popen[bytes]:
        process = self._stack.enter_context(subprocess.Popen(["sleep", "600"], start_new_session=in_session))
        self._stack.callback(process.kill)  # before it is waited for
        return process


@pytest.fixture
def sleepers() -> Iterator[Sleepers]:
    with ExitStack() as stack:
        yield Sleepers(stack)


def test_signals_reach_the_sessions_started_since_and_nobody_else(sleepers: Sleepers) -> None:
    before = sleepers.start(in_session=True)
    workers = Workers(patience=0)
    helper, worker = sleepers.start(in_session=False), sleepers.start(in_session=True)
    with workers.signalled(""):
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda: workers.signals, "the signal")
        workers.pass_signals_on()
    assert workers.seen == {worker.pid: 1}
    assert worker.wait(timeout=10) in {-signal.SIGUSR1, -signal.SIGKILL}
    assert workers.were_killed
    assert helper.poll() is None
    assert before.poll() is None


def test_processes_that_are_no_workers_are_not_seen(sleepers: Sleepers) -> None:
    sleepers.start(in_session=True)
    workers = Workers(patience=60)
    sleepers.start(in_session=False)
    workers.pass_signals_on()
    assert workers.seen == {}
