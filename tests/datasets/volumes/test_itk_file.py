"""Files that SimpleITK reads: what nnU-Net would read in them, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import (
    LIST_OF_IO_CLASSES,
    determine_reader_writer_from_file_ending,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_ext.datasets.volumes import nifti as nifti_files
from nnunetv2_ext.datasets.volumes.itk_file import ENDINGS, READ_BY_NNUNET, ItkFile
from nnunetv2_ext.errors import UserError
from tests.datasets.conftest import OBLIQUE, ORIGIN, SPACING, STRAIGHT, counted, refused_both_ways, save, voxels

CONVERTED = tuple(ending for ending in ENDINGS if ending not in READ_BY_NNUNET)


def test_nnunet_reads_the_endings_that_are_copied_as_they_are() -> None:
    stock = [*SimpleITKIO.supported_file_endings, *NibabelIO.supported_file_endings]
    assert set(READ_BY_NNUNET) == {*stock, *NibabelIOWithReorient.supported_file_endings}


def test_nnunet_has_no_other_readers_of_volumes() -> None:
    assert set(LIST_OF_IO_CLASSES) == {NaturalImage2DIO, SimpleITKIO, NibabelIO, NibabelIOWithReorient, Tiff3DIO}


@pytest.mark.parametrize("ending", READ_BY_NNUNET)
def test_nnunet_reads_the_same_voxels_and_spacing(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a_0000{ending}", counted(2, 3, 4))
    file = ItkFile(path)
    assert file.ending == ending
    reader = determine_reader_writer_from_file_ending(ending, str(path), verbose=False)()
    array, properties = reader.read_images([str(path)])
    np.testing.assert_array_equal(voxels(file), array[0])
    spacing = file.geometry().spacing
    assert spacing is not None
    np.testing.assert_allclose(spacing[::-1], properties["spacing"])


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_voxels_and_the_grid_that_were_written(ending: str, tmp_path: Path) -> None:
    direction = STRAIGHT if "gipl" in ending else OBLIQUE  # GIPL has none
    array = counted(2, 3, 4) - 7
    file = ItkFile(save(tmp_path / f"a{ending}", array, direction=direction))
    np.testing.assert_array_equal(voxels(file), array)
    geometry = file.geometry()
    assert geometry.size == (4, 3, 2)
    np.testing.assert_allclose(np.array(geometry.spacing), SPACING, rtol=1e-6)
    np.testing.assert_allclose(geometry.origin, ORIGIN, rtol=1e-6)
    np.testing.assert_allclose(geometry.direction, direction, atol=1e-6)
    image = file.image()
    assert geometry.spacing == image.GetSpacing()
    assert (geometry.origin, geometry.direction) == (image.GetOrigin(), image.GetDirection())


@pytest.mark.parametrize("ending", [*CONVERTED, ".NII.GZ", ".Nrrd"])
def test_what_nnunet_does_not_read_is_to_be_converted(ending: str) -> None:
    assert ItkFile(Path(f"/nowhere/a{ending}")).ending is None


def test_an_oblique_voxel_lies_in_the_world_where_nibabel_has_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", counted(2, 3, 4), direction=OBLIQUE)
    geometry = ItkFile(path).geometry()
    voxel = np.array([3, 1, 1])
    cosines = np.array(geometry.direction).reshape(3, 3)
    ours = np.array(geometry.origin) + cosines @ (voxel * np.array(geometry.spacing))
    right, anterior, superior = (nib.load(path).affine @ [*voxel, 1])[:3]
    np.testing.assert_allclose(ours, [-right, -anterior, superior], rtol=1e-5)  # ITK's world is left, posterior


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_the_type_of_the_voxels_is_kept(dtype: str, tmp_path: Path) -> None:
    assert voxels(ItkFile(save(tmp_path / "a.nii.gz", counted(2, 3, 4, dtype=dtype)))).dtype == np.dtype(dtype)


def test_slope_and_intercept_of_nifti_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(counted(4, 3, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(tmp_path / "a.nii")
    expected = np.asarray(nib.load(tmp_path / "a.nii").dataobj).T
    assert expected.min() == -3
    np.testing.assert_array_equal(voxels(ItkFile(tmp_path / "a.nii")), expected)


def test_the_header_is_enough_for_the_geometry(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", counted(2, 3, 4))
    path.write_bytes(path.read_bytes()[:352])
    assert ItkFile(path).geometry().size == (4, 3, 2)


def flat(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(counted(3, 4)), str(path))


def moments(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(counted(5, 2, 3, 4), isVector=False), str(path))


def colour(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(counted(2, 3, 4, 3, dtype=np.uint8), isVector=True), str(path))


def complex_numbers(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(counted(2, 3, 4, dtype=np.complex64)), str(path))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (flat, "has 2 dimensions (3 x 4)"),
        (moments, "has 4 dimensions (5 x 2 x 3 x 4)"),
        (colour, "has 3 values per voxel"),
        (complex_numbers, "has 2 values per voxel"),
    ],
)
def test_what_is_no_3d_image_of_one_value_per_voxel_is_refused(
    write: Any, said: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{ending}"
    write(path)
    for read in (ItkFile(path).geometry, ItkFile(path).image):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{path} {said}, where a 3D image with one value per voxel is needed: split it"


def refusal(path: Path) -> str:
    """What is said of a file that cannot be read, without its path in front, whichever way it is tried."""
    message = refused_both_ways(ItkFile(path))
    assert message.count(str(path)) == 1
    return message.replace(f"{path} ", "")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_no_image_is_named_with_what_it_should_be(
    ending: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"<!DOCTYPE html><html>log in</html>")
    kind = {"n": "NRRD", "m": "MetaImage", "g": "GIPL"}.get(ending[1], "NIfTI") if ending[:4] != ".nii" else "NIfTI"
    if ending in (".hdr", ".img", ".img.gz"):
        path.with_name("a.img" if ending == ".hdr" else "a.hdr").write_bytes(path.read_bytes())
    assert refusal(path) == f"is no {kind} file, or is damaged: copy or download it again"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_file_is_said_to_be_empty(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").touch()
    assert refusal(tmp_path / f"a{ending}") == "is empty: copy or download it again"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refused_both_ways(ItkFile(tmp_path / "a.nii.gz"))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_header_that_is_cut_off_is_named(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a{ending}", counted(2, 3, 4))
    path.write_bytes(path.read_bytes()[:40])
    refusal(path)


# Damage


def stored(folder: Path, ending: str, *, compressed: bool) -> tuple[ItkFile, Path]:
    """An image without zeros, and the file that holds its voxels."""
    voxels_ = np.random.default_rng(0).integers(1, 30000, (5, 6, 7)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels_), str(folder / f"a{ending}"), compressed)
    file = ItkFile(folder / f"a{ending}")
    return file, file.files[-1]


FORMS = [
    (".nii", False),
    (".nii.gz", True),
    *((ending, compressed) for ending in (".nrrd", ".mha", ".mhd", ".nhdr") for compressed in (False, True)),
    (".hdr", False),
    (".img", False),
    (".img.gz", True),
    (".gipl", False),
    (".gipl.gz", True),
]


@pytest.mark.parametrize(("ending", "compressed"), FORMS)
def test_an_image_that_is_cut_off_anywhere_is_read_whole_or_refused_in_one_line(
    ending: str, compressed: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, data = stored(tmp_path, ending, compressed=compressed)
    expected = voxels(file)
    file.check_whole()
    content = data.read_bytes()
    refused = 0
    for length in (0, 1, 60, 349, 353, len(content) // 2, len(content) - 9, len(content) - 1):
        data.write_bytes(content[: min(length, len(content) - 1)])
        for read in (lambda: np.testing.assert_array_equal(voxels(file), expected), file.check_whole):
            try:
                read()
            except UserError as error:
                refused += 1
                assert "\n" not in str(error)  # noqa: PT017
    assert refused >= 2 * 7  # teem does not look at the last bytes of gzip, its length
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ending", [ending for ending, compressed in FORMS if compressed])
def test_a_compressed_image_with_a_bit_turned_is_refused(ending: str, tmp_path: Path) -> None:
    file, data = stored(tmp_path, ending, compressed=True)
    content = bytearray(data.read_bytes())
    for place in (-12, -150, -300):
        content[place] ^= 0x10
        data.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            file.image()
        content[place] ^= 0x10


@pytest.mark.parametrize(("ending", "compressed"), FORMS)
def test_more_bytes_after_the_voxels_do_no_harm(ending: str, compressed: bool, tmp_path: Path) -> None:
    file, data = stored(tmp_path, ending, compressed=compressed)
    expected = voxels(file)
    if data.suffix == ".gz" and data.name != "a.raw.gz":
        data.write_bytes(gzip.compress(gzip.decompress(data.read_bytes()) + b"more"))
    elif not compressed:
        data.write_bytes(data.read_bytes() + b"more")
    file.check_whole()
    np.testing.assert_array_equal(voxels(file), expected)


@pytest.mark.parametrize("ending", [".img", ".hdr", ".nii", ".nii.gz"])
def test_numbers_that_are_none_are_refused_where_itk_makes_them_zero(ending: str, tmp_path: Path) -> None:
    array = np.ones((4, 3, 2), np.float32)
    array[1, 2, 0] = np.nan
    kind: Any = nib.Nifti1Image if ending.startswith(".nii") else nib.Nifti1Pair
    kind(array, np.eye(4)).to_filename(tmp_path / f"a{ending}")
    with pytest.raises(UserError, match=rf"^1 voxels of {tmp_path}/a\.(img|nii|nii\.gz) are NaN or infinite$"):
        ItkFile(tmp_path / f"a{ending}").image()


# Header and voxels in two files


@pytest.mark.parametrize(
    ("ending", "compressed", "names"),
    [
        (".mhd", False, ("a.mhd", "a.raw")),
        (".mhd", True, ("a.mhd", "a.zraw")),
        (".nhdr", False, ("a.nhdr", "a.raw")),
        (".nhdr", True, ("a.nhdr", "a.raw.gz")),
        (".hdr", False, ("a.hdr", "a.img")),
        (".img", False, ("a.hdr", "a.img")),
        (".img.gz", True, ("a.hdr.gz", "a.img.gz")),
        (".nrrd", False, ("a.nrrd",)),
        (".mha", True, ("a.mha",)),
        (".gipl", False, ("a.gipl",)),
    ],
)
def test_all_files_of_an_image_are_known(ending: str, compressed: bool, names: tuple[str, ...], tmp_path: Path) -> None:
    file, _ = stored(tmp_path, ending, compressed=compressed)
    assert file.files == tuple(tmp_path / name for name in names)
    assert set(tmp_path.iterdir()) == set(file.files)


@pytest.mark.parametrize(("ending", "other"), [(".mhd", ".raw"), (".nhdr", ".raw"), (".hdr", ".img"), (".img", ".hdr")])
def test_the_missing_one_of_two_files_is_named(ending: str, other: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a{ending}", counted(2, 3, 4))
    path.with_suffix(other).unlink()
    assert path.with_suffix(other) in ItkFile(path).files
    with pytest.raises(UserError, match=rf"a\{other}"):
        ItkFile(path).image()


@pytest.mark.parametrize(("header", "ending"), [(".mhd", ".mha"), (".nhdr", ".nrrd")])
def test_a_header_alone_is_no_image_that_can_be_copied_as_it_is(header: str, ending: str, tmp_path: Path) -> None:
    file, _ = stored(tmp_path, header, compressed=False)
    file.path.rename(tmp_path / f"a{ending}")
    renamed = ItkFile(tmp_path / f"a{ending}")
    assert renamed.ending is None
    assert renamed.files == (tmp_path / f"a{ending}", tmp_path / "a.raw")


@pytest.mark.parametrize(
    ("ending", "place"),
    [
        (".mhd", "ElementDataFile = LIST\na.raw\na.raw\n"),
        (".mhd", "ElementDataFile = a%03d.raw 1 2 1\n"),
        (".nhdr", "data file: LIST\na.raw\na.raw\n"),
        (".nhdr", "data file: a%03d.raw 1 2 1\n"),
    ],
)
def test_an_image_whose_slices_are_files_is_refused(ending: str, place: str, tmp_path: Path) -> None:
    file, _ = stored(tmp_path, ending, compressed=False)
    lines = file.path.read_text().splitlines()
    kept = [line for line in lines if not line.lower().startswith(("data file", "elementdatafile"))]
    file.path.write_text("\n".join(kept) + "\n" + place)
    assert "keeps its voxels in several files" in refusal(file.path)
    assert file.files == (file.path,)


# NIfTI headers


def nifti(path: Path, kind: Any = nib.Nifti1Image, **fields: Any) -> ItkFile:
    """2 x 3 x 4 voxels of 2 x 1.25 x 0.5 mm (z, y, x), turned and shifted; `fields` of the header are changed."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(OBLIQUE).reshape(3, 3) * SPACING
    affine[:3, 3] = ORIGIN
    image = kind(counted(2, 3, 4).T, affine)
    header = image.header
    header["vox_offset"] = header.single_vox_offset
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    for name, value in fields.items():
        header[name] = value
    start = header.binaryblock + bytes(header.single_vox_offset - header.sizeof_hdr)
    content = start + counted(2, 3, 4).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return ItkFile(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sform_code": 0},
        {"qform_code": 0},
        {"sform_code": 0, "qform_code": 0},
        {"scl_slope": 0.5, "scl_inter": -3},
        {"qoffset_x": 20, "sform_code": 2},
        {"xyzt_units": 3},
        {"dim": [4, 4, 3, 2, 1, 1, 1, 1]},
    ],
    ids=str,
)
def test_nifti_2_is_read_as_nifti_1_with_the_same_header(fields: dict[str, Any], ending: str, tmp_path: Path) -> None:
    first = nifti(tmp_path / f"one{ending}", **fields)
    second = nifti(tmp_path / f"two{ending}", nib.Nifti2Image, **fields)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(second.path))
    expected = sitk.ReadImage(str(first.path))
    np.testing.assert_array_equal(voxels(second), sitk.GetArrayFromImage(expected))
    geometry = second.geometry()
    assert (geometry.size, geometry.spacing) == (expected.GetSize(), expected.GetSpacing())
    assert (geometry.origin, geometry.direction) == (expected.GetOrigin(), expected.GetDirection())
    assert first.geometry() == geometry
    assert second.ending is None


