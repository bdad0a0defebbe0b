"""One preprocessed case: its three files appear under their names only when all are whole."""

from __future__ import annotations

import errno
import os
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import flush_to_disk
from nnunetv2_ext.nnunet_folders import CONFIGURATION
from nnunetv2_ext.preprocessing.integrity import check_files
from nnunetv2_ext.preprocessing.sources import RawCase, Record, look_at, with_hashes

# The image last: nnU-Net lists a folder's cases by their images
_ENDINGS = ("_seg.b2nd", ".pkl", ".b2nd")

MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}
"""What concerns every case that comes after; any other fault in reading or writing is the case's own."""
_PROBE_BYTES = 8 * 1024 * 1024


def is_complete(folder: Path, case: str) -> bool:
    """Whether a case has its labels, properties and image, and is not half replaced by another version of itself."""
    if not all((folder / f"{case}{ending}").is_file() for ending in _ENDINGS):
        return False
    record = Record.read(folder, case)
    return record is None or record.complete


class Result(Enum):
    """What became of a case."""

    MADE = "made"
    REMADE = "made again, since its files or labels have changed"
    KEPT = "kept, since it was there with this content"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of a case; plain data, so that it can be sent back from another process.

    Attributes:
        case: its name.
        result: made, kept or failed.
        message: why it failed, in one line.
        error_number: of a fault of the machine (`MACHINE_FAULTS`), else None.
        details: the traceback.
    """

    case: str
    result: Result
    message: str = ""
    error_number: int | None = None
    details: str = ""


@dataclass(frozen=True)
class CaseJob:
    """One case to preprocess; plain data, so that it can be sent to another process or machine.

    Attributes:
        raw: the case and its files.
        folder: where finished cases lie.
        workspace: an unfinished-folder of this run.
        plan: a ptPlan.
        dataset_json: the dataset's description.
        overwrite: make the case again whatever is there.
        verbose: print shapes and spacings as nnU-Net does.
    """

    raw: RawCase
    folder: Path
    workspace: Path
    plan: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    overwrite: bool = False
    verbose: bool = False


def is_current(case: RawCase, folder: Path, labels: Mapping[str, Any]) -> bool:
    """Whether a case is there and, as far as is known without reading its files, made from what they are now."""
    if not is_complete(folder, case.name):
        return False
    record = Record.read(folder, case.name)
    return record is None or record.has_times_of(look_at(case.files), labels)


def preprocess_case(job: CaseJob) -> Outcome:
    """Make a case, unless what is there was made from the same content; never raises for faults of the case."""
    try:
        return Outcome(job.raw.name, _make(job))
    except MemoryError:
        return Outcome(job.raw.name, Result.FAILED, "memory ran out: use fewer processes (-np)")
    except Exception as error:
        number = getattr(error, "errno", None)
        return Outcome(
            job.raw.name,
            Result.FAILED,
            _in_a_line(error) + (" (its earlier version stays)" if is_complete(job.folder, job.raw.name) else ""),
            number if number in MACHINE_FAULTS else None,
            traceback.format_exc(),
        )


def _make(job: CaseJob) -> Result:
    case, files, labels = job.raw.name, job.raw.files, job.dataset_json["labels"]
    if not job.overwrite and is_current(job.raw, job.folder, labels):  # another run has made it meanwhile
        return Result.KEPT
    there, known = is_complete(job.folder, case), Record.read(job.folder, case)
    state = look_at(files)
    record = Record(with_hashes(state, files), labels)
    job.workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{case}-", dir=job.workspace) as own:
        scratch = Path(own)
        if there and not job.overwrite and known is not None and known.has_content_of(record.sources, labels):
            record.write(job.folder, case, scratch)  # the same content with other times
            return Result.KEPT
        try:
            _run_nnunet(job, scratch / case)
        except Exception:
            check_files(files)  # what is wrong with a damaged file is that it is damaged
            raise
        if look_at(files) != state:
            raise UserError("its files changed while they were being read: run the same command once they are settled")
        replace(record, complete=False).write(job.folder, case, scratch)
        _publish(scratch, job.folder, case)
        record.write(job.folder, case, scratch)
    return Result.REMADE if there and not job.overwrite else Result.MADE


def _run_nnunet(job: CaseJob, target: Path) -> None:
    """Write the case's three files below the path `target`."""
    import blosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_ext.preprocessing.preprocessor import ExactPreprocessor, preprocessor_for

    plans_manager = PlansManager(dict(job.plan))
    configuration = plans_manager.get_configuration(CONFIGURATION)
    preprocessor = preprocessor_for(configuration, job.verbose)
    images = [str(path) for path in job.raw.images]
    if not isinstance(preprocessor, ExactPreprocessor):
        check_files(job.raw.files)
    with _channels_that_differ_named(job, plans_manager), _write_faults_named(target.parent):
        preprocessor.run_case_save(
            str(target), images, str(job.raw.label), plans_manager, configuration, dict(job.dataset_json)
        )
        for ending in ("", "_seg"):
            blosc2.open(f"{target}{ending}.b2nd", mode="r")  # fails where its end is missing


def _publish(workspace: Path, folder: Path, case: str) -> None:
    names = [f"{case}{ending}" for ending in _ENDINGS]
    for name in names:
        flush_to_disk(workspace / name)
    for name in names:
        if name == names[-1]:
            flush_to_disk(folder)
        os.replace(workspace / name, folder / name)
    flush_to_disk(folder)


@contextmanager
def _write_faults_named(folder: Path) -> Iterator[None]:
    """Blosc2 says of a full disk only that an array could not be made: find out what the system says."""
    try:
        yield
    except RuntimeError:
        probe = folder / "probe"
        with probe.open("wb") as file:  # raises OSError with the reason where there is no room
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        raise


@contextmanager
def _channels_that_differ_named(job: CaseJob, plans_manager: Any) -> Iterator[None]:
    """nnU-Net's readers refuse channels of different geometry with an empty error."""
    try:
        yield
    except RuntimeError as error:
        if str(error):
            raise
        read = plans_manager.image_reader_writer_class().read_images
        seen = []
        for path in job.raw.images:
            data, properties = read([str(path)])
            shape, spacing = " x ".join(map(str, data.shape[1:])), " x ".join(f"{s:g}" for s in properties["spacing"])
            seen.append(f"{path.name} has {shape} voxels of {spacing} mm")
        raise UserError(f"its channels differ in shape or spacing: {', '.join(seen)}") from error


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}" if text else type(error).__name__
