"""File systems of a test's own: a small one that fills up, and one that cannot be written to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, with `mount`'s options; skips the test where mounting is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command on this machine")
    if result.returncode:
        pytest.skip(f"a file system in memory cannot be mounted here: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave: int) -> Path:
    """Fill a file system up to so many bytes; returns the file that does it."""
    path = folder / "filling"
    space = os.statvfs(folder)
    path.write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - leave)))
    return path