def test_damaged_nifti_2_is_an_error(tmp_path: Path) -> None:
    for ending in (".nii", ".nii.gz"):
        file = nifti(tmp_path / f"a{ending}", nib.Nifti2Image)
        content = file.path.read_bytes()
        for length in (100, len(content) - 10):
            file.path.write_bytes(content[:length])
            with pytest.raises(UserError):
                file.image()


def test_an_axis_that_nifti_1_has_no_room_for_is_refused(tmp_path: Path) -> None:
    nib.Nifti2Image(np.ones((40000, 1, 1), np.uint8), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    assert "has 40000 voxels along an axis" in refusal(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("ending", "copied"), [(".nii.gz", ".nii.gz"), (".nii", None)])
@pytest.mark.parametrize("fields", [{"dim": [4, 4, 3, 2, 1, 1, 1, 1]}, {"xyzt_units": 3}], ids=str)
def test_what_nnunets_reader_takes_otherwise_is_converted(
    fields: dict[str, Any], ending: str, copied: str | None, tmp_path: Path
) -> None:
    file = nifti(tmp_path / f"a{ending}", **fields)
    spacing = file.geometry().spacing
    assert file.geometry().size == (4, 3, 2)
    assert file.ending == copied
    reader = NibabelIO() if ending == ".nii" else SimpleITKIO()  # the readers that nnU-Net has for these endings
    try:
        array, properties = reader.read_images([str(file.path)])
    except AssertionError:
        alike = False
    else:
        alike = array.shape == (1, 2, 3, 4) and bool(np.allclose(properties["spacing"], np.array(spacing)[::-1]))
    assert alike == (copied is not None)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    ("step", "said"), [(0, "2 x 1.25 x 0"), (np.nan, "2 x 1.25 x nan"), (np.inf, "2 x 1.25 x inf")]
)
def test_a_spacing_that_is_none_is_refused_where_itk_takes_1_mm(
    step: float, said: str, ending: str, tmp_path: Path
) -> None:
    file = nifti(tmp_path / f"a{ending}", pixdim=[1, step, 1.25, 2, 1, 1, 1, 1], sform_code=0)
    assert sitk.ReadImage(str(file.path)).GetSpacing()[0] == 1
    assert refusal(file.path) == f"says a spacing of {said} (z, y, x; pixdim in its header): correct it there"


