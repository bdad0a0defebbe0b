"""Whether a case can be imported: everything that can be told from headers and the label map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunetv2_ext.datasets.collection import Case
from nnunetv2_ext.datasets.conversion import distinct, finite_image, label_on_grid, stays_as_it_is
from nnunetv2_ext.datasets.labelling import class_of
from nnunetv2_ext.datasets.volumes.volume import Geometry, Volume
from nnunetv2_ext.datasets.wording import in_a_line
from nnunetv2_ext.errors import UserError

_SHOWN = 5
MAX_LABEL = 65535
"""nnU-Net writes labels with 16 bits at most."""


@dataclass(frozen=True)
class CheckJob:
    """A case to check.

    Attributes:
        case: as it was found.
        resample_labels: whether a label map that lies on another grid than its image is put onto the image's.
        ending: of the dataset's files; an image that has it is not read when it is imported.
    """

    case: Case
    resample_labels: bool
    ending: str = ".nii.gz"


@dataclass(frozen=True)
class Finding:
    """What was found in a case.

    Attributes:
        name: the case's.
        geometry: of its images; None where they cannot be read.
        own: of each of them, and of its label; as they are read once, writing takes them from here.
        values: in its label map, ascending.
        problems: why it cannot be imported.
        remarks: what the user should know of its headers.
        not_stored: of what images the storage holds nothing.
    """

    name: str
    geometry: Geometry | None = None
    own: tuple[Geometry, ...] = ()
    values: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    not_stored: tuple[str, ...] = ()


def check_case(job: CheckJob) -> Finding:
    """Read the headers of a case's images, and its label map. Raises nothing for what is wrong with them."""
    case = job.case
    if case.problems:
        return Finding(case.name, problems=case.problems)
    try:
        own = tuple(map(geometry_of, case.images))
        geometry = common_geometry(case.images, own)
        for volume in case.images:
            if volume.ending == job.ending:
                volume.check_whole()
            else:  # it is read when it is converted
                volume.check_length()
        found = Finding(case.name, geometry, own, remarks=_remarks(case), not_stored=_not_stored(case))
    except UserError as error:
        return Finding(case.name, problems=(str(error),))
    if case.label is None:
        return found
    try:
        own = (*own, geometry_of(case.label))
        values = check_label(case, case.label, geometry, own[-1], resample=job.resample_labels)
    except UserError as error:
        return Finding(case.name, geometry, own, problems=(str(error),))
    return replace(found, own=own, values=values)


def rehearse_case(job: CheckJob) -> Finding:
    """Check a case, and read what its import would convert, so that this too finds what stands against it.

    Images that are copied are not read, neither here nor there.
    """
    found, case = check_case(job), job.case
    if found.problems or found.geometry is None:
        return found
    problems = []
    for volume, own in zip(case.images, found.own, strict=False):
        if not stays_as_it_is(volume, own, found.geometry, job.ending):
            problems += _problem_of(finite_image, volume)
    if case.label is not None and found.geometry.difference(found.own[-1]) is not None:
        problems += _problem_of(label_on_grid, case.label, found.own[-1], found.geometry, found.values, case.images[0])
    return replace(found, values=(), problems=tuple(problems)) if problems else found


def _problem_of(read: Callable[..., object], *arguments: object) -> list[str]:
    """What is raised against reading, if anything: none or one."""
    try:
        read(*arguments)
    except (UserError, OSError, RuntimeError) as error:  # SimpleITK's are RuntimeErrors
        return [in_a_line(error)]
    return []


def _remarks(case: Case) -> tuple[str, ...]:
    found = (volume.remark() for volume in (*case.images, case.label) if volume is not None)
    return tuple(remark for remark in found if remark is not None)


def _not_stored(case: Case) -> tuple[str, ...]:
    found = (volume.not_stored() for volume in case.images)
    return tuple(said for said in found if said is not None)


def common_geometry(images: Sequence[Volume], geometries: Sequence[Geometry]) -> Geometry:
    """Of all channels, from that of each. Raises UserError where they differ, or do not say their spacing."""
    first, geometry = images[0], geometries[0]
    for volume, other in zip(images[1:], geometries[1:], strict=True):
        if difference := geometry.difference(other):
            raise UserError(f"{first.where} and {volume.where} differ in {difference}")
        if geometry.spacing is None:
            geometry = other
    if geometry.spacing is None:
        raise UserError(f"{first.where} does not say its spacing: give it (-spacing Z Y X)")
    return geometry


def check_label(case: Case, label: Volume, geometry: Geometry, own: Geometry, *, resample: bool) -> tuple[int, ...]:
    """The values in a label map, ascending. Raises UserError where it does not fit its images or the classes.

    Args:
        case: that it belongs to.
        label: its label map.
        geometry: of its images.
        own: of the label map.
        resample: whether the label map may lie on another grid.
    """
    difference = geometry.difference(own)
    if difference and not (resample and own.spacing is not None):
        fix = ": --resample_labels puts it onto the image's grid" if own.spacing is not None else ""
        raise UserError(f"{case.images[0].where} and its label {label.where} differ in {difference}{fix}")
    values = label_values(label)
    try:
        for value in values:
            class_of(case, value)
    except KeyError:
        unknown = [value for value in values if case.classes is not None and value and value not in case.classes]
        raise UserError(
            f"{label.where} holds {_listed(unknown)}, which the labels do not name (they name "
            f"{_listed(sorted(case.classes or ()))})"
        ) from None
    return values


def label_values(label: Volume) -> tuple[int, ...]:
    """The values in a label map, ascending; whole numbers of at least 0. Raises UserError for others."""
    found = distinct(label.array())
    if found.dtype.kind == "f" and not np.array_equal(found, np.round(found)):  # NaN is unequal to itself
        strange = found[~(found == np.round(found))]
        raise UserError(f"{label.where} holds {_listed(strange)}, where labels are whole numbers")
    if found[0] < 0 or found[-1] > MAX_LABEL:
        strange = found[(found < 0) | (found > MAX_LABEL)]
        raise UserError(f"{label.where} holds {_listed(strange)}, where labels are 0 to {MAX_LABEL}")
    return tuple(int(value) for value in found)


def geometry_of(volume: Volume) -> Geometry:
    """Of an image or a label map. Raises UserError where it is not there or cannot be read."""
    for path in volume.files:
        if not path.exists():
            raise UserError(f"there is no file {path}")
    return volume.geometry()


def _listed(values: Iterable[float]) -> str:
    numbers = [f"{value:g}" for value in values]
    more = f" and {len(numbers) - _SHOWN} more values" if len(numbers) > _SHOWN else ""
    return ", ".join(numbers[:_SHOWN]) + more


def failed(job: CheckJob, reason: str) -> Finding:
    """Of a case whose process has died."""
    return Finding(job.case.name, problems=(reason,))
