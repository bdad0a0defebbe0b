"""Whether two volumes are the same voxels, however their paths are written."""

from __future__ import annotations

import os
from collections.abc import Hashable

from nnunetv2_ext.datasets.volumes.volume import File, Volume
from nnunetv2_ext.datasets.volumes.zarr_crop import ZarrCrop


def identity(volume: Volume) -> Hashable:
    """Equal for two volumes of the same place: links and `..` in local paths are followed."""
    if isinstance(volume, ZarrCrop):
        return real_source(volume.source), volume.channel, volume.corner, volume.size
    return os.path.realpath(volume.path) if isinstance(volume, File) else volume.where


def real_source(source: str) -> str:
    """Of an array: a local path with all links followed; an address as it is."""
    return source if "://" in source else os.path.realpath(source)
