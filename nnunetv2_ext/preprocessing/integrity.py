"""Whether image files hold what they should, where readers do not look.

SimpleITK reads a truncated or damaged NIfTI, Analyze or GIPL file without a word, with zeros or noise for what is
missing, as it does a damaged MetaImage that is compressed; and it reads NaN and infinity in NIfTI as 0.
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
from nnunetv2_ext.preprocessing.voxel_data import VoxelData, find_voxels, nifti_header, nifti_offset, open_whole

_ZLIB_OR_GZIP = 47
"""For zlib's decompressor, which tells the two apart then."""


class DamagedFileError(UserError):
    """Says only the file's name, as the files of a case lie in folders that a user of nnU-Net knows.

    Attributes:
        path: which file.
        what: is the matter with it.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path.name} {what}")
        self.path, self.what = path, what

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.what)


class NotFiniteError(UserError):
    """Of voxels that are no numbers; says only the file's name too.

    Attributes:
        path: of the file with the voxels.
        count: how many there are.
    """

    def __init__(self, path: Path, count: int) -> None:
        super().__init__(f"{count} voxels of {path.name} are NaN or infinite")
        self.path, self.count = path, count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.count)


def check_files(files: Sequence[Path]) -> None:
    """Read the files of the formats above, and everything that is compressed with gzip, checksums included.

    Other formats are left to nnU-Net's readers.

    Raises:
        UserError: a file is damaged, or holds NaN or infinity.
    """
    looked_through = set()
    for path in files:
        if path.stat().st_size == 0:
            raise DamagedFileError(path, "is empty")
        try:
            data = find_voxels(path)
            if data is None or data.file != path:  # another format; a header, whose voxels lie elsewhere
                _read_if_compressed(path)
            if data is None or data.file in looked_through:
                continue
            if not data.file.is_file():
                raise UserError(f"there is no file {data.file}, which {path.name} names")
            looked_through.add(data.file)
            strange = _look_through(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DamagedFileError(path, f"is damaged: {error}") from error
        if strange:  # not what is the matter with a damaged file
            raise NotFiniteError(data.file, strange)


def check_length(path: Path) -> bool:
    """Whether a file is as long as its header says, of a compressed one by its trailer: a few bytes are read.

    Returns:
        False where that does not tell whether it is whole, and it has to be read.

    Raises:
        UserError: it is damaged.
    """
    try:
        data = find_voxels(path)
        length = _length(data.file) if data else 0
    except (OSError, EOFError, zlib.error):
        data, length = None, -1
    if data is not None and data.num_bytes is not None:
        expected = data.offset + (data.num_bytes if data.stored is None else data.stored)
        if length == expected % 2**32 if _is_gzip(data.file) else length >= expected:
            return True
    check_files([path])  # compressed in several pieces, something behind the voxels, or damaged
    return data is not None and data.num_bytes is not None


def _length(path: Path) -> int:
    """Bytes of a file; uncompressed, modulo 2 ** 32, as gzip's trailer has it (RFC 1952)."""
    if not _is_gzip(path):
        return path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


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
            header = nifti_header(file)
            if not hasattr(header, "single_vox_offset") or array.size != prod(header.get_data_shape()):
                return False
            dtype = header.get_data_dtype()
            if dtype.kind not in "iuf":
                return False
            file.seek(0)
            before = file.read(nifti_offset(header))
        with path.open("rb") as raw:
            raw.seek(-8, os.SEEK_END)
            checksum, _ = struct.unpack("<II", raw.read())
    except (EOFError, OSError, zlib.error):
        return False
    with np.errstate(invalid="ignore"):
        voxels = np.ascontiguousarray(array, dtype=dtype)
    whole = zlib.crc32(voxels.reshape(-1).view(np.uint8).data, zlib.crc32(before)) == checksum
    return whole and (dtype.kind != "f" or bool(np.isfinite(voxels).all()))


def _read_if_compressed(path: Path) -> None:
    if _is_gzip(path):
        with gzip.open(path) as file:
            _read_to_end(file)


def _read_to_end(file: BufferedIOBase) -> None:
    """The checksum of gzip comes last."""
    while file.read(CHUNK_BYTES):
        pass


def _look_through(data: VoxelData) -> int:
    """How many voxels are NaN or infinite. Raises UserError where some are missing, and gzip's and zlib's errors."""
    path = data.file
    if data.stored is not None:
        _decompress(data)
        return 0
    real = data.dtype is not None and data.dtype.kind == "f"
    if not _is_gzip(path) and not real:
        if data.num_bytes is not None and path.stat().st_size < data.offset + data.num_bytes:
            raise DamagedFileError(path, "is damaged: its end is missing")
        return 0
    with open_whole(path) as file:
        file.seek(data.offset)
        strange = 0 if data.num_bytes is None else _not_finite(file, data)
        if _is_gzip(path):
            _read_to_end(file)
    return strange


def _not_finite(file: BufferedIOBase, data: VoxelData) -> int:
    left, strange = data.num_bytes or 0, 0
    while left:
        voxels = file.read(min(left, CHUNK_BYTES))
        if not voxels:
            raise DamagedFileError(data.file, "is damaged: its end is missing")
        left -= len(voxels)
        if data.dtype is not None and data.dtype.kind == "f":
            whole = len(voxels) // data.dtype.itemsize
            finite = np.isfinite(np.frombuffer(voxels, data.dtype, count=whole))
            strange += 0 if finite.all() else int(np.count_nonzero(~finite))
    return strange


def _decompress(data: VoxelData) -> None:
    """MetaImage's own compression: raises zlib.error or UserError where it is not whole."""
    decompressor, num_bytes = zlib.decompressobj(_ZLIB_OR_GZIP), 0
    with data.file.open("rb") as file:
        file.seek(data.offset)
        while not decompressor.eof and (piece := file.read(CHUNK_BYTES)):
            while piece:
                num_bytes += len(decompressor.decompress(piece, CHUNK_BYTES))
                piece = decompressor.unconsumed_tail
    if not decompressor.eof or (data.num_bytes is not None and num_bytes < data.num_bytes):
        raise DamagedFileError(data.file, "is damaged: its end is missing")
