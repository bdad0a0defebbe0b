"""Processes as the system lists them: those of a command that a test has started, and what they have open."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tests.commands import SCRIPTS

T = TypeVar("T")


def start(name: str, *arguments: object, env: Mapping[str, str], log: Path) -> subprocess.Popen[str]:
    """A console script in a session of its own, so that `in_session` finds all its processes; output goes to `log`.

    It listens to Ctrl-C: shells have what they start in the background ignore it, tests and all that they start too.
    """
    with log.open("w") as file:
        return subprocess.Popen(
            [str(SCRIPTS / name), *map(str, arguments)],
            env=dict(env), stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def _stat(pid: int) -> list[str]:
    """State, parent, group, session of a process; nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return []


def _all() -> dict[int, list[str]]:
    stats = {int(p.name): _stat(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdecimal()}
    return {pid: stat for pid, stat in stats.items() if stat and stat[0] not in "ZX"}


def in_session(leader: int) -> set[int]:
    """The processes that run in a session."""
    return {pid for pid, stat in _all().items() if int(stat[3]) == leader}


def workers_of(command: int) -> list[int]:
    """A command's workers: the children of the server that forks them."""
    processes = _all()
    children = {pid for pid, stat in processes.items() if int(stat[1]) == command}
    return sorted(pid for pid, stat in processes.items() if int(stat[1]) in children)


def having_open(path: Path) -> list[int]:
    """The other processes that have a file open."""
    found = []
    for pid in set(_all()) - {os.getpid()}:
        with suppress(OSError):
            if any(os.readlink(fd) == str(path) for fd in Path(f"/proc/{pid}/fd").iterdir()):
                found.append(pid)
    return found


def wait_for(seen: Callable[[], T], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> T:
    """What `seen` returns as soon as it is something; fails when the process ends before, or time is up."""
    deadline = time.monotonic() + seconds
    while not (result := seen()):
        assert process is None or process.poll() is None, f"ended with {process.poll()} before"
        assert time.monotonic() < deadline, "nothing seen"
        time.sleep(0.003)
    return result


def end_all(process: subprocess.Popen[str]) -> None:
    """Kill what is left of a session that a test has started."""
    for pid in in_session(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
