"""Whether image files hold what they should, where readers do not look.

SimpleITK reads a truncated or damaged NIfTI file without a word, with zeros or noise for what is missing, and reads NaN
and infinity in one as 0.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import CHUNK_BYTES

_NIFTI = (".nii", ".nii.gz")
_HEADER_BYTES = 540
"""Of NIfTI-2, the longer one."""


def check_files(files: Sequence[Path]) -> None:
    """Read NIfTI files and everything that is compressed with gzip, checksums included.

    Other formats are left to nnU-Net's readers.

    Raises:
        UserError: a file is damaged, or holds NaN or infinity.
    """
    for path in files:
        if path.stat().st_size == 0:
            raise UserError(f"{path.name} is empty")
        compressed = path.suffix == ".gz"
        if not compressed and not path.name.endswith(_NIFTI):
            continue
        try:
            with gzip.open(path) if compressed else path.open("rb") as file:
                strange = _not_finite(file, path.name) if path.name.endswith(_NIFTI) else 0
                while file.read(CHUNK_BYTES):  # the checksum comes last
                    pass
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path.name} is damaged: {error}") from error
        if strange:  # not what is the matter with a damaged file
            raise UserError(f"{strange} voxels of {path.name} are NaN or infinite")


def check_length(path: Path) -> None:
    """Whether a NIfTI file is as long as its header says, of a compressed one by its trailer: a few bytes are read.

    Raises:
        UserError: it is damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = _header(file)
        length = _length(path)
    except (OSError, EOFError, zlib.error):
        header, length = None, -1
    if header is not None:
        expected = _offset(header) + prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        if length == expected % 2**32:
            return
    check_files([path])  # compressed in several pieces, something behind the voxels, or damaged


def _length(path: Path) -> int:
    """Bytes of a file, uncompressed; modulo 2 ** 32, as gzip's trailer has it (RFC 1952)."""
    if path.suffix != ".gz":
        return path.stat().st_size % 2**32
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


def check_as_read(files: Sequence[Path], arrays: Sequence[npt.NDArray[Any]]) -> None:
    """The same for files that have been read: an array that has its file's checksum proves the file.

    Args:
        files: any.
        arrays: `(z, y, x)`, what a reader has made of each file.

    Raises:
        UserError: as `check_files`.
    """
    if len(files) != len(arrays):  # several channels in a file
        check_files(files)
    else:
        check_files([path for path, array in zip(files, arrays, strict=True) if not _proves(array, path)])


def _proves(array: npt.NDArray[Any], path: Path) -> bool:
    """Whether the gzip checksum of a NIfTI file is that of its header and this array, and all voxels are finite."""
    if not path.name.endswith(".nii.gz"):
        return False
    try:
        with gzip.open(path) as file:
            header = _header(file)
            if header is None or array.size != prod(header.get_data_shape()):
                return False
            dtype = header.get_data_dtype()
            if dtype.kind not in "iuf":
                return False
            file.seek(0)
            before = file.read(_offset(header))
        with path.open("rb") as raw:
            raw.seek(-8, os.SEEK_END)
            checksum, _ = struct.unpack("<II", raw.read())
    except (EOFError, OSError, zlib.error):
        return False
    with np.errstate(invalid="ignore"):
        voxels = np.ascontiguousarray(array, dtype=dtype)
    whole = zlib.crc32(voxels.reshape(-1).view(np.uint8).data, zlib.crc32(before)) == checksum
    return whole and bool(np.isfinite(voxels).all())


def _header(file: BufferedIOBase) -> Any:
    """The NIfTI header that a file begins with; None where there is none."""
    import nibabel as nib

    start = file.read(_HEADER_BYTES)
    known = [c for c in (nib.Nifti1Header, nib.Nifti2Header) if c.may_contain_header(start)]
    return known[0](start[: known[0].sizeof_hdr], check=False) if known else None


def _offset(header: Any) -> int:
    """Where the voxels begin; some files say 0."""
    return max(int(header["vox_offset"]), header.single_vox_offset)


def _not_finite(file: BufferedIOBase, name: str) -> int:
    """How many voxels of a NIfTI file are NaN or infinite. Raises UserError where there are too few."""
    header = _header(file)
    if header is None:
        return 0  # not the NIfTI file it seems to be: nnU-Net's reader says so
    dtype, left = header.get_data_dtype(), prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    file.seek(_offset(header))
    strange = 0
    while left:
        voxels = file.read(min(left, CHUNK_BYTES))
        if not voxels:
            raise UserError(f"{name} is damaged: its end is missing")
        left -= len(voxels)
        if dtype.kind == "f":
            finite = np.isfinite(np.frombuffer(voxels, dtype, count=len(voxels) // dtype.itemsize))
            strange += 0 if finite.all() else int(np.count_nonzero(~finite))
    return strange
