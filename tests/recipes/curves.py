"""Learning rates as the issue and the papers state them, written down once more and without this package."""

from __future__ import annotations

import numpy as np

Segment = tuple[str, int, float]
"""Shape, epochs, peak."""


def closed_form(*segments: Segment) -> np.ndarray:
    """The rate of every epoch: segments one after another, each with an epoch counter of its own.

    `linear`: peak * (e + 1) / n. `poly`: peak * (1 - e / n)^0.9. `cosine`: peak * (1 + cos(pi e / n)) / 2.
    """
    shapes = {
        "linear": lambda e, n: (e + 1) / n,
        "poly": lambda e, n: (1 - e / n) ** 0.9,
        "cosine": lambda e, n: (1 + np.cos(np.pi * e / n)) / 2,
        "constant": lambda e, n: np.ones(n),
    }
    return np.concatenate([peak * shapes[shape](np.arange(n), n) for shape, n, peak in segments])


def warmed_up(peak: float, warmup: int, epochs: int) -> list[Segment]:
    """The fork's: linear for W epochs, then poly to E."""
    return [("linear", warmup, peak), ("poly", epochs - warmup, peak)]


def sawtooth(
    peak: float, decoder: tuple[int, int], warmup: int, epochs: int, scales: tuple[float, float] = (1, 1)
) -> list[Segment]:
    """Decoder linear and poly, then everything linear and poly."""
    return [
        ("linear", decoder[0], scales[0] * peak),
        ("poly", decoder[1], scales[1] * peak),
        ("linear", warmup, peak),
        ("poly", epochs - warmup - sum(decoder), peak),
    ]
