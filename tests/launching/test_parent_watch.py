"""A process ends with the launcher that started it, and what it has forked with it; without a launcher it lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from nnunetv2_ext.launching import parent_watch
from tests.processes import end_all, in_session, wait_for

TRAINING = """
import os, time
from nnunetv2_ext.launching.parent_watch import watch
watch()
worker = os.fork()
if worker == 0:
    time.sleep(60)
    os._exit(0)
print(os.getpid(), worker, flush=True)
time.sleep(60)
"""
LAUNCHER = """
import os, subprocess, sys
environment = {name: str(os.getpid()) if value == "me" else value for name, value in [%r]}
child = subprocess.Popen([sys.executable, "-c", %r], env={**os.environ, **environment})
child.wait()
"""


@dataclass
class Family:
    launcher: subprocess.Popen[str]
    training: int
    worker: int

    def left(self) -> set[int]:
        return in_session(self.launcher.pid) - {self.launcher.pid}


@pytest.fixture(params=[(parent_watch.TORCHRUN, "run"), (parent_watch.LAUNCHER, "me"), ("NOTHING", "")])
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    """A launcher, the training that it has started, and a worker that the training has forked."""
    env = {k: v for k, v in os.environ.items() if k not in (parent_watch.TORCHRUN, parent_watch.LAUNCHER)}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER % (request.param, TRAINING)], env=env, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert launcher.stdout is not None
        training, worker = map(int, launcher.stdout.readline().split())
        yield Family(launcher, training, worker)
    finally:
        end_all(launcher)


launched = pytest.mark.parametrize(
    "family", [(parent_watch.TORCHRUN, "run"), (parent_watch.LAUNCHER, "me")], indirect=True
)
alone = pytest.mark.parametrize("family", [("NOTHING", "")], indirect=True)


@launched
def test_a_killed_launcher_takes_the_training_and_its_workers_with_it(family: Family) -> None:
    time.sleep(1.2)  # longer than it looks for its parent
    assert family.left() == {family.training, family.worker}
    family.launcher.send_signal(signal.SIGKILL)
    family.launcher.wait()
    wait_for(lambda: not family.left(), seconds=10)


@alone
def test_without_a_launcher_a_training_lives_on_when_its_shell_has_gone(family: Family) -> None:
    family.launcher.send_signal(signal.SIGKILL)
    family.launcher.wait()
    time.sleep(2)
    assert family.left() == {family.training, family.worker}


@alone
def test_a_killed_training_takes_its_workers_with_it(family: Family) -> None:
    os.kill(family.training, signal.SIGKILL)
    wait_for(lambda: not family.left(), seconds=10)


def test_a_launcher_that_is_gone_before_the_watch_begins_is_noticed() -> None:
    env = {**os.environ, parent_watch.LAUNCHER: "1"}
    env.pop(parent_watch.TORCHRUN, None)
    process = subprocess.run([sys.executable, "-c", TRAINING], env=env, timeout=30, capture_output=True)
    assert process.returncode == 1
