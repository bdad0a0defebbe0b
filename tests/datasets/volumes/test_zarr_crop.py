"""Boxes out of Zarr arrays and OME-Zarr images: their voxels, their place, and what is read for them."""

from __future__ import annotations

import asyncio
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.datasets.volumes.zarr_crop import ZarrCrop, open_array
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import counted, refused_both_ways, voxels

zarr = pytest.importorskip("zarr")

ARRAY = counted(2, 5, 6, 7, dtype=np.uint16)
"""Two channels; no two axes are equally long."""
CHUNKS = (1, 2, 3, 4)
CORNER, SIZE = (1, 2, 3), (3, 2, 4)
BOX = ARRAY[1, 1:4, 2:4, 3:7]
"""What `CORNER` and `SIZE` cut out of the second channel."""


@pytest.fixture(autouse=True)
def _nothing_is_open() -> Iterator[None]:
    open_array.cache_clear()
    yield
    open_array.cache_clear()


def plain(path: Path | str, array: np.ndarray = ARRAY, version: int = 3, chunks: Sequence[int] = ()) -> str:
    zarr.create_array(str(path), data=array, chunks=tuple(chunks) or CHUNKS[-array.ndim :], zarr_format=version)
    return str(path)


def chunk_file(path: str | Path, version: int, index: Sequence[int]) -> Path:
    """Where the versions of Zarr keep a chunk by default."""
    return Path(path) / (".".join(map(str, index)) if version == 2 else "/".join(map(str, ("c", *index))))


def axes(names: str, unit: str | None = "micrometer") -> list[dict[str, str]]:
    """OME's description of axes, from their letters."""
    kinds = {"c": "channel", "t": "time"}
    described = [{"name": name, "type": kinds.get(name, "space")} for name in names]
    return [{**axis, "unit": unit} if unit and axis["type"] == "space" else axis for axis in described]


def scale(*factors: float) -> list[dict[str, Any]]:
    return [{"type": "scale", "scale": list(factors)}]


