"""A dataset's cases: those that are missing are preprocessed, those that are there stay."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import whole_or_absent, write_json
from nnunetv2_ext.nnunet_folders import CONFIGURATION, preprocessed_folder, raw_folder, read_json
from nnunetv2_ext.planning.data_settings import settings_file, settings_that_shape_data
from nnunetv2_ext.preprocessing.cases import CaseJob, is_complete, preprocess_case, workspace_in

# What concerns every case that comes after; any other fault in reading or writing is the case's own
_FAULTS_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class PreprocessingSummary:
    """What a run did: the folder of cases, how many were made and how many were there already."""

    folder: Path
    made: int
    kept: int


def preprocess_dataset(
    dataset: str,
    plan: Mapping[str, Any],
    *,
    num_processes: int,
    overwrite: bool = False,
    verbose: bool = False,
    show_progress: bool = True,
) -> PreprocessingSummary:
    """Preprocess the training cases of a raw dataset for a ptPlan, and copy the labels for validation.

    A case that is there whole is kept, so that a run that was killed is continued by the same command.

    Args:
        dataset: full name.
        plan: a ptPlan.
        num_processes: processes; 1 works in this one.
        overwrite: make every case again, replacing case by case.
        verbose: print shapes and spacings as nnU-Net does.
        show_progress: show a progress bar on a terminal.

    Raises:
        UserError: no raw data, other settings under the same identifier, a case that cannot be read, a worker that
            was killed. Cases that were finished stay.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw, target = raw_folder(dataset), preprocessed_folder(dataset)
    dataset_json = read_json(raw / "dataset.json")
    try:
        cases = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    except FileNotFoundError:  # no imagesTr
        cases = {}
    if not cases:
        raise UserError(f"{raw} has no training cases (imagesTr, labelsTr)")
    if unlabelled := [case for case, files in cases.items() if not Path(files["label"]).is_file()]:
        more = f" (nor for {len(unlabelled) - 1} more cases)" if len(unlabelled) > 1 else ""
        raise UserError(f"there is no label {cases[unlabelled[0]]['label']} for its images in imagesTr{more}")
    folder = target / plan["configurations"][CONFIGURATION]["data_identifier"]
    folder.mkdir(parents=True, exist_ok=True)
    _record_settings(target, plan)
    _copy_labels(target / "gt_segmentations", cases, dataset_json["file_ending"])

    todo = [case for case in cases if overwrite or not is_complete(folder, case)]
    with workspace_in(folder) as workspace:
        jobs = [
            CaseJob(case, cases[case]["images"], cases[case]["label"], folder, workspace, plan, dataset_json, verbose)
            for case in todo
        ]
        progress = tqdm(total=len(todo), desc=f"Preprocessing {dataset}", disable=None if show_progress else True)
        failures = {}
        with progress:
            for case, error in _run(jobs, min(num_processes, len(todo))):
                progress.update()
                if error is not None:
                    failures[case] = error
    if failures:
        case, error = next(iter(failures.items()))
        more = f" ({len(failures)} cases failed: {', '.join(sorted(failures))})" if len(failures) > 1 else ""
        raise UserError(
            f"case {case} of {dataset} could not be preprocessed: {type(error).__name__}: {error}{more}; "
            "the other cases are done, and the same command continues"
        ) from error
    return PreprocessingSummary(folder, made=len(todo), kept=len(cases) - len(todo))


def _run(jobs: Sequence[CaseJob], num_processes: int) -> Iterator[tuple[str, BaseException | None]]:
    """Yield every case as it is done, with the error that it raised or None."""
    if num_processes <= 1:
        for job in jobs:
            try:
                preprocess_case(job)
            except Exception as error:
                if _concerns_all_cases(error):
                    raise
                yield job.case, error
            else:
                yield job.case, None
        return
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(preprocess_case, job): job.case for job in jobs}
        try:
            for future in as_completed(futures):
                fault = future.exception()
                if fault is not None and _concerns_all_cases(fault):
                    raise fault
                yield futures[future], fault
        except BrokenProcessPool as error:
            raise UserError(
                "a preprocessing process was killed, most likely because memory ran out: use fewer (-np); "
                "finished cases are kept, and the same command continues"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _concerns_all_cases(fault: BaseException) -> bool:
    return isinstance(fault, BrokenProcessPool) or getattr(fault, "errno", None) in _FAULTS_OF_THE_MACHINE


def _record_settings(target: Path, plan: Mapping[str, Any]) -> None:
    """Write down what shapes the data in a folder, before the first case, for plans that come later."""
    configuration = plan["configurations"][CONFIGURATION]
    settings = settings_that_shape_data(plan, configuration)
    path = settings_file(target, configuration["data_identifier"])
    if not path.is_file():
        write_json(path, {"data_identifier": configuration["data_identifier"], "settings": settings})
    elif read_json(path)["settings"] != settings:
        raise UserError(
            f"{path} says that the folder beside it was preprocessed with other settings than this plan's; "
            "run the command that planned it again, which gives this plan a folder of its own"
        )


def _copy_labels(folder: Path, cases: Mapping[str, Mapping[str, Any]], ending: str) -> None:
    """nnU-Net validates against `gt_segmentations`, so that the raw data need not be where training runs."""
    for case, files in cases.items():
        source, target = Path(files["label"]), folder / f"{case}{ending}"
        if target.is_file() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        with whole_or_absent(target) as temporary:
            shutil.copyfile(source, temporary)
            os.utime(temporary, (source.stat().st_atime, source.stat().st_mtime))
