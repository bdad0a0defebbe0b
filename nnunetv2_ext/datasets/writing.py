"""One case into the folders of a raw dataset: linked or copied as it is where nnU-Net reads it so, else converted."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.checking import common_geometry
from nnunetv2_ext.datasets.collection import TEST, Case
from nnunetv2_ext.datasets.conversion import finite_image, label_on_grid, stays_as_it_is
from nnunetv2_ext.datasets.disk_faults import fix_of, is_of_disk, said
from nnunetv2_ext.datasets.volumes.array_files import TIFF_ENDINGS
from nnunetv2_ext.datasets.volumes.volume import Geometry, Volume
from nnunetv2_ext.datasets.wording import in_a_line
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import CHUNK_BYTES, copy_and_hash, flush_to_disk, sha256
from nnunetv2_ext.preprocessing.cases import MACHINE_FAULTS

_BEGUN = ThreadPoolExecutor(1, "flush")
"""What becomes of it is no matter here: what cannot be flushed is said when all are waited for."""


_FIX = "mend or leave out that case"


class Transfer(str, Enum):
    """How a file comes into the dataset that nnU-Net reads as it is."""

    COPY = "copy"
    SYMLINK = "symlink"


@dataclass(frozen=True)
class WriteJob:
    """A case, and how it is to be written.

    Attributes:
        case: checked.
        folder: of the dataset, with its sub-folders.
        ending: of all its files.
        numbers: for each value of the label map, nnU-Net's label.
        transfer: of what needs no conversion.
        geometries: of each image, and of the label map.
    """

    case: Case
    folder: Path
    ending: str
    numbers: Mapping[int, int]
    transfer: Transfer
    geometries: tuple[Geometry, ...]


@dataclass(frozen=True)
class Written:
    """What became of a case.

    Attributes:
        name: the case's.
        entry: for the manifest; None if it failed.
        problem: why it failed.
        fix: what the user does about it, where the problem does not say so.
        stops: whether every case that comes after would fail for this too (a full disk).
    """

    name: str
    entry: dict[str, Any] | None = field(default=None)
    problem: str = ""
    fix: str = ""
    stops: bool = False


def write_case(job: WriteJob) -> Written:
    """Write a case's files, each whole or not at all. Raises nothing for what is wrong with the case."""
    case = job.case
    images, labels = ("imagesTs", "labelsTs") if case.part == TEST else ("imagesTr", "labelsTr")
    try:
        geometry = common_geometry(case.images, job.geometries[: len(case.images)])
        entry: dict[str, Any] = {"images": []}
        for channel, (volume, own) in enumerate(zip(case.images, job.geometries, strict=False)):
            target = f"{images}/{case.name}_{channel:04d}{job.ending}"
            entry["images"].append(_write_image(job, volume, own, geometry, target))
        _write_spacing(job, geometry, f"{images}/{case.name}.json")
        if case.label is not None:
            entry["label"] = _write_label(job, case.label, geometry, f"{labels}/{case.name}{job.ending}")
            _write_spacing(job, geometry, f"{labels}/{case.name}.json")
    except UserError as error:
        return Written(case.name, problem=str(error), fix=_FIX)
    except (OSError, RuntimeError) as error:  # SimpleITK's are RuntimeErrors
        if not isinstance(error, OSError) or error.errno not in MACHINE_FAULTS:
            return Written(case.name, problem=in_a_line(error), fix=_FIX)
        if not is_of_disk(error):
            return Written(case.name, problem=in_a_line(error), stops=True)
        return Written(case.name, problem=said(error, job.folder.parent, "nnUNet_raw"), fix=fix_of(error), stops=True)
    return Written(case.name, entry)


def failed(job: WriteJob, reason: str) -> Written:
    """Of a case whose process has died."""
    return Written(job.case.name, problem=reason)


def _write_image(job: WriteJob, volume: Volume, own: Geometry, geometry: Geometry, target: str) -> dict[str, Any]:
    if stays_as_it_is(volume, own, geometry, job.ending):
        return _as_it_is(job, volume, target)
    image = finite_image(volume)
    if own.spacing != geometry.spacing:  # unknown, or other in its last digits, for which nnU-Net would refuse it
        geometry.put_on(image)
    return _converted(job, volume, image, target)


