"""A box out of a Zarr array, version 2 or 3, local or at any address that fsspec knows."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.volumes.volume import Geometry, Volume, check_dtype, from_array
from nnunetv2_ext.errors import UserError

_SPATIAL = 3


@dataclass(frozen=True)
class Layout:
    """What the axes of an array are.

    Attributes:
        channel: the axis of channels; None if there is none.
        spatial: the three axes of space, in their stored order.
        spacing: along those, in `unit`; None if no metadata say it.
        unit: of the spacing, as OME writes it; None if it is not said.
    """

    channel: int | None
    spatial: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None
    unit: str | None = None


@dataclass(frozen=True)
class ZarrCrop(Volume):
    """One channel of a box. Its three axes are the array's axes of space in their stored order, nnU-Net's z, y, x.

    Attributes:
        source: the array's path or address, or that of an OME-Zarr image, whose finest level is meant.
        channel: index along the axis of channels; None takes the whole of an array that has none.
        corner: of the box: its first voxel along each axis of space.
        size: voxels along each.
        spacing: where the metadata say none.
    """

    source: str
    channel: int | None
    corner: tuple[int, int, int]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None

    @property
    def where(self) -> str:
        channel = "" if self.channel is None else f", channel {self.channel}"
        return f"{self.source} (corner {_listed(self.corner)}, size {_listed(self.size)}{channel})"

    def geometry(self) -> Geometry:
        array, layout = open_array(self.source)
        shape = tuple(array.shape[axis] for axis in layout.spatial)
        ends = [corner + size for corner, size in zip(self.corner, self.size, strict=True)]
        if min(self.corner) < 0 or min(self.size) < 1 or any(end > n for end, n in zip(ends, shape, strict=True)):
            raise UserError(f"{self.where} is not inside the array, which has {_listed(shape)} voxels")
        channels = 0 if layout.channel is None else array.shape[layout.channel]
        if self.channel is not None and not 0 <= self.channel < channels:
            has = (
                f"has {channels} channels (0 to {channels - 1})"
                if layout.channel is not None
                else "has no axis of channels: leave the column channel empty, and give --no_ref"
            )
            raise UserError(f"there is no channel {self.channel} in {self.source}, which {has}")
        if self.channel is None and channels > 1:
            raise UserError(f"{self.source} has {channels} channels: say which is meant (column channel)")
        spacing = layout.spacing or self.spacing
        if spacing is None:
            return Geometry(self.size[::-1], None)
        # the world's origin is the first voxel of the whole array, so that crops of one array lie as they lay
        z, y, x = (corner * step for corner, step in zip(self.corner, spacing, strict=True))
        return Geometry(self.size[::-1], spacing[::-1], (x, y, z))

    def image(self) -> sitk.Image:
        geometry = self.geometry()
        array, layout = open_array(self.source)
        try:
            values = np.asarray(array[self._box(array, layout)])
        except Exception as error:  # a store, a filter, a network: anything may fail
            _end_other_reads()
            raise UserError(f"{self.where} cannot be read: {str(error) or type(error).__name__}") from error
        return from_array(values, geometry)

    def not_stored(self) -> str | None:
        """Of a local array: said where none of the chunks that the crop touches is there. Up to the first is looked."""
        array, layout = open_array(self.source)
        root = getattr(array.store, "root", None)
        if not isinstance(root, Path):
            return None
        steps = array.shards or array.chunks  # a shard is a file
        touched = [
            range(part.start // step, -(-part.stop // step)) if isinstance(part, slice) else [part // step]
            for part, step in zip(self._box(array, layout), steps, strict=True)
        ]
        names = map(array.metadata.encode_chunk_key, product(*touched))
        if any((root / array.path / name).exists() for name in names):
            return None
        return f"no chunk of {self.where} is stored, for which Zarr reads {array.fill_value or 0}"

    def _box(self, array: Any, layout: Layout) -> tuple[Any, ...]:
        box: list[Any] = [0] * array.ndim  # axes of length 1 that are neither
        for axis, corner, size in zip(layout.spatial, self.corner, self.size, strict=True):
            box[axis] = slice(corner, corner + size)
        if layout.channel is not None:
            box[layout.channel] = self.channel or 0
        return tuple(box)


def _end_other_reads() -> None:
    """Zarr gives up at the first chunk that fails, and leaves those it reads at the same time in its event loop.

    When Python ends before they do, it prints a traceback for each.
    """
    with suppress(ImportError):  # where another version keeps its loop elsewhere
        from zarr.core.sync import sync

        sync(_cancel_others())


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@lru_cache(maxsize=64)
def open_array(source: str) -> tuple[Any, Layout]:
    """An array, opened without reading a voxel, and what its axes are.

    Args:
        source: of an array, or of a group with OME's `multiscales`, which describes each of its levels.

    Raises:
        UserError: there is none, or its axes are not three of space, at most one of channels and others of length 1.
    """
    try:
        import zarr
    except ImportError as error:
        raise UserError('Zarr arrays need zarr: pip install "nnunetv2-ext[datasets]" (Python 3.11 or newer)') from error
    if "://" not in source and not Path(source).exists():
        raise UserError(f"there is no Zarr array {source}")
    try:
        node = zarr.open(source, mode="r")
        is_group = isinstance(node, zarr.Group)
        image, level = _finest(node.attrs) if is_group else _as_level(source)
        array = node[level["path"]] if is_group and level else node
    except Exception as error:  # as above
        raise UserError(f"{source} cannot be opened as Zarr: {str(error) or type(error).__name__}") from error
    if not isinstance(array, zarr.Array):
        raise UserError(f"{source} is a Zarr group without OME metadata (multiscales): name one of its arrays")
    check_dtype(array.dtype, source)
    return array, _ome_layout(array, image, level, source) if image and level else _plain_layout(array, source)


def _multiscale(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """OME's description of a group's image: version 0.4 and before, or 0.5, which has it under `ome`."""
    described = attributes.get("ome", attributes).get("multiscales")
    return described[0] if described else None


def _finest(attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    image = _multiscale(attributes)
    return image, image["datasets"][0] if image else None


def _as_level(source: str) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """OME's description of the image that an array is a level of, and of the level; None twice for any other array."""
    import zarr

    folder, name = os.path.split(source.rstrip("/"))
    try:
        image = _multiscale(zarr.open_group(folder, mode="r").attrs) or {}
        return next((image, level) for level in image.get("datasets", ()) if level["path"].strip("/") == name)
    except Exception:  # no group, none of OME's, or not of this array
        return None, None


