"""What hypothesis draws for the tests of resampling: shapes, spacings, images, label maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from scipy.ndimage import gaussian_filter

AXES = (None, 0, 1, 2)
"""Which axis is resampled apart, if any."""


def examples(number: int) -> Callable[[Any], Any]:
    """That many examples, the same ones in every run."""
    return settings(
        max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@dataclass(frozen=True)
class Geometry:
    """Voxels and mm per axis, before and after, and whether the coarsest axis is to be resampled apart."""

    shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    spacing: tuple[float, ...]
    new_spacing: tuple[float, ...]
    force_separate_z: bool | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As nnU-Net's resampling functions take them after the array."""
        return self.new_shape, self.spacing, self.new_spacing


_MM = st.sampled_from([0.5, 0.7, 1.0, 1.25, 2.0, 3.0]) | st.floats(0.3, 3.0)
_RATIO = st.sampled_from([0.25, 1 / 3, 0.5, 0.8, 1.0, 1.0, 1.5, 2.0, 4.0]) | st.floats(0.3, 4.0)


@st.composite
def geometries(draw: st.DrawFn, apart: int | None, longest: int) -> Geometry:
    """Up- and downsampling, unchanged axes, axes of one voxel; `apart` is what nnU-Net resamples apart."""
    shape = tuple(draw(st.sampled_from([1, 2, 3, *range(1, longest + 1)])) for _ in range(3))
    ratios = tuple(draw(_RATIO) for _ in range(3))
    if apart is None:
        spacing = tuple(draw(_MM) for _ in range(3))
        new_spacing = tuple(mm * ratio for mm, ratio in zip(spacing, ratios, strict=True))
        force = False
    else:
        force = draw(st.sampled_from([None, True]))
        fine = draw(_MM)
        coarse = fine * draw(st.floats(3.5, 8.0))
        anisotropic = tuple(coarse if axis == apart else fine for axis in range(3))
        if force is None and draw(st.booleans()):  # only what it becomes is anisotropic
            spacing = (fine, fine, fine)
            new_spacing = anisotropic
        else:
            spacing = anisotropic
            new_spacing = tuple(mm * ratio for mm, ratio in zip(spacing, ratios, strict=True))
    new_shape = tuple(int(n) for n in np.clip(compute_new_shape(shape, spacing, new_spacing), 1, 3 * longest))
    if draw(st.sampled_from([False, False, False, True])):  # any shape, as nnU-Net's export of predictions asks for
        new_shape = tuple(draw(st.sampled_from(range(1, 2 * longest + 1))) for _ in range(3))
    return Geometry(shape, new_shape, spacing, new_spacing, force)


SEEDS = st.integers(0, 2**32 - 1)
IMAGES = ("noise", "smooth", "steps", "constant")


def image(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Of mean 0 and standard deviation 1 unless constant; float64."""
    if kind == "constant":
        return np.full(shape, rng.normal())
    values = rng.normal(size=shape)
    if kind == "smooth":
        values = gaussian_filter(values, 2)
    elif kind == "steps":
        values = np.floor(2 * values)
    return (values - values.mean()) / max(values.std(), 1e-6)


def images(kinds: list[str], shape: tuple[int, ...], seed: int, dtype: str = "float32") -> np.ndarray:
    """`(channels, z, y, x)`, one channel per kind."""
    rng = np.random.default_rng(seed)
    return np.stack([image(kind, shape, rng) for kind in kinds]).astype(dtype)


def label_set(number: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """-1, 0 and others up to 1000 (127 for int8), with gaps in the numbering."""
    others = rng.choice(np.arange(1, 127 if dtype == "int8" else 1000), max(number - 2, 0), replace=False)
    return np.array([0, -1, *others])[:number]


def label_map(blocky: bool, shape: tuple[int, ...], labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pure noise, or blocks of 1 to 5 voxels per axis."""
    sizes = rng.integers(2, 6, 3) if blocky else (1, 1, 1)
    coarse = rng.choice(labels, tuple(-(-n // size) for n, size in zip(shape, sizes, strict=True)))
    for axis, size in enumerate(sizes):
        coarse = coarse.repeat(size, axis)
    return coarse[tuple(slice(n) for n in shape)]


def label_maps(
    blocky: bool, number: int, dtype: str, shape: tuple[int, ...], seed: int, channels: int = 1
) -> np.ndarray:
    """`(channels, z, y, x)` of `number` labels at most."""
    rng = np.random.default_rng(seed)
    labels = label_set(number, dtype, rng)
    return np.stack([label_map(blocky, shape, labels, rng) for _ in range(channels)]).astype(dtype)
