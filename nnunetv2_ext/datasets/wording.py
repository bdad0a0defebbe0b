"""Numbers and names in a line for the user."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 5


def in_a_line(error: Exception) -> str:
    """What an error says; of several lines the last, as SimpleITK's begin with places in its own code."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def counted(number: int, thing: str) -> str:
    """`1 case`, `2 cases`, with thousands apart."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(names: Sequence[object], shown: int = _SHOWN) -> str:
    """`a, b, c`; of a long list the first `shown`, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown + 1 else ""
    return ", ".join(map(str, names[:shown] if more else names)) + more


def ranged(numbers: Sequence[int]) -> str:
    """`3`, or `3 to 5` for the smallest and the largest."""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
