"""`nnUNetv2_import_dataset`: a collection of cases becomes a raw nnU-Net dataset, and its split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_ext import __version__
from nnunetv2_ext.datasets import checking, writing
from nnunetv2_ext.datasets.changes import changed_cases, described_job, is_done
from nnunetv2_ext.datasets.checking import CheckJob, Finding, check_case, rehearse_case
from nnunetv2_ext.datasets.chunk_remarks import remark_on_missing_chunks
from nnunetv2_ext.datasets.collection import TEST, Case, Collection
from nnunetv2_ext.datasets.disk_faults import check_writable, faults_named
from nnunetv2_ext.datasets.labelling import Labelling, number_classes, source_values
from nnunetv2_ext.datasets.overlaps import remark_on_overlaps
from nnunetv2_ext.datasets.overview import print_overview
from nnunetv2_ext.datasets.remarks import remark_on_outdated, remark_on_shared_images, remark_on_unused_classes
from nnunetv2_ext.datasets.spacing_remarks import remark_on_spacing
from nnunetv2_ext.datasets.split_files import SPLITS_FILE, check_split, folds_line, remark_on_split, write_split
from nnunetv2_ext.datasets.staging import MANIFEST, Staging, check_free
from nnunetv2_ext.datasets.volumes.array_files import TIFF_ENDINGS
from nnunetv2_ext.datasets.wording import counted
from nnunetv2_ext.datasets.workers import IMPORTED_ONCE, keep_freed_memory
from nnunetv2_ext.datasets.writing import Transfer, WriteJob, Written, write_case
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import nnunet_folder, preprocessed_folder
from nnunetv2_ext.worker_processes import Task, in_processes

_CONVERTED_TO = ".nii.gz"


@dataclass(frozen=True)
class ImportOptions:
    """How any collection is imported.

    Attributes:
        dataset_id: 1 to 999.
        name: of the dataset, without `DatasetXXX_`.
        transfer: of files that nnU-Net reads as they are.
        resample_labels: put label maps that lie on another grid onto their image's.
        num_processes: workers.
        dry_run: print the table of cases, write nothing.
        spacing: (z, y, x) in mm, that the user has given for images that do not say theirs.
    """

    dataset_id: int
    name: str
    transfer: Transfer = Transfer.COPY
    resample_labels: bool = False
    num_processes: int = 1
    dry_run: bool = False
    spacing: tuple[float, float, float] | None = None

    @property
    def dataset(self) -> str:
        return f"Dataset{self.dataset_id:03d}_{self.name}"


def import_dataset(kind: str, source: str, collection: Collection, options: ImportOptions) -> None:
    """Make `nnUNet_raw/DatasetXXX_NAME`, and the split in the preprocessed folder where the source defines one.

    Args:
        kind: the importer's name, for the manifest.
        source: where the data come from; a dataset of this name from elsewhere is left alone.
        collection: what the importer has found.
        options: how to import it.

    Raises:
        UserError: cases cannot be imported (they are named), the id is taken, a split of another kind is there.
    """
    collection = collection.checked()
    check_free(options.dataset)
    staging = Staging(options.dataset)
    staging.check_source(kind, source)
    for remark in collection.remarks:
        print(remark)
    if not collection.training_cases:
        raise UserError(f"{source} has no training cases")
    if options.dry_run:
        _import(kind, source, collection, options, staging)
        check_split(options.dataset, collection.splits, (staging.before or {}).get("splits"))
        return
    check_writable("nnUNet_raw", options.dataset)
    if collection.splits is not None:
        check_writable("nnUNet_preprocessed", options.dataset)
    with staging.locked():
        staging = Staging(options.dataset)  # another process may have finished meanwhile
        staging.check_source(kind, source)
        check_split(options.dataset, collection.splits, (staging.before or {}).get("splits"))
        _import(kind, source, collection, options, staging)


def _import(kind: str, source: str, collection: Collection, options: ImportOptions, staging: Staging) -> None:
    """Of a dry run all but the writing."""
    findings = _check(collection.cases, options)
    if options.dry_run:
        print_overview(collection, findings)
    _refuse(collection, findings, "all are listed above" if options.dry_run else "--dry_run lists all")
    found = [(case, findings[case.name].values) for case in collection.cases]
    labelling = number_classes(collection.class_names, found)
    ending = common_ending(collection.cases)
    jobs = {
        case.name: WriteJob(
            case, staging.folder, ending, labelling.table(case, values), options.transfer, findings[case.name].own
        )
        for case, values in found
    }
    described = {name: described_job(job) for name, job in jobs.items()}
    entries = {name: staging.record(name) for name in jobs}
    waiting = [job for name, job in jobs.items() if not is_done(entries[name], described[name], job.case)]
    description = _dataset_json(collection, labelling, source_values(found), ending, options.name)
    manifest = {
        "kind": kind,
        "source": source,
        "version": __version__,
        "dataset": description,
        "splits": collection.splits,
        "cases": entries,
        "finished": True,
    }
    changed = changed_cases(staging.before, jobs, described)
    for remark in [
        *remark_on_shared_images(collection.cases),
        *remark_on_overlaps(collection.cases),
        *remark_on_spacing(options.spacing, collection.cases, findings),
        *remark_on_missing_chunks(findings.values()),
        *remark_on_unused_classes(kind, labelling.numbers, found),
        *remark_on_outdated(options.dataset, description, (staging.before or {}).get("dataset"), changed),
    ]:
        print(remark)
    if options.dry_run:
        print(f"to be imported: {len(waiting):,} of {counted(len(jobs), 'case')}; nothing was written")
        return
    if not waiting and staging.before == manifest:
        with faults_named("nnUNet_preprocessed"):
            write_split(options.dataset, collection.splits)
        print(f"{staging.final} holds {counted(len(jobs), 'case')} as in the source: nothing to do")
        return
    with faults_named("nnUNet_raw"):
        staging.begin(kind, source)
        _write(waiting, described, entries, staging, options.num_processes)
    with faults_named("nnUNet_preprocessed"):
        write_split(options.dataset, collection.splits)  # first: should it be killed here, the same command goes on
    with faults_named("nnUNet_raw"):
        staging.publish({"dataset.json": description, MANIFEST: manifest, SPLITS_FILE: collection.splits})
    _say_what_is_next(staging.final, collection, waiting, options)


def _check(cases: Sequence[Case], options: ImportOptions) -> dict[str, Finding]:
    """What is found in each case, in their order. A name that stands twice counts once: it is a problem anyway."""
    ending = common_ending(cases)
    jobs = [CheckJob(case, options.resample_labels, ending) for case in {case.name: case for case in cases}.values()]
    task = Task(rehearse_case if options.dry_run else check_case, checking.failed, IMPORTED_ONCE, keep_freed_memory)
    with tqdm(total=len(jobs), desc="checking", unit="case", disable=None) as bar:
        findings = {}
        for finding in in_processes(task, jobs, options.num_processes):
            findings[finding.name] = finding
            bar.update()
    return {job.case.name: findings[job.case.name] for job in jobs}


def _refuse(collection: Collection, findings: Mapping[str, Finding], more: str) -> None:
    """Raises UserError for cases with problems: the first, and how many there are."""
    titles = {case.name: case.title for case in collection.cases}
    bad = [finding for finding in findings.values() if finding.problems]
    if bad:
        others = f" (and {counted(len(bad) - 1, 'more case')}; {more})" if len(bad) > 1 else ""
        raise UserError(f"{titles[bad[0].name]}: {bad[0].problems[0]}{others}; nothing was imported")


def common_ending(cases: Sequence[Case]) -> str:
    """The ending that all images share, if nnU-Net reads it; label maps follow it. Else that of what is converted."""
    endings = {image.ending for case in cases for image in case.images}
    ending = endings.pop() if len(endings) == 1 else None
    return ending or _CONVERTED_TO


def _write(
    jobs: Sequence[WriteJob],
    described: Mapping[str, Mapping[str, Any]],
    entries: dict[str, Any],
    staging: Staging,
    num_processes: int,
) -> None:
    """Do what is left; what is done is noted at once. Raises UserError where a case fails, after all others."""
    problems: list[Written] = []
    task = Task(write_case, writing.failed, IMPORTED_ONCE, keep_freed_memory)
    with tqdm(total=len(jobs), desc="importing", unit="case", disable=None) as bar:
        for written in in_processes(task, jobs, num_processes):
            bar.update()
            if written.entry is None:
                problems.append(written)
                if written.stops:
                    break
                continue
            entries[written.name] = {"job": described[written.name], **written.entry}
            staging.note(written.name, entries[written.name])
    if problems:
        others = f" (and {counted(len(problems) - 1, 'more case')})" if len(problems) > 1 else ""
        first = next((written for written in problems if written.stops), problems[0])
        fix = f"; {first.fix}" if first.fix else ""
        raise UserError(
            f"{first.name} could not be imported: {first.problem}{others}{fix}; what is done is kept, and the same "
            "command goes on"
        )


def _dataset_json(
    collection: Collection, labelling: Labelling, values: Mapping[str, Sequence[int]], ending: str, name: str
) -> dict[str, Any]:
    merged = {case.name: [list(group) for group in case.merged] for case in collection.training_cases if case.merged}
    return {
        "channel_names": {str(i): channel for i, channel in enumerate(collection.channel_names)},
        "labels": dict(labelling.numbers),
        "numTraining": len(collection.training_cases),
        "file_ending": ending,
        "name": name,
        "source_labels": dict(values),
        **({"merged_classes": merged} if merged else {}),
        **({"overwrite_image_reader_writer": "Tiff3DIO"} if ending in TIFF_ENDINGS else {}),
        **collection.described,
    }


def _say_what_is_next(final: Path, collection: Collection, waiting: Sequence[WriteJob], options: ImportOptions) -> None:
    tests = sum(case.part == TEST for case in collection.cases)
    kept = len(collection.cases) - len(waiting)
    print(
        f"{final}: {counted(len(collection.training_cases), 'training case')}, {counted(tests, 'test case')}"
        + (f" ({kept} were there)" if kept else "")
    )
    if line := folds_line(options.dataset, collection.splits, len(collection.training_cases)):
        print(line)
    remark_on_split(options.dataset, collection.splits, [case.name for case in collection.training_cases])
    clean = " --clean" if (preprocessed_folder(options.dataset) / "dataset_fingerprint.json").is_file() else ""
    print(f"next: nnUNetv2_plan_and_preprocess -d {options.dataset_id} --verify_dataset_integrity{clean} --no_pp")


def check_folders() -> None:
    """Raises UserError where nnU-Net's folders are not set or not there, before anything is read."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        if not (folder := nnunet_folder(variable)).is_dir():
            raise UserError(f"there is no folder {folder}, which {variable} names: make it, or correct the variable")
