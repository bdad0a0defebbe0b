"""From a path to the class that reads it."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_ext.datasets.volumes import array_files, itk_file
from nnunetv2_ext.datasets.volumes.array_files import NpyFile, TiffFile
from nnunetv2_ext.datasets.volumes.dicom_folder import DicomFolder
from nnunetv2_ext.datasets.volumes.itk_file import ItkFile
from nnunetv2_ext.datasets.volumes.volume import File
from nnunetv2_ext.errors import UserError

_CLASSES: dict[str, type[File]] = {
    **dict.fromkeys(itk_file.ENDINGS, ItkFile),
    **dict.fromkeys(array_files.TIFF_ENDINGS, TiffFile),
    **dict.fromkeys(array_files.NPY_ENDINGS, NpyFile),
}


def volume_at(path: Path, spacing: tuple[float, float, float] | None = None) -> File:
    """The image or label map at a path, by its ending; a folder is one of DICOM.

    Args:
        path: need not exist yet, nor be absolute.
        spacing: (z, y, x), for files that do not say it; in a format that does, the file's counts.

    Raises:
        UserError: no image ends like this.
    """
    path = path.absolute()
    if path.is_dir():
        return DicomFolder(path)
    for ending, kind in _CLASSES.items():
        if path.name.lower().endswith(ending):
            return kind(path, spacing)
    raise UserError(f"{path} ends like no image that can be read ({', '.join(_CLASSES)}; or a folder of DICOM files)")
