"""The shipped recipes as a list for the terminal."""

from __future__ import annotations

from nnunetv2_ext.recipes.resolving import shipped, shipped_names


def list_recipes() -> str:
    """A line each: name and description."""
    names = shipped_names()
    width = max(map(len, names))
    lines = [f"{name:<{width}}  {shipped(name, 'cnn').description}" for name in names]
    return "\n".join(lines)
