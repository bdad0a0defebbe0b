"""A dataset's cases: those that are missing or out of date are preprocessed, the others stay."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import whole_or_absent, write_json
from nnunetv2_ext.nnunet_folders import CONFIGURATION, preprocessed_folder, read_json
from nnunetv2_ext.planning.data_settings import settings_file, settings_that_shape_data
from nnunetv2_ext.preprocessing.cases import CaseJob, Outcome, Result, is_complete, is_current
from nnunetv2_ext.preprocessing.dask_cluster import run_on_dask
from nnunetv2_ext.preprocessing.run_options import RunOptions
from nnunetv2_ext.preprocessing.sources import RawCase, Record, look_at, raw_cases
from nnunetv2_ext.preprocessing.space import check_space
from nnunetv2_ext.preprocessing.workers import run_here
from nnunetv2_ext.preprocessing.workspace import clear_abandoned, others_at_work, workspace_in

_NAMED = 10
"""Cases named in a line; of more only the number is said."""


@dataclass(frozen=True)
class PreprocessingSummary:
    """What a run did.

    Attributes:
        folder: of the cases.
        made: cases that were not there before, or all with `--overwrite_pp`.
        remade: names of cases whose files or labels had changed.
        kept: cases that were there already.
        failures: outcomes of cases that could not be made.
    """

    folder: Path
    made: int = 0
    remade: Sequence[str] = ()
    kept: int = 0
    failures: Sequence[Outcome] = field(default=())

    def __str__(self) -> str:
        changed = (
            f", {len(self.remade)} again whose files or labels had changed ({_names(self.remade)})"
            if self.remade
            else ""
        )
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"{self.made} cases preprocessed{changed}, {self.kept} were there already{failed}: {self.folder}"


def preprocess_dataset(dataset: str, plan: Mapping[str, Any], options: RunOptions) -> PreprocessingSummary:
    """Preprocess the training cases of a raw dataset for a ptPlan, and copy the labels for validation.

    A case that is there whole and was made from what its files hold now is kept, so that a run that was killed is
    continued by the same command. A case that fails does not keep the others from being made.

    Args:
        dataset: full name.
        plan: a ptPlan.
        options: how to go about it.

    Raises:
        UserError: no raw data, other settings under the same identifier, no room on the disk. Cases that were finished
            stay.
    """
    description, cases = raw_cases(dataset)
    mine = cases[options.part or 0 :: options.num_parts or 1]
    target = preprocessed_folder(dataset)
    identifier = plan["configurations"][CONFIGURATION]["data_identifier"]
    folder = target / identifier
    folder.mkdir(parents=True, exist_ok=True)
    clear_abandoned(folder)
    _record_settings(target, plan)
    _copy_labels(target / "gt_segmentations", mine, description["file_ending"])

    labels = description["labels"]
    todo = [c for c in mine if options.overwrite or not is_current(c, folder, labels)]
    if not options.overwrite and (doubtful := _perhaps_outdated(mine, folder)):
        print(
            f"{len(doubtful)} cases were not preprocessed by this command and are older than their files: "
            f"{_names(doubtful)}; they are kept, and --overwrite_pp makes them again"
        )
    if left_over := _strangers(cases, folder):
        print(
            f"{len(left_over)} cases of {folder} are not in the raw dataset: {_names(left_over)}; "
            "remove their files if training is not to use them"
        )
    if not todo:
        return PreprocessingSummary(folder, kept=len(mine))
    channels, classes = len(description["channel_names"]), len(labels) - 1
    if warning := check_space(folder, plan, num_channels=channels, num_classes=classes, num_cases=len(todo)):
        print(warning)
    with workspace_in(folder) as workspace:
        if others_at_work(workspace):  # not both at the same cases
            random.shuffle(todo)
        jobs = [
            CaseJob(case, folder, workspace, plan, description, options.overwrite, options.verbose) for case in todo
        ]
        outcomes = _run(jobs, options, dataset)
    results = {result: [o.case for o in outcomes if o.result is result] for result in Result}
    return PreprocessingSummary(
        folder,
        made=len(results[Result.MADE]),
        remade=sorted(results[Result.REMADE]),
        kept=len(mine) - len(todo) + len(results[Result.KEPT]),
        failures=sorted((o for o in outcomes if o.result is Result.FAILED), key=lambda o: o.case),
    )


def failure_line(dataset: str, failures: Sequence[Outcome]) -> str:
    """What a user is to know of cases that failed, in one line."""
    first = failures[0]
    more = f" ({len(failures)} cases failed: {_names([f.case for f in failures])})" if len(failures) > 1 else ""
    return (
        f"case {first.case} of {dataset} could not be preprocessed: {first.message}{more}; "
        "the other cases are done, and the same command continues"
    )


def _run(jobs: Sequence[CaseJob], options: RunOptions, dataset: str) -> list[Outcome]:
    """Make the cases, saying at once which fail; ends where the machine is at fault, since all would fail then."""
    running: Iterator[Outcome]
    if options.scheduler is not None:
        running = run_on_dask(jobs, options.scheduler)
    else:
        running = run_here(jobs, options.num_processes)
    outcomes = []
    silent = None if options.show_progress else True
    bar = tqdm(total=len(jobs), desc=f"Preprocessing {dataset}", disable=silent)
    with bar, closing(running):  # type: ignore[type-var]  # both are generators
        for outcome in running:
            outcomes.append(outcome)
            bar.update()
            if outcome.error_number is not None:
                finished = sum(o.result is not Result.FAILED for o in outcomes)
                raise UserError(
                    f"{os.strerror(outcome.error_number)}: {jobs[0].folder}; {finished} cases of this run are finished "
                    "and kept, and the same command continues"
                )
            if outcome.result is Result.FAILED:
                bar.write(f"{outcome.case} failed: {outcome.message}")
                if options.verbose and outcome.details:
                    bar.write(outcome.details)
    return outcomes


def _perhaps_outdated(cases: Sequence[RawCase], folder: Path) -> list[str]:
    """Cases without a record, as of stock nnU-Net, that are older than a file of theirs."""
    return [
        case.name
        for case in cases
        if is_complete(folder, case.name)
        and Record.read(folder, case.name) is None
        and max(s["mtime_ns"] for s in look_at(case.files)) > (folder / f"{case.name}.pkl").stat().st_mtime_ns
    ]


def _strangers(cases: Sequence[RawCase], folder: Path) -> list[str]:
    """Cases that were preprocessed and have left the raw dataset since."""
    there = {path.name.removesuffix(".pkl") for path in folder.glob("*.pkl")}
    return sorted(there - {case.name for case in cases})


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


def _copy_labels(folder: Path, cases: Sequence[RawCase], ending: str) -> None:
    """nnU-Net validates against `gt_segmentations`, so that the raw data need not be where training runs."""
    for case in cases:
        target, source = folder / f"{case.name}{ending}", case.label.stat()
        if target.is_file():
            copy = target.stat()
            if (copy.st_mtime_ns, copy.st_size) == (source.st_mtime_ns, source.st_size):
                continue
        with whole_or_absent(target) as temporary:
            shutil.copyfile(case.label, temporary)
            os.utime(temporary, ns=(source.st_atime_ns, source.st_mtime_ns))


def _names(cases: Sequence[str]) -> str:
    return ", ".join(cases[:_NAMED]) + (", ..." if len(cases) > _NAMED else "")
