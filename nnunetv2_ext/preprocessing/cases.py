"""One preprocessed case: its three files appear under their names only when all are whole."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_ext.files import flush_to_disk
from nnunetv2_ext.nnunet_folders import CONFIGURATION

UNFINISHED = "unfinished"
"""Sub-folder for cases in the making. nnU-Net takes every file in a folder of cases for a case, but no sub-folder."""

# The image last: nnU-Net lists a folder's cases by their images
_ENDINGS = ("_seg.b2nd", ".pkl", ".b2nd")


def is_complete(folder: Path, case: str) -> bool:
    """Whether a case has its labels, properties and image."""
    return all((folder / f"{case}{ending}").is_file() for ending in _ENDINGS)


@dataclass(frozen=True)
class CaseJob:
    """One case to preprocess; plain data, so that it can be sent to another process.

    Attributes:
        case: its name.
        images: one file per channel.
        label: the label file.
        folder: where finished cases lie.
        workspace: an unfinished-folder of this run.
        plan: a ptPlan.
        dataset_json: the dataset's description.
        verbose: print shapes and spacings as nnU-Net does.
    """

    case: str
    images: Sequence[str]
    label: str
    folder: Path
    workspace: Path
    plan: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    verbose: bool = False


def preprocess_case(job: CaseJob) -> None:
    """Run nnU-Net's own preprocessor on one case and move its files to their place, the image last."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans_manager = PlansManager(dict(job.plan))
    configuration = plans_manager.get_configuration(CONFIGURATION)
    preprocessor = configuration.preprocessor_class(verbose=job.verbose)
    preprocessor.run_case_save(
        str(job.workspace / job.case), list(job.images), job.label, plans_manager, configuration, dict(job.dataset_json)
    )
    names = [f"{job.case}{ending}" for ending in _ENDINGS]
    for name in names:
        flush_to_disk(job.workspace / name)
    for name in names:
        os.replace(job.workspace / name, job.folder / name)


@contextmanager
def workspace_in(folder: Path) -> Iterator[Path]:
    """A sub-folder for this run's unfinished cases, gone afterwards; those of dead runs on this machine go too."""
    parent = folder / UNFINISHED
    host = socket.gethostname()
    for left_over in parent.iterdir() if parent.is_dir() else ():
        owner, _, process = left_over.name.rpartition("-")[0].rpartition("-")
        if owner == host and not _is_running(process):
            shutil.rmtree(left_over, ignore_errors=True)
    workspace = _make_workspace(parent, f"{host}-{os.getpid()}-")
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        with suppress(OSError):  # another run may be using it
            parent.rmdir()


def _make_workspace(parent: Path, prefix: str) -> Path:
    while True:
        parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another run has just ended and removed the empty parent
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
