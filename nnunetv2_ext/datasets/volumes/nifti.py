"""What a NIfTI header says that SimpleITK passes over, and NIfTI-2, which it does not read."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.preprocessing.integrity import DamagedFileError
from nnunetv2_ext.preprocessing.voxel_data import nifti_offset, read_nifti_header

HAS_ZLIB_NG = importlib.util.find_spec("zlib_ng") is not None
"""Of the extra `datasets`; Python's own zlib takes longer than SimpleITK, in which it is too."""
_BYTES_OF_NIFTI_2 = 540
"""Of the header."""
_AFFINES = {
    "sform": ("srow_x", "srow_y", "srow_z"),
    "qform": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
}
"""What they consist of in a header."""
_NO_UNIT_OR_MM = (0, 2)
"""The lower three bits of `xyzt_units`."""
_LONGEST = 32767
"""Voxels along an axis in NIfTI-1."""
_SCALE_TOLERANCE = 1e-3
"""Relative; beyond it ITK takes an sform for one of another scale than the voxels."""
_SKEW_TOLERANCE = 1e-3
"""Of cosines; NIfTI's 32 bits make far smaller ones."""


def is_nifti_2(header: Any) -> bool:
    return header is not None and int(header["sizeof_hdr"]) == _BYTES_OF_NIFTI_2


def is_nifti_1(header: Any) -> bool:
    """In one file."""
    return _is_nifti(header) and not is_nifti_2(header) and bytes(header["magic"]).startswith(b"n+1")


def holds_whole_numbers(header: Any) -> bool:
    """Whether the voxels of a NIfTI file (1, in one file) are integers, and mean what they are."""
    return (
        is_nifti_1(header)
        and header.get_data_dtype().kind in "iu"
        and float(header["scl_slope"]) in (0, 1)  # 0 stands for 1
        and float(header["scl_inter"]) == 0
    )


def read_by_nibabel_io_alike(header: Any) -> bool:
    """Whether stock nnU-Net's reader of `.nii`, nibabel, has the axes and the spacing that SimpleITK has.

    It refuses further axes, of length 1 too, and takes micrometres and metres for millimetres.
    """
    return not _is_nifti(header) or (int(header["dim"][0]) == 3 and int(header["xyzt_units"]) % 8 in _NO_UNIT_OR_MM)


def check_header(header: Any, path: Path) -> None:
    """Raises UserError for what readers take each their way (no spacing, voxels in the header), and sheared axes."""
    spacing = np.asarray(header["pixdim"][1:4], float)
    axes = spacing[: max(1, min(3, int(header["dim"][0])))]
    if not np.isfinite(axes).all() or (axes == 0).any():
        raise UserError(f"{path} says a spacing of {_listed(axes)} (z, y, x; pixdim in its header): correct it there")
    if (
        _is_nifti(header)
        and bytes(header["magic"]).startswith(b"n+")
        and header["vox_offset"] < header.single_vox_offset
    ):
        raise UserError(  # nibabel and SimpleITK read other voxels then
            f"{path} says that its voxels begin at byte {int(header['vox_offset'])} (vox_offset in its header), where "
            f"they begin at {header.single_vox_offset} or later: correct it there"
        )
    for form in _AFFINES if _is_nifti(header) else ():
        if int(header[f"{form}_code"]) > 0 and not all(np.isfinite(header[name]).all() for name in _AFFINES[form]):
            raise UserError(f"{path} has NaN or infinity in its affine ({form} in its header): correct it there")
    sform = _sform(header)
    if sform is None:
        return
    lengths = np.linalg.norm(sform, axis=0)
    if int(header["qform_code"]) == 0 and (lengths > 0).all():
        cosines = sform / lengths
        if not np.allclose(cosines.T @ cosines, np.eye(3), rtol=0, atol=_SKEW_TOLERANCE):
            raise UserError(
                f"the axes of {path} are not at right angles (sform in its header), and nnU-Net's reader refuses that: "
                "resample it first"
            )


def remark_on_header(header: Any, path: Path) -> str | None:
    """What a user should know of a header that says two spacings, of which nnU-Net's readers take pixdim."""
    sform = _sform(header)
    if sform is None:
        return None
    spacing, lengths = np.abs(np.asarray(header["pixdim"][1:4], float)), np.linalg.norm(sform, axis=0)
    if np.allclose(spacing, lengths, rtol=_SCALE_TOLERANCE, atol=0):
        return None
    return f"{path} says a spacing of {_listed(spacing)} (pixdim) and of {_listed(lengths)} (sform; z, y, x)"


def _sform(header: Any) -> np.ndarray | None:
    """Its 3 x 3 part; None where it does not count."""
    if not _is_nifti(header) or int(header["sform_code"]) <= 0:
        return None
    return np.array([header[f"srow_{axis}"][:3] for axis in "xyz"], float)


def _is_nifti(header: Any) -> bool:
    return hasattr(header, "get_sform")  # Analyze's has none


def _listed(steps: np.ndarray) -> str:
    return " x ".join(f"{step:g}" for step in reversed(steps))


@contextmanager
def twin(header: Any, path: Path) -> Iterator[Path]:
    """A file of NIfTI-1 with a file's header and no voxels, for ITK to say what geometry it makes of that.

    Raises:
        UserError: NIfTI-1 has no room for it.
    """
    import nibabel as nib

    if (np.asarray(header["dim"]) > _LONGEST).any():
        raise UserError(
            f"{path} has {max(header['dim'])} voxels along an axis, where NIfTI as nnU-Net reads it has at most "
            f"{_LONGEST}: cut it into pieces"
        )
    first = nib.Nifti1Header()
    for name in set(first.keys()) & set(header.keys()) - {"sizeof_hdr", "magic", "vox_offset"}:
        first[name] = header[name]
    first["vox_offset"] = first.single_vox_offset
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "twin.nii"
        target.write_bytes(first.binaryblock + bytes(4))  # that no extension follows
        yield target


def read_voxels(header: Any, path: Path) -> np.ndarray:
    """(z, y, x) of a file with this header, with its slope and intercept.

    Raises:
        Exception: of nibabel's and its libraries, where they cannot be read.
    """
    from nibabel.arrayproxy import ArrayProxy

    shape, scale = header.get_data_shape()[:3], [s for s in header.get_slope_inter() if s is not None]
    return np.asanyarray(ArrayProxy(path, (shape, header.get_data_dtype(), nifti_offset(header), *scale))).T


def read_compressed(header: Any, path: Path) -> np.ndarray:
    """(z, y, x) of a file that `holds_whole_numbers`, compressed with gzip; by zlib-ng.

    Raises:
        DamagedFileError: its checksum is not that of its content, or there is too little of it.
    """
    from zlib_ng import gzip_ng, zlib_ng

    shape, dtype = header.get_data_shape()[:3], header.get_data_dtype()
    try:
        content = gzip_ng.decompress(path.read_bytes())
        array = np.frombuffer(content, dtype, prod(shape), nifti_offset(header)).reshape(shape[::-1])
    except (EOFError, BadGzipFile, zlib_ng.error, ValueError) as error:  # type: ignore[misc]  # its stub errs
        raise DamagedFileError(path, f"is damaged: {error}") from error
    return array.astype(dtype.newbyteorder("="), copy=False)


def header_of(path: Path) -> Any:
    """A NIfTI or Analyze header; None where there is none, or the file cannot be read."""
    try:
        return read_nifti_header(path)
    except Exception:  # damaged bytes: the reader says so
        return None
