"""Things that are refused, and what a refusal is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import Workplace

Refuses = Callable[..., str]


class Harmful:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def contents(place: Workplace) -> dict[str, int]:
    """Every file of a user's nnU-Net folders with its time."""
    return {str(p): p.lstat().st_mtime_ns for p in place.root.rglob("*") if "cache" not in p.parts}
