"""Random numbers that can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

_LARGEST = 2**32


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's random numbers."""
    random.seed(seed)
    np.random.seed(seed % _LARGEST)
    torch.manual_seed(seed)


def make_repeatable(dataloader: Any) -> bool:
    """Have a data loader of nnU-Net draw and compute the same for the same seed, if it can.

    batchgeneratorsv2's Gaussian blur chooses between two computations by timing them; with worker processes, what
    comes first depends on their speed.

    Returns:
        Whether it now does: only where batches are made in the training process (`nnUNet_n_proc_DA=0`).
    """
    if not isinstance(dataloader, SingleThreadedAugmenter):
        return False
    for transform in _nested(dataloader.data_loader.transforms):
        if hasattr(transform, "benchmark"):
            transform.benchmark = False
    return True


def _nested(transform: Any) -> Iterator[Any]:
    """A transform and all that it is made of (compositions and transforms with a probability)."""
    if transform is None:
        return
    yield transform
    yield from (t for part in getattr(transform, "transforms", ()) for t in _nested(part))
    yield from _nested(getattr(transform, "transform", None))
