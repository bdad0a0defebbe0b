"""What has changed since a dataset was imported: in how it is made, and in the files of its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2_ext.datasets.collection import TEST, Case
from nnunetv2_ext.datasets.staging import files_of
from nnunetv2_ext.datasets.writing import WriteJob, look_at


def described_job(job: WriteJob) -> dict[str, Any]:
    """All of a job that decides what is written, as JSON has it."""
    return {
        "part": job.case.part,
        "subject": job.case.subject,
        "ending": job.ending,
        "transfer": job.transfer.value,
        "numbers": {str(value): number for value, number in job.numbers.items()},
        "volumes": [repr(volume) for volume in (*job.case.images, job.case.label)],
    }


def is_done(entry: Mapping[str, Any] | None, described: Mapping[str, Any], case: Case) -> bool:
    """Whether a case was imported just like this, and its sources have not changed since."""
    return entry is not None and entry.get("job") == described and _has_same_sources(entry, case)


def changed_cases(
    before: Mapping[str, Any] | None, jobs: Mapping[str, WriteJob], described: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """The training cases that are new, gone, or have other voxels than in the finished dataset, as far as is known."""
    if before is None:
        return []
    old = {name: entry for name, entry in before["cases"].items() if entry.get("job", {}).get("part") != TEST}
    new = {name: job.case for name, job in jobs.items() if job.case.part != TEST}
    same = {
        name
        for name in old.keys() & new.keys()
        if all(old[name].get("job", {}).get(key) == described[name][key] for key in ("numbers", "volumes"))
        and _has_same_sources(old[name], new[name])
    }
    return sorted((old.keys() | new.keys()) - same)


def _has_same_sources(entry: Mapping[str, Any], case: Case) -> bool:
    """Whether the files have the sizes and times that were noted when they were imported."""
    volumes = [*case.images, *([case.label] if case.label else [])]
    return [file["sources"] for file in files_of(entry)] == [
        [look_at(path) for path in volume.files] for volume in volumes
    ]