def _write_label(job: WriteJob, label: Volume, geometry: Geometry, target: str) -> dict[str, Any]:
    own = job.geometries[-1]
    fits = own.spacing == geometry.spacing and geometry.difference(own) is None
    if label.ending == job.ending and all(a == b for a, b in job.numbers.items()) and (fits or _is_tiff(job.ending)):
        return _as_it_is(job, label, target)
    image = label_on_grid(label, own, geometry, job.numbers, job.case.images[0])
    renumbered = sitk.GetImageFromArray(_renumbered(sitk.GetArrayViewFromImage(image), job.numbers))
    renumbered.CopyInformation(image)
    return _converted(job, label, renumbered, target)


def _renumbered(array: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """`array` with the values of `numbers` replaced; 8 bits where they are enough."""
    table = np.zeros(max(numbers, default=0) + 1, np.uint16)
    for value, number in numbers.items():
        table[value] = number
    if table.max() < np.iinfo(np.uint8).max:
        table = table.astype(np.uint8)
    return table[array.astype(np.int64, copy=False)]


def _as_it_is(job: WriteJob, volume: Volume, target: str) -> dict[str, Any]:
    (source,) = volume.files
    path = job.folder / target
    if job.transfer is Transfer.SYMLINK:
        temporary = _temporary(path)
        temporary.symlink_to(source)
        os.replace(temporary, path)
        return _entry(job, volume, target, "linked", sha256(source))
    digest = _whole(path, lambda temporary: _copy(source, temporary))
    return _entry(job, volume, target, "copied", digest)


def _copy(source: Path, target: Path) -> str:
    """A file with its times and rights; returns its sha256."""
    digest = copy_and_hash(source, target)
    shutil.copystat(source, target)
    return digest


def _converted(job: WriteJob, volume: Volume, image: sitk.Image, target: str) -> dict[str, Any]:
    def write(temporary: Path) -> None:
        if _is_tiff(job.ending):
            import tifffile

            # else tifffile takes three or four slices of 8 bits for colours
            tifffile.imwrite(temporary, sitk.GetArrayViewFromImage(image), compression="zlib", photometric="minisblack")
        else:
            try:
                sitk.WriteImage(image, str(temporary), useCompression=True)
            except RuntimeError as error:  # which does not say why
                if shutil.disk_usage(temporary.parent).free < CHUNK_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise
            _check_end(temporary, sitk.GetArrayViewFromImage(image).nbytes)

    _whole(job.folder / target, write)
    hashes = [sha256(path) for path in volume.files if path.is_file()]
    if len(hashes) != 1:  # the slices of a scan, or no file at all
        content = "".join(hashes).encode() or sitk.GetArrayViewFromImage(image).tobytes()
        hashes = [hashlib.sha256(content).hexdigest()]
    return _entry(job, volume, target, "converted", hashes[0])


def _check_end(path: Path, num_bytes: int) -> None:
    """SimpleITK writes NIfTI and GIPL to a full disk without a word. Raises OSError where voxels are missing."""
    header = {".nii": 352, ".gz": 352, ".gipl": 256}.get(path.suffix)
    if header is None:
        return
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            there = sum(map(len, iter(lambda: file.read(CHUNK_BYTES), b"")))
    except EOFError:
        there = 0
    if there < header + num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_spacing(job: WriteJob, geometry: Geometry, target: str) -> None:
    """Where nnU-Net's reader of TIFF looks for it: beside the file, without the channel's number."""
    if _is_tiff(job.ending):
        assert geometry.spacing is not None
        content = json.dumps({"spacing": list(reversed(geometry.spacing))})
        _whole(job.folder / target, lambda temporary: temporary.write_text(content))


def _is_tiff(ending: str) -> bool:
    return ending in TIFF_ENDINGS


def _whole(path: Path, write: Callable[[Path], Any]) -> Any:
    """Write under another name, and rename.

    The disk begins with it while others are written; before the dataset has its name, all are waited for.
    """
    temporary = _temporary(path)
    try:
        result = write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _BEGUN.submit(flush_to_disk, path)
    return result


def _temporary(path: Path) -> Path:
    """Hidden, and with the same ending, by which writers choose the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.unlink(missing_ok=True)
    return temporary


def _entry(job: WriteJob, volume: Volume, target: str, how: str, digest: str) -> dict[str, Any]:
    return {
        "file": target,
        "size": (job.folder / target).stat().st_size,
        "source": volume.where,
        "sha256": digest,
        "how": how,
        "sources": [look_at(path) for path in volume.files],
    }


def look_at(path: Path) -> list[int]:
    """Size and time of modification of a source's file, by which a change is noticed without reading it."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