@pytest.mark.parametrize("line", ["ElementSpacing = 0 1 1", "ElementSpacing = nan 1 1"])
def test_a_spacing_of_metaimage_that_is_none_is_refused(line: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.mhd", counted(2, 3, 4))
    lines = [line if old.startswith("ElementSpacing") else old for old in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert "pacing" in refusal(path)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_header_whose_voxels_lie_in_it_is_refused(kind: Any, tmp_path: Path) -> None:
    assert "its voxels begin at byte 0 (vox_offset in its header)" in refusal(
        nifti(tmp_path / "a.nii.gz", kind, vox_offset=0).path
    )


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("sform", {"srow_x": [np.nan, 0, 0, 0], "qform_code": 0}),
        ("sform", {"srow_y": [0, 1, 0, np.inf]}),
        ("qform", {"qoffset_z": np.nan, "sform_code": 0}),
        ("qform", {"quatern_b": np.nan}),
    ],
)
def test_an_affine_with_nan_is_refused(
    form: str, fields: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = nifti(tmp_path / "a.nii", **fields)
    assert refusal(file.path) == f"has NaN or infinity in its affine ({form} in its header): correct it there"
    assert capfd.readouterr().err == ""


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path: Path) -> None:
    sheared = nifti(tmp_path / "a.nii", srow_x=[0.5, 0.3, 0, 0], qform_code=0)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(sheared.path))
    assert "are not at right angles (sform in its header)" in refusal(sheared.path)
    header = "type: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\nencoding: raw\nendian: little\n"
    (tmp_path / "a.nrrd").write_bytes(
        f"NRRD0004\n{header}space directions: (1,0.5,0) (0,1,0) (0,0,1)\n\n".encode() + bytes(48)
    )
    assert "are not at right angles: resample it first" in refusal(tmp_path / "a.nrrd")