def image_of(path: Path, description: Any, array: np.ndarray = ARRAY, version: str = "0.4", level: str = "0") -> str:
    """An OME-Zarr image with one level."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    if version == "0.4":
        group.attrs["multiscales"] = description
    else:
        group.attrs["ome"] = {"version": version, "multiscales": description}
    group.create_array(level, data=array)
    return str(path)


def crop(source: str, channel: int | None = 1, spacing: tuple[float, float, float] | None = None) -> ZarrCrop:
    return ZarrCrop(source, channel, CORNER, SIZE, spacing)


def refusal(crop: ZarrCrop) -> str:
    """What is said of a crop that cannot be had; geometry and voxels are both refused."""
    message = refused_both_ways(crop)
    assert crop.source in message
    return message


@pytest.mark.parametrize("version", [2, 3])
def test_a_crop_has_the_voxels_that_numpy_cuts_out(version: int, tmp_path: Path) -> None:
    first = crop(plain(tmp_path / "a.zarr", version=version))
    np.testing.assert_array_equal(voxels(first), BOX)
    assert first.geometry().size == BOX.shape[::-1] == first.image().GetSize()


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_without_channels_is_taken_whole(version: int, tmp_path: Path) -> None:
    source = plain(tmp_path / "a.zarr", ARRAY[1], version)
    np.testing.assert_array_equal(voxels(crop(source, None)), BOX)
    np.testing.assert_array_equal(voxels(ZarrCrop(source, None, (0, 0, 0), (5, 6, 7))), ARRAY[1])


def test_shards_and_names_of_axes_change_nothing(tmp_path: Path) -> None:
    zarr.create_array(
        str(tmp_path / "a.zarr"), data=ARRAY, chunks=(1, 1, 3, 7), shards=(2, 5, 6, 7), dimension_names="cxyz"
    )
    np.testing.assert_array_equal(voxels(crop(str(tmp_path / "a.zarr"))), BOX)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", ">u2", "i4", "u4", "i8", "u8", "f2", "f4", ">f8"])
def test_numbers_of_every_type_keep_their_values(dtype: str, tmp_path: Path) -> None:
    array = ARRAY.astype(dtype)
    np.testing.assert_array_equal(voxels(crop(plain(tmp_path / "a.zarr", array))), array[1, 1:4, 2:4, 3:7])


@pytest.mark.parametrize("dtype", ["c8", "c16", "U3", "M8[s]", [("a", "i4")]])
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_an_array_of_no_scalars_is_refused(dtype: Any, tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=ARRAY.shape, dtype=np.dtype(dtype), zarr_format=2)
    assert "where an image has whole or real numbers" in refusal(crop(str(tmp_path / "a.zarr")))


# where a crop lies


def test_the_world_begins_at_the_first_voxel_of_the_array(tmp_path: Path) -> None:
    here = crop(plain(tmp_path / "a.zarr"), spacing=(2.0, 0.5, 0.25)).geometry()
    assert here.spacing == (0.25, 0.5, 2.0)
    assert here.origin == (3 * 0.25, 2 * 0.5, 1 * 2.0)
    assert crop(str(tmp_path / "a.zarr"), spacing=(2.0, 0.5, 0.25)).image().GetOrigin() == here.origin


def test_without_a_spacing_none_is_said(tmp_path: Path) -> None:
    assert crop(plain(tmp_path / "a.zarr")).geometry().spacing is None


OME = [{"axes": axes("czyx"), "datasets": [{"path": "0", "coordinateTransformations": scale(1, 3.0, 0.5, 0.25)}]}]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_spacing_and_its_unit_are_those_of_the_ome_metadata(version: str, tmp_path: Path) -> None:
    source = image_of(tmp_path / "a.zarr", OME, version=version)
    for first in (crop(source), crop(source, spacing=(9.0, 9.0, 9.0))):
        assert first.geometry().spacing == (0.25, 0.5, 3.0)
        np.testing.assert_array_equal(voxels(first), BOX)
    assert open_array(source)[1].unit == "micrometer"


def test_the_scale_of_a_level_is_its_own_times_that_of_the_whole_image(tmp_path: Path) -> None:
    whole = [{**OME[0], "coordinateTransformations": scale(1, 2, 2, 4)}]
    assert crop(image_of(tmp_path / "a.zarr", whole)).geometry().spacing == (1.0, 1.0, 6.0)


def test_a_scale_may_stand_at_the_whole_image_alone(tmp_path: Path) -> None:
    whole = [{**OME[0], "datasets": [{"path": "0"}], "coordinateTransformations": scale(1, 2, 3, 4)}]
    assert crop(image_of(tmp_path / "a.zarr", whole)).geometry().spacing == (4.0, 3.0, 2.0)


def test_where_no_scale_is_said_the_spacing_is_the_one_that_is_given(tmp_path: Path) -> None:
    source = image_of(tmp_path / "a.zarr", [{**OME[0], "datasets": [{"path": "0"}]}])
    assert crop(source).geometry().spacing is None
    assert crop(source, spacing=(3.0, 2.0, 1.0)).geometry().spacing == (1.0, 2.0, 3.0)


def test_the_first_level_of_an_image_is_taken(tmp_path: Path) -> None:
    levels = [
        {"path": name, "coordinateTransformations": scale(1, s, s, s)} for name, s in (("fine", 1), ("coarse", 2))
    ]
    source = image_of(tmp_path / "a.zarr", [{"axes": axes("czyx"), "datasets": levels}], level="fine")
    zarr.open_group(source).create_array("coarse", data=ARRAY[:, ::2, ::2, ::2])
    np.testing.assert_array_equal(voxels(crop(source)), BOX)
    assert crop(source).geometry().spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("names", "order"),
    [("zyxc", (1, 2, 3, 0)), ("zcyx", (1, 0, 2, 3)), ("czyx", (0, 1, 2, 3))],
)
def test_the_axis_of_channels_is_the_one_that_the_metadata_name(
    names: str, order: tuple[int, ...], version: str, tmp_path: Path
) -> None:
    factors = scale(*(np.array([1, 3.0, 0.5, 0.25])[list(order)]))
    description = [{"axes": axes(names), "datasets": [{"path": "0", "coordinateTransformations": factors}]}]
    source = image_of(tmp_path / "a.zarr", description, ARRAY.transpose(order), version)
    np.testing.assert_array_equal(voxels(crop(source)), BOX)
    assert crop(source).geometry().spacing == (0.25, 0.5, 3.0)


def test_axes_of_space_keep_their_stored_order(tmp_path: Path) -> None:
    description = [{"axes": axes("cxyz"), "datasets": [{"path": "0", "coordinateTransformations": scale(1, 3, 2, 1)}]}]
    source = image_of(tmp_path / "a.zarr", description)
    np.testing.assert_array_equal(voxels(crop(source)), BOX)
    assert crop(source).geometry().spacing == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("names", [None, ["t", "c", "z", "y", "x"], axes("tczyx")])
def test_one_moment_is_no_axis(names: Any, tmp_path: Path) -> None:
    description = [{"datasets": [{"path": "0"}], **({"axes": names} if names else {})}]
    np.testing.assert_array_equal(voxels(crop(image_of(tmp_path / "a.zarr", description, ARRAY[None]))), BOX)


@pytest.mark.parametrize(("names", "order"), [("zyxc", (1, 2, 3, 0)), ("zcyx", (1, 0, 2, 3))])
def test_axes_may_be_names_alone_as_before_version_0_4(names: str, order: tuple[int, ...], tmp_path: Path) -> None:
    description = [{"axes": list(names), "datasets": [{"path": "0"}]}]
    np.testing.assert_array_equal(voxels(crop(image_of(tmp_path / "a.zarr", description, ARRAY.transpose(order)))), BOX)


@pytest.mark.parametrize("unit", ["nanometer", "micrometer", None])
def test_the_unit_is_the_one_of_the_metadata(unit: str | None, tmp_path: Path) -> None:
    assert open_array(image_of(tmp_path / "a.zarr", [{**OME[0], "axes": axes("czyx", unit)}]))[1].unit == unit


def test_an_array_of_an_image_may_be_named_itself(tmp_path: Path) -> None:
    image_of(tmp_path / "a.zarr", OME)
    np.testing.assert_array_equal(voxels(crop(str(tmp_path / "a.zarr" / "0"))), BOX)


def test_a_level_that_is_named_itself_has_the_axes_and_the_spacing_that_its_image_says(tmp_path: Path) -> None:
    levels = [
        {"path": "0", "coordinateTransformations": scale(2, 0.5, 0.25, 1)},
        {"path": "1", "coordinateTransformations": scale(4, 1, 0.5, 1)},
    ]
    image_of(tmp_path / "a.zarr", [{"axes": axes("zyxc"), "datasets": levels}], np.moveaxis(ARRAY, 0, 3), level="1")
    coarse = crop(f"{tmp_path}/a.zarr/1/", spacing=(9, 9, 9))
    assert coarse.geometry().spacing == (0.5, 1, 4)
    np.testing.assert_array_equal(voxels(coarse), BOX)


def test_an_array_in_a_group_that_says_nothing_of_it_is_one_alone(tmp_path: Path) -> None:
    image_of(tmp_path / "a.zarr", OME, level="other")
    assert open_array(f"{tmp_path}/a.zarr/other")[1].spacing is None


# what is refused


@pytest.mark.parametrize(
    ("corner", "size"),
    [
        ((-1, 0, 0), (1, 1, 1)),
        ((0, 0, -2), (1, 1, 1)),
        ((0, 0, 0), (6, 1, 1)),
        ((0, 5, 0), (1, 2, 1)),
        ((0, 0, 7), (1, 1, 1)),
        ((0, 0, 0), (1, 0, 1)),
        ((0, 0, 3), (1, 1, -1)),
    ],
)
def test_a_box_that_is_not_inside_is_refused(
    corner: tuple[int, int, int], size: tuple[int, int, int], tmp_path: Path
) -> None:
    outside = ZarrCrop(plain(tmp_path / "a.zarr"), 0, corner, size)
    place = f"(corner {', '.join(map(str, corner))}, size {', '.join(map(str, size))}, channel 0)"
    assert refusal(outside) == f"{outside.source} {place} is not inside the array, which has 5, 6, 7 voxels"


def test_the_last_voxel_is_inside(tmp_path: Path) -> None:
    last = ZarrCrop(plain(tmp_path / "a.zarr"), 1, (4, 5, 6), (1, 1, 1))
    assert voxels(last).item() == ARRAY[-1, -1, -1, -1]


@pytest.mark.parametrize("channel", [-1, 2, 100])
def test_a_channel_that_is_not_there_is_refused(channel: int, tmp_path: Path) -> None:
    message = refusal(crop(plain(tmp_path / "a.zarr"), channel))
    assert message == f"there is no channel {channel} in {tmp_path / 'a.zarr'}, which has 2 channels (0 to 1)"


def test_a_channel_of_an_array_without_any_is_refused(tmp_path: Path) -> None:
    message = refusal(crop(plain(tmp_path / "a.zarr", ARRAY[0]), 0))
    assert message.endswith("which has no axis of channels: leave the column channel empty, and give --no_ref")


def test_one_of_several_channels_must_be_chosen(tmp_path: Path) -> None:
    assert refusal(crop(plain(tmp_path / "a.zarr"), None)).endswith(
        "has 2 channels: say which is meant (column channel)"
    )
    np.testing.assert_array_equal(voxels(crop(plain(tmp_path / "b.zarr", ARRAY[1:]), None)), BOX)


@pytest.mark.parametrize("array", [ARRAY[0, 0], ARRAY[None]])
def test_an_array_of_other_axes_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    source = plain(tmp_path / "a.zarr", array, chunks=array.shape)
    assert f"has {array.ndim} axes, where three of space are needed" in refusal(crop(source))


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    assert refusal(crop(str(tmp_path / "a.zarr"))) == f"there is no Zarr array {tmp_path / 'a.zarr'}"
    assert "cannot be opened as Zarr" in refusal(crop("memory://nowhere/a.zarr"))


def test_a_group_that_is_no_image_is_refused(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("raw", data=ARRAY)
    assert refusal(crop(str(tmp_path / "a.zarr"))).endswith(
        "is a Zarr group without OME metadata (multiscales): name one of its arrays"
    )
    np.testing.assert_array_equal(voxels(crop(str(tmp_path / "a.zarr" / "raw"))), BOX)


def test_what_is_no_zarr_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("<!DOCTYPE html><html>log in</html>")
    plain(tmp_path / "damaged")
    (tmp_path / "damaged" / "zarr.json").write_text("{")
    for name in ("folder", "file", "damaged"):
        assert "cannot be opened as Zarr" in refusal(crop(str(tmp_path / name)))


def test_an_address_of_an_unknown_kind_is_refused() -> None:
    assert "Protocol not known" in refusal(crop("nothing-like-it://bucket/a.zarr"))


@pytest.mark.parametrize(
    "description",
    [
        "multiscales",
        {"axes": axes("czyx")},
        [{"axes": axes("czyx")}],
        [{**OME[0], "datasets": []}],
        [{**OME[0], "datasets": [{"path": "absent"}]}],
        [{**OME[0], "axes": 5}],
        [{**OME[0], "axes": [{"type": "space"}] * 4}],
        [{**OME[0], "axes": axes("czy")}],
        [{**OME[0], "axes": axes("tzyx")}],
        [{**OME[0], "axes": [*axes("c"), *axes("c"), *axes("yx")]}],
        [{**OME[0], "coordinateTransformations": scale(1, 1, 1)}],
        [{**OME[0], "coordinateTransformations": scale(1, 1, 0, 1)}],
        [{**OME[0], "coordinateTransformations": scale(1, 1, -1, 1)}],
        [{**OME[0], "coordinateTransformations": [{"type": "scale", "scale": [1, 1, "NaN", 1]}]}],
        [{**OME[0], "coordinateTransformations": [{"type": "scale", "path": "elsewhere"}]}],
        [{**OME[0], "axes": [*axes("cz", "nanometer"), *axes("yx")]}],
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_metadata_that_make_no_sense_are_refused(description: Any, version: str, tmp_path: Path) -> None:
    refusal(crop(image_of(tmp_path / "a.zarr", description, version=version)))


def test_units_that_differ_are_named(tmp_path: Path) -> None:
    mixed = [{**OME[0], "axes": [*axes("cz", "nanometer"), *axes("yx")]}]
    message = refusal(crop(image_of(tmp_path / "a.zarr", mixed)))
    assert message.endswith("are in different units: micrometer, nanometer")


# what is read


def touched(corner: Sequence[int], size: Sequence[int], channel: int) -> set[tuple[int, ...]]:
    """The chunks in which voxels of a box lie."""
    box = [[channel], *(range(start, start + n) for start, n in zip(corner, size, strict=True))]
    return {tuple(i // n for i, n in zip(voxel, CHUNKS, strict=True)) for voxel in product(*box)}


def all_chunks() -> set[tuple[int, ...]]:
    return set(product(*(range(-(-n // chunk)) for n, chunk in zip(ARRAY.shape, CHUNKS, strict=True))))


@pytest.mark.parametrize("version", [2, 3])
def test_only_the_chunks_that_a_crop_touches_are_read(version: int, tmp_path: Path) -> None:
    source = plain(tmp_path / "a.zarr", version=version)
    needed = touched(CORNER, SIZE, 1)
    assert 0 < len(needed) < len(all_chunks()) / 2
    for index in all_chunks() - needed:
        chunk = chunk_file(source, version, index)
        assert chunk.is_file()
        chunk.write_bytes(b"damaged")
    np.testing.assert_array_equal(voxels(crop(source)), BOX)


@pytest.mark.parametrize("version", [2, 3])
def test_the_geometry_is_known_without_a_chunk(version: int, tmp_path: Path) -> None:
    source = plain(tmp_path / "a.zarr", version=version)
    for index in all_chunks():
        chunk_file(source, version, index).write_bytes(b"damaged")
    assert crop(source).geometry().size == SIZE[::-1]


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_cannot_be_read_is_an_error_that_names_the_crop(version: int, tmp_path: Path) -> None:
    source = plain(tmp_path / "a.zarr", version=version)
    for index in touched(CORNER, SIZE, 1):
        whole = chunk_file(source, version, index).read_bytes()
        for damaged in (b"damaged", whole[: len(whole) // 2]):
            chunk_file(source, version, index).write_bytes(damaged)
            with pytest.raises(UserError) as caught:
                crop(source).image()
            assert str(caught.value).startswith(f"{source} (corner 1, 2, 3, size 3, 2, 4, channel 1) cannot be read: ")
        chunk_file(source, version, index).write_bytes(whole)
    np.testing.assert_array_equal(voxels(crop(source)), BOX)


def test_a_read_that_fails_leaves_nothing_behind_for_python_to_complain_of(tmp_path: Path) -> None:
    from zarr.core import sync

    source = plain(tmp_path / "a.zarr")
    for index in all_chunks():
        chunk_file(source, 3, index).write_bytes(b"damaged")
    for _ in range(5):
        with pytest.raises(UserError, match="cannot be read: "):
            ZarrCrop(source, 0, (0, 0, 0), (5, 6, 7)).image()
        (loop,) = sync.loop
        assert loop is not None
        assert not asyncio.all_tasks(loop)


def test_uncompressed_chunks_of_another_length_are_an_error(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=ARRAY, chunks=CHUNKS, compressors=None)
    chunk = chunk_file(tmp_path / "a.zarr", 3, min(touched(CORNER, SIZE, 1)))
    chunk.write_bytes(chunk.read_bytes()[:-2])
    with pytest.raises(UserError, match="cannot be read: "):
        crop(str(tmp_path / "a.zarr")).image()


def test_a_chunk_that_was_never_written_holds_the_fill_value(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=ARRAY.shape, chunks=CHUNKS, dtype="u2", fill_value=7)
    np.testing.assert_array_equal(voxels(crop(str(tmp_path / "a.zarr"))), np.full(SIZE, 7))


@pytest.mark.parametrize("version", [2, 3])
def test_a_crop_of_which_no_chunk_is_stored_is_noticed(version: int, tmp_path: Path) -> None:
    source = plain(tmp_path / "a.zarr", version=version)
    chunks = sorted(touched(CORNER, SIZE, 1))
    for index in chunks:
        assert crop(source).not_stored() is None
        chunk_file(source, version, index).unlink()
    said = f"no chunk of {crop(source).where} is stored, for which Zarr reads 0"
    assert crop(source).not_stored() == said
    assert crop(source, 0).not_stored() is None
    np.testing.assert_array_equal(voxels(crop(source)), np.zeros(SIZE))


def test_a_crop_out_of_a_shard_that_is_stored_counts_as_stored(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=ARRAY, chunks=(1, 1, 3, 7), shards=(2, 2, 6, 7))
    first, last = (ZarrCrop(str(tmp_path / "a.zarr"), 1, (z, 0, 0), (1, 1, 1)) for z in (0, 4))
    shutil.rmtree(tmp_path / "a.zarr" / "c" / "0" / "2")
    assert first.not_stored() is None
    assert str(last.not_stored()).startswith("no chunk of ")


def test_the_level_of_an_image_is_where_its_chunks_are_looked_for(tmp_path: Path) -> None:
    source = image_of(tmp_path / "a.zarr", OME)
    assert crop(source).not_stored() is None
    for chunk in (tmp_path / "a.zarr" / "0").glob("0.*"):
        chunk.unlink()
    assert crop(source).not_stored() is not None


def test_no_local_file_is_named_as_a_source(tmp_path: Path) -> None:
    assert crop(plain(tmp_path / "a.zarr")).files == ()
    assert crop(str(tmp_path / "a.zarr")).ending is None


# addresses


def test_an_address_of_fsspec_is_read(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    try:
        for name, version in (("two", 2), ("three", 3)):
            zarr.create_array(f"memory://crops/{name}.zarr", data=ARRAY, chunks=CHUNKS, zarr_format=version)
            np.testing.assert_array_equal(voxels(crop(f"memory://crops/{name}.zarr")), BOX)
        index = min(touched(CORNER, SIZE, 1))
        memory.pipe(f"/crops/three.zarr/c/{'/'.join(map(str, index))}", b"damaged")
        with pytest.raises(UserError, match=r"^memory://crops/three\.zarr .* cannot be read: "):
            ZarrCrop("memory://crops/three.zarr", 1, CORNER, (1, 1, 1)).image()
    finally:
        memory.rm("/crops", recursive=True)
    plain(tmp_path / "a.zarr")
    np.testing.assert_array_equal(voxels(crop(f"file://{tmp_path / 'a.zarr'}")), BOX)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Notes what is asked for; `forbidden` paths answer with an error of the server."""

    asked: set[str]
    forbidden: set[str]

    def send_head(self) -> Any:
        self.asked.add(self.path)
        if self.path in self.forbidden:
            self.send_error(500)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Handler]]]:
    """The test's folder at an address of this machine."""

    class OfThisTest(Handler):
        asked: set[str] = set()  # noqa: RUF012
        forbidden: set[str] = set()  # noqa: RUF012

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(OfThisTest, directory=str(tmp_path))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", OfThisTest
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("version", [2, 3])
def test_of_an_array_on_a_server_only_the_crops_chunks_are_asked_for(
    version: int, server: tuple[str, type[Handler]], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    address, handler = server
    plain(tmp_path / "a.zarr", version=version)
    np.testing.assert_array_equal(voxels(crop(f"{address}/a.zarr")), BOX)
    names = {index: f"/{chunk_file('a.zarr', version, index)}" for index in all_chunks()}
    assert handler.asked & set(names.values()) == {names[index] for index in touched(CORNER, SIZE, 1)}


def test_a_chunk_that_a_server_does_not_give_is_an_error(server: tuple[str, type[Handler]], tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    address, handler = server
    plain(tmp_path / "a.zarr")
    voxel = (1, 1, 1)
    handler.forbidden |= {f"/{chunk_file('a.zarr', 3, index)}" for index in touched(CORNER, voxel, 1)}
    with pytest.raises(UserError, match=r"a\.zarr \(corner 1, 2, 3, size 1, 1, 1, channel 1\) cannot be read: "):
        ZarrCrop(f"{address}/a.zarr", 1, CORNER, voxel).image()
    assert voxels(ZarrCrop(f"{address}/a.zarr", 0, CORNER, voxel)).item() == ARRAY[0, 1, 2, 3]


def test_the_same_array_is_opened_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = plain(tmp_path / "a.zarr")
    opened: list[str] = []
    really: Any = zarr.open

    def counting(store: str, **options: Mapping[str, Any]) -> Any:
        opened.append(store)
        return really(store, **options)

    monkeypatch.setattr(zarr, "open", counting)
    for channel in (0, 1):
        crop(source, channel).image()
    assert opened == [source]