def _plain_layout(array: Any, source: str) -> Layout:
    if array.ndim == _SPATIAL:
        return Layout(None, (0, 1, 2))
    if array.ndim == _SPATIAL + 1:
        return Layout(0, (1, 2, 3))
    raise UserError(f"{source} has {array.ndim} axes, where three of space are needed, or those after one of channels")


def _ome_layout(array: Any, image: Mapping[str, Any], level: Mapping[str, Any], source: str) -> Layout:
    try:
        # before version 0.4 axes are names alone
        axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image.get("axes", "tczyx")]
        kinds = [axis.get("type") or ("space" if axis["name"] in "zyx" else axis["name"]) for axis in axes]
        spatial = [i for i, kind in enumerate(kinds) if kind == "space"]
        channels = [i for i, kind in enumerate(kinds) if kind in ("channel", "c")]
        scales = _scales(image, level, len(axes))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UserError(f"the OME metadata of {source} cannot be understood: {error!r}") from error
    others = [i for i in range(array.ndim) if i not in (*spatial, *channels)]
    if (
        len(axes) != array.ndim
        or len(spatial) != _SPATIAL
        or len(channels) > 1
        or any(array.shape[i] > 1 for i in others)
    ):
        shape = ", ".join(f"{axis.get('name', '?')} {n}" for axis, n in zip(axes, array.shape, strict=False))
        raise UserError(f"{source} has axes {shape}: three of space, at most one of channels and one moment are needed")
    first, second, third = spatial
    channel = channels[0] if channels else None
    if scales is None:
        return Layout(channel, (first, second, third))
    units = {axes[i].get("unit") for i in spatial}
    if len(units) > 1:
        raise UserError(f"the axes of {source} are in different units: {', '.join(sorted(map(str, units)))}")
    return Layout(channel, (first, second, third), (scales[first], scales[second], scales[third]), units.pop())


def _scales(image: Mapping[str, Any], level: Mapping[str, Any], num_axes: int) -> list[float] | None:
    """Of a level, along every axis: its own times that of the whole image; None if none is said."""
    transformations = [*level.get("coordinateTransformations", ())]
    transformations += image.get("coordinateTransformations", ())
    scales = [[float(s) for s in t["scale"]] for t in transformations if t["type"] == "scale"]
    if not scales:
        return None
    result = [1.0] * num_axes
    for scale in scales:
        result = [a * b for a, b in zip(result, scale, strict=True)]
    if not all(0 < step < math.inf for step in result):
        raise ValueError("a scale is not positive")
    return result


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