def test_two_spacings_in_a_header_are_remarked_on_with_the_one_that_nnunet_takes_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = nifti(tmp_path / "a.nii.gz", pixdim=[1, 1, 1.25, 2, 1, 1, 1, 1])
    for reader in (SimpleITKIO(), NibabelIO()):
        _, properties = reader.read_images([str(file.path)])
        np.testing.assert_allclose(properties["spacing"], [2, 1.25, 1])
    assert "unexpected scales in sform" in capfd.readouterr().err  # what ITK says of it
    assert (
        file.remark() == f"{file.path} says a spacing of 2 x 1.25 x 1 (pixdim) and of 2 x 1.25 x 0.5 (sform; z, y, x)"
    )
    assert file.geometry().spacing == (1.0, 1.25, 2.0)
    file.image()
    assert capfd.readouterr().err == ""
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_remarked_on_in_what_simpleitk_writes(ending: str, tmp_path: Path) -> None:
    direction = STRAIGHT if "gipl" in ending else OBLIQUE
    assert ItkFile(save(tmp_path / f"a{ending}", counted(2, 3, 4), direction=direction)).remark() is None


def test_nothing_is_remarked_on_without_an_sform(tmp_path: Path) -> None:
    assert nifti(tmp_path / "a.nii", sform_code=0, srow_x=[9, 0, 0, 0]).remark() is None


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", ">i2", "i4", ">u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("with_zlib_ng", [False, True])
def test_the_array_of_a_label_map_is_that_of_its_image(
    dtype: str, scaled: bool, with_zlib_ng: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti_files, "HAS_ZLIB_NG", nifti_files.HAS_ZLIB_NG and with_zlib_ng)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype.lstrip(">"))
    image = nib.Nifti1Image(np.arange(60).reshape(3, 4, 5, 1).astype(dtype.lstrip(">")), np.eye(4), header)
    if scaled:
        image.header.set_slope_inter(2, 3)
    nib.save(image, tmp_path / "label.nii.gz")
    label = ItkFile(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(label.array(), sitk.GetArrayFromImage(label.image()))
    assert label.array().dtype.isnative


@pytest.mark.parametrize("with_zlib_ng", [False, True])
@pytest.mark.parametrize("damage", ["turned", "cut", "checksum"])
def test_a_damaged_label_map_is_said_to_be_so_by_either_reader(
    with_zlib_ng: bool, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti_files, "HAS_ZLIB_NG", nifti_files.HAS_ZLIB_NG and with_zlib_ng)
    path = save(tmp_path / "label.nii.gz", np.random.default_rng(0).integers(0, 9, (9, 9, 9)).astype(np.uint8))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-100]
    else:
        content[-6 if damage == "checksum" else len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"label\.nii\.gz .*damaged"):
        ItkFile(path).array()
