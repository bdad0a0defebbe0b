"""Where the voxels of an image file lie, in the file itself or in one beside it, and how long that has to be.

For the formats of which SimpleITK reads two files as one image, or does not notice that voxels are missing.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_ext.errors import UserError

NIFTI = (".nii", ".nii.gz")
PAIRED = (".hdr", ".hdr.gz", ".img", ".img.gz")
"""NIfTI or Analyze in two files."""
METAIMAGE = (".mha", ".mhd")
NRRD = (".nrrd", ".nhdr")
GIPL = (".gipl", ".gipl.gz")
_HEADER_BYTES = 540
"""Of NIfTI-2, the longer one."""
_TEXT_BYTES = 1 << 18
"""More than a header of text has."""
_GIPL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
"""Of a voxel, by the type in the header, as ITK's GiplImageIO has them."""
_METAIMAGE_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t", "ulonglong", "uint64", "double"), 8),
}


@dataclass(frozen=True)
class VoxelData:
    """The voxels of an image file.

    Attributes:
        file: that holds them.
        offset: of the first, in bytes of the file (what it holds, if all of it is compressed with gzip).
        num_bytes: of all, not compressed; None where the header does not say it in a way that is understood here.
        dtype: where NaN and infinity have to be looked for, since readers pass over them.
        stored: bytes that they have in the file as a stream of zlib; None where they are not stored so.
    """

    file: Path
    offset: int = 0
    num_bytes: int | None = None
    dtype: np.dtype | None = None
    stored: int | None = None


def find_voxels(path: Path) -> VoxelData | None:
    """Of an image file; None where its header cannot be read, or its format is none of the above.

    Raises:
        UserError: the voxels lie in several files.
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    try:
        return _find_voxels(path, path.name.lower())
    except (ValueError, KeyError):  # a header that makes no sense: its reader says so
        return None


def _find_voxels(path: Path, name: str) -> VoxelData | None:
    if name.endswith(NIFTI):
        return _in_nifti(path, path)
    if name.endswith(PAIRED):
        header, voxels = pair(path)
        return _in_nifti(header, voxels) if header.is_file() else None
    if name.endswith(GIPL):
        return _in_gipl(path)
    if name.endswith(METAIMAGE):
        return _in_metaimage(path)
    return _in_nrrd(path) if name.endswith(NRRD) else None


def pair(path: Path) -> tuple[Path, Path]:
    """Header and voxels of an image in two files, from either; compressed ones first if the other is."""
    name = path.name.removesuffix(".gz")
    stem, ending = name[:-4], name[-4:]
    other = {".hdr": ".img", ".img": ".hdr", ".HDR": ".IMG", ".IMG": ".HDR"}.get(ending, ".img")
    names = [f"{stem}{other}", f"{stem}{other}.gz"]
    if path.suffix == ".gz":
        names.reverse()
    found = next((path.with_name(n) for n in names if path.with_name(n).is_file()), path.with_name(names[0]))
    return (path, found) if ending.lower() == ".hdr" else (found, path)


def open_whole(path: Path) -> Any:
    """A file, through gzip where its name says so."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def read_nifti_header(path: Path) -> Any:
    """The NIfTI (1 or 2) or Analyze header that a file begins with, as nibabel has it; None where there is none.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    with open_whole(path) as file:
        return nifti_header(file)


def nifti_header(file: BufferedIOBase) -> Any:
    """The same of an open file."""
    import nibabel as nib

    start = file.read(_HEADER_BYTES)
    known = [c for c in (nib.Nifti1Header, nib.Nifti2Header, nib.AnalyzeHeader) if c.may_contain_header(start)]
    return known[0](start[: known[0].sizeof_hdr], check=False) if known else None


def nifti_offset(header: Any) -> int:
    """Where the voxels of a single file begin; some say 0."""
    return max(int(header["vox_offset"]), header.single_vox_offset)


def _in_nifti(header_file: Path, voxels: Path) -> VoxelData | None:
    header = read_nifti_header(header_file)
    if header is None or (header_file == voxels and not hasattr(header, "single_vox_offset")):
        return None
    dtype = header.get_data_dtype()
    offset = nifti_offset(header) if header_file == voxels else max(0, int(header["vox_offset"]))
    return VoxelData(voxels, offset, prod(header.get_data_shape()) * dtype.itemsize, dtype)


def _in_gipl(path: Path) -> VoxelData | None:
    with open_whole(path) as file:
        start = file.read(256)
    if len(start) < 256 or start[252:256] not in (b"\xef\xff\xe9\xb0", b"\x2a\xe3\x89\xb8"):
        return None
    *shape, kind = struct.unpack(">5H", start[:10])
    size = _GIPL_BYTES.get(kind)
    return VoxelData(path, 256, size and size * prod(max(1, n) for n in shape))


def _in_metaimage(path: Path) -> VoxelData | None:
    with path.open("rb") as file:
        start = file.read(_TEXT_BYTES)
    fields: dict[str, str] = {}
    end = 0
    while "ElementDataFile" not in fields:
        line, newline, _ = start[end:].partition(b"\n")
        if b"\0" in line:
            return None
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            return None
        end += len(line) + len(newline)
        fields[key.strip()] = value.strip()
    place = fields["ElementDataFile"]
    if place.split()[:1] == ["LIST"] or "%" in place:
        raise UserError(f"{path} keeps its voxels in several files ({place}): convert it to a single one first")
    local = place.upper() == "LOCAL"
    data = path if local else path.parent / place
    skipped = int(fields.get("HeaderSize", "0"))
    if fields.get("BinaryData", "True").lower() not in ("true", "1") or skipped < 0:
        return VoxelData(data)
    size = _METAIMAGE_BYTES.get(fields.get("ElementType", "").removeprefix("MET_").removeprefix("U"))
    shape = [int(n) for n in fields["DimSize"].split()]
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    num_bytes = size and size * prod(shape) * channels
    offset = (end if local else 0) + skipped
    if fields.get("CompressedData", "False").lower() not in ("true", "1"):
        return VoxelData(data, offset, num_bytes)
    stored = int(fields.get("CompressedDataSize", "0"))
    return VoxelData(data, offset, num_bytes, stored=stored or max(0, _size(data) - offset))


def _in_nrrd(path: Path) -> VoxelData | None:
    with path.open("rb") as file:
        start = file.read(_TEXT_BYTES)
    if not start.startswith(b"NRRD"):
        return None
    fields: dict[str, str] = {}
    end = 0
    while end < len(start):
        line, newline, _ = start[end:].partition(b"\n")
        if b"\0" in line:
            return None
        end += len(line) + len(newline)
        text = line.decode("latin-1").strip()
        if not text:
            break
        key, colon, value = text.partition(":")
        if colon and not text.startswith("#") and not value.startswith("="):  # := is a note of the user's
            fields[key.strip().lower()] = value.strip()
    place = fields.get("data file", fields.get("datafile"))
    if place is not None and (place.split()[:1] == ["LIST"] or "%" in place):
        raise UserError(f"{path} keeps its voxels in several files ({place}): convert it to a single one first")
    data = path if place is None else path.parent / place
    return VoxelData(data, end if place is None else 0, _nrrd_bytes(fields))


def _nrrd_bytes(fields: Mapping[str, str]) -> int | None:
    """None for what is compressed too: of that, teem notices what is missing or damaged."""
    if fields.get("encoding") != "raw" or any(fields.get(f"{unit} skip", "0") != "0" for unit in ("line", "byte")):
        return None
    size = _NRRD_BYTES.get(fields.get("type", ""))
    return size and size * prod(int(n) for n in fields["sizes"].split())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
