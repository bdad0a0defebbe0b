"""NumPy's files and TIFF: voxels, spacing where the file says it, and what is refused."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_ext.datasets.volumes.array_files import TIFF_ENDINGS, NpyFile, TiffFile
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import counted, refused_both_ways, voxels


def refusal(file: NpyFile | TiffFile) -> str:
    """What is said of a file whose geometry and voxels cannot be had."""
    message = refused_both_ways(file)
    assert message.startswith(str(file.path))
    return message[len(str(file.path)) :]


def npy(path: Path, array: np.ndarray, **options: Any) -> NpyFile:
    np.save(path, array, **options)
    return NpyFile(path)


# NumPy


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", ">f4", "f8"]
)
def test_numbers_of_every_type_keep_their_values(dtype: str, tmp_path: Path) -> None:
    array = counted(2, 3, 4, dtype=dtype)
    np.testing.assert_array_equal(voxels(npy(tmp_path / "a.npy", array)), array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_axes_of_an_array_are_z_y_and_x(order: Any, tmp_path: Path) -> None:
    file = npy(tmp_path / "a.npy", np.array(counted(2, 3, 4), order=order))
    assert file.geometry().size == (4, 3, 2)
    image = file.image()
    assert image.GetSize() == (4, 3, 2)
    assert image.GetPixel(3, 1, 0) == counted(2, 3, 4)[0, 1, 3]


def test_an_array_has_the_spacing_that_is_given_and_else_none(tmp_path: Path) -> None:
    file = npy(tmp_path / "a.npy", counted(2, 3, 4))
    assert file.geometry().spacing is None
    known = NpyFile(file.path, (3.0, 2.0, 0.5))
    assert known.geometry().spacing == (0.5, 2.0, 3.0)
    assert known.image().GetSpacing() == (0.5, 2.0, 3.0)


def test_nnunet_reads_no_npy(tmp_path: Path) -> None:
    assert npy(tmp_path / "a.npy", counted(2, 3, 4)).ending is None


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 4), " has 2 axes (3 x 4), not z, y and x: split it"),
        ((2, 3, 4, 5), " has 4 axes (2 x 3 x 4 x 5), not z, y and x: split it"),
        ((), " has 0 axes (), not z, y and x: split it"),
        ((0, 3, 4), " holds no voxel (0 x 3 x 4)"),
    ],
)
def test_an_array_of_other_axes_is_refused(shape: tuple[int, ...], said: str, tmp_path: Path) -> None:
    assert refusal(npy(tmp_path / "a.npy", np.zeros(shape))) == said


@pytest.mark.parametrize("dtype", ["c8", "g", "U3", "M8[s]", [("a", "i4")]])
def test_an_array_of_no_scalars_is_refused(dtype: Any, tmp_path: Path) -> None:
    assert "where an image has whole or real numbers" in refusal(npy(tmp_path / "a.npy", np.zeros((2, 3, 4), dtype)))


class Creates:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_unpickled(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    objects = np.full((1, 1, 1), Creates(proof), dtype=object)
    refusal(npy(tmp_path / "objects.npy", objects, allow_pickle=True))
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Creates(proof)))
    assert "pickle" not in refusal(NpyFile(tmp_path / "pickle.npy"))  # NumPy's advice is to allow them
    assert not proof.exists()
    np.load(tmp_path / "objects.npy", allow_pickle=True)
    assert proof.exists()


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, image=counted(2, 3, 4))


def cut_off(path: Path) -> None:
    np.save(path, counted(2, 3, 4))
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    "write",
    [
        archive,
        cut_off,
        lambda path: path.write_text("<!DOCTYPE html><html>log in</html>"),
        lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'shape': (2, 3"),
    ],
    ids=["archive", "cut off", "page", "half an archive", "half a header"],
)
def test_what_is_no_array_is_named(write: Callable[[Path], Any], tmp_path: Path) -> None:
    write(tmp_path / "a.npy")
    said = refusal(NpyFile(tmp_path / "a.npy"))
    assert said == " is no .npy file, or is damaged: copy or download it again"


def test_an_empty_array_file_a_missing_one_and_one_of_objects_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.npy").touch()
    assert refusal(NpyFile(tmp_path / "a.npy")) == " is empty: copy or download it again"
    assert refusal(NpyFile(tmp_path / "b.npy")).startswith(" cannot be read: ")
    objects = npy(tmp_path / "c.npy", np.full((1, 1, 1), None), allow_pickle=True)
    assert refusal(objects) == " holds Python objects, where an image has numbers"


# TIFF


def contiguous(path: Path, array: np.ndarray) -> None:
    tifffile.imwrite(path, array, photometric="minisblack")


def compressed(path: Path, array: np.ndarray) -> None:
    tifffile.imwrite(path, array, photometric="minisblack", compression="zlib")


def page_by_page(path: Path, array: np.ndarray) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for page in array:
            writer.write(page, contiguous=False, metadata=None)


def by_imagej(path: Path, array: np.ndarray, **metadata: Any) -> None:
    """Two pixels per unit along x, eight along y."""
    tifffile.imwrite(path, array, imagej=True, resolution=(2, 8), metadata={"axes": "ZYX", **metadata})


def by_ome(path: Path, array: np.ndarray, **sizes: Any) -> None:
    known = {"PhysicalSizeZ": 3.0, "PhysicalSizeY": 0.25, "PhysicalSizeX": 0.125, **sizes}
    metadata = {"axes": "ZYX", **{key: size for key, size in known.items() if size is not None}}
    tifffile.imwrite(path, array, ome=True, metadata=metadata)


def test_nnunet_reads_the_tiff_endings_that_are_copied_as_they_are() -> None:
    assert set(TIFF_ENDINGS) == set(Tiff3DIO.supported_file_endings)


@pytest.mark.parametrize(("name", "ending"), [("a.tif", ".tif"), ("a.ome.tiff", ".tiff"), ("a.TIF", None)])
def test_only_an_ending_that_nnunet_knows_is_copied(name: str, ending: str | None) -> None:
    assert TiffFile(Path("/nowhere") / name).ending == ending


@pytest.mark.parametrize("write", [contiguous, compressed, page_by_page, by_imagej, by_ome])
@pytest.mark.parametrize("depth", [2, 3, 4])  # of 3 and 4 tifffile makes colours where nothing says otherwise
def test_a_stack_of_pages_is_read_as_nnunet_reads_it(
    write: Callable[[Path, np.ndarray], None], depth: int, tmp_path: Path
) -> None:
    array = counted(depth, 5, 6, dtype=np.uint8)
    path = tmp_path / "a_0000.tif"
    write(path, array)
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [1, 1, 1]}))
    stock, _ = Tiff3DIO().read_images([str(path)])
    np.testing.assert_array_equal(stock[0], array)
    np.testing.assert_array_equal(voxels(TiffFile(path)), array)
    assert TiffFile(path).geometry().size == (6, 5, depth)


def test_a_single_page_is_refused_as_nnunet_refuses_it(tmp_path: Path) -> None:
    page_by_page(tmp_path / "a_0000.tif", counted(1, 5, 6, dtype=np.uint8))
    with pytest.raises(RuntimeError, match="Only 3D images"):
        Tiff3DIO().read_images([str(tmp_path / "a_0000.tif")])
    assert refusal(TiffFile(tmp_path / "a_0000.tif")) == " has 2 axes (5 x 6), not z, y and x: split it"


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.filterwarnings("ignore:.*are stored as RGB:DeprecationWarning")
def test_a_segmentation_of_stock_nnunet_is_no_colour_image(depth: int, tmp_path: Path) -> None:
    array = counted(depth, 5, 6) % 3
    Tiff3DIO().write_seg(array, str(tmp_path / "a.tif"), {"spacing": [1, 1, 1]})
    np.testing.assert_array_equal(voxels(TiffFile(tmp_path / "a.tif")), array)


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i2", ">u2", "u4", "f2", "f4", "f8"])
def test_pages_of_every_type_keep_their_values(dtype: str, tmp_path: Path) -> None:
    array = counted(2, 3, 4, dtype=dtype)
    contiguous(tmp_path / "a.tif", array)
    np.testing.assert_array_equal(voxels(TiffFile(tmp_path / "a.tif")), array)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path, array: by_imagej(path, array, spacing=1.5), (0.5, 0.125, 1.5)),
        (by_ome, (0.125, 0.25, 3.0)),
        (by_imagej, None),
        (lambda path, array: by_imagej(path, array, spacing=-1.5), None),
        (lambda path, array: by_imagej(path, array, spacing=0), None),
        (lambda path, array: by_ome(path, array, PhysicalSizeZ=None), None),
        (lambda path, array: by_ome(path, array, PhysicalSizeY=0), None),
        (contiguous, None),
    ],
    ids=["ImageJ", "OME", "ImageJ without", "ImageJ negative", "ImageJ 0", "OME without z", "OME 0", "none"],
)
def test_the_spacing_is_that_of_imagejs_or_omes_metadata_and_else_the_given(
    write: Callable[[Path, np.ndarray], None], said: tuple[float, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    write(path, counted(5, 6, 7, dtype=np.uint8))
    file, given = TiffFile(path), TiffFile(path, (7.0, 8.0, 9.0))
    assert file.geometry().spacing == pytest.approx(said)
    assert file.image().GetSpacing() == pytest.approx(said or (1.0, 1.0, 1.0))
    assert given.geometry().spacing == pytest.approx(said or (9.0, 8.0, 7.0))
    assert given.image().GetSpacing() == pytest.approx(said or (9.0, 8.0, 7.0))


def test_the_spacing_of_several_images_in_a_file_is_that_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for size in (2.0, 5.0):
            sizes = {f"PhysicalSize{axis}": size for axis in "ZYX"}
            writer.write(counted(2, 5, 6), photometric="minisblack", metadata={"axes": "ZYX", **sizes})
    assert TiffFile(path).geometry().spacing == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("shape", [(5, 6, 3), (5, 6, 4), (2, 5, 6, 3)])
def test_colours_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", counted(*shape, dtype=np.uint8), photometric="rgb")
    assert refusal(TiffFile(tmp_path / "a.tif")) == " holds colour images, where one value per voxel is needed"


def test_several_channels_in_a_file_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", counted(2, 3, 5, 6), imagej=True, metadata={"axes": "ZCYX"})
    assert refusal(TiffFile(tmp_path / "a.tif")) == " has 4 axes (2 x 3 x 5 x 6), not z, y and x: split it"


def test_pages_of_complex_numbers_are_refused(tmp_path: Path) -> None:
    contiguous(tmp_path / "a.tif", counted(2, 3, 4, dtype=np.complex64))
    assert "values of type complex64" in refusal(TiffFile(tmp_path / "a.tif"))


@pytest.mark.parametrize("write", [contiguous, compressed, page_by_page, by_imagej, by_ome])
def test_a_tiff_that_is_cut_off_anywhere_is_read_whole_or_not_at_all(
    write: Callable[[Path, np.ndarray], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL + 1, "tifffile")
    array = np.random.default_rng(0).integers(0, 255, (6, 7, 8)).astype(np.uint8)
    write(tmp_path / "whole.tif", array)
    content = (tmp_path / "whole.tif").read_bytes()
    file = TiffFile(tmp_path / "a.tif")
    refused = 0
    for length in range(0, len(content), 7):
        file.path.write_bytes(content[:length])
        try:
            read = voxels(file)
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(file.path))  # noqa: PT017
        else:
            np.testing.assert_array_equal(read, array)
    assert refused > 20


def test_damaged_pages_are_an_error(tmp_path: Path) -> None:
    file = TiffFile(tmp_path / "a.tif")
    compressed(file.path, np.random.default_rng(0).integers(0, 255, (6, 7, 8)).astype(np.uint8))
    with tifffile.TiffFile(file.path) as tiff:
        (start, *_), (count, *_) = tiff.pages[3].dataoffsets, tiff.pages[3].databytecounts
    content = bytearray(file.path.read_bytes())
    content[start + count // 2] ^= 0x55
    file.path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif cannot be read: "):
        file.image()


@pytest.mark.parametrize("description", ["<OME><Image><Pixels></OME>", "<OME><Image/></OME>", "<OME></OME>"])
def test_ome_metadata_that_make_no_sense_are_an_error(description: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, counted(2, 3, 4), photometric="minisblack", description=description, metadata=None)
    assert refusal(TiffFile(path)).startswith(" cannot be read: ")


@pytest.mark.parametrize("content", [b"", b"II*\0", b"<!DOCTYPE html><html>log in</html>"])
def test_a_file_that_is_no_tiff_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    assert refusal(TiffFile(tmp_path / "a.tif")).startswith(" cannot be read: ")


def test_a_missing_tiff_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(TiffFile(tmp_path / "a.tif"))
