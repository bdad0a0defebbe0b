"""`bids`: images of a BIDS dataset with label maps in its derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.datasets.collection import TEST, TRAIN, Case, Collection, case_name, choose_channel_names
from nnunetv2_ext.datasets.sources.bids_classes import Classes, classes_of_labels, names_in_order, remarks_on_names
from nnunetv2_ext.datasets.sources.bids_files import ABSENT, BidsFile, check_dataset, pipeline_folder, read_folder
from nnunetv2_ext.datasets.sources.bids_matching import Match, WantedImage, WantedLabel, match_files, texts
from nnunetv2_ext.datasets.sources.bids_query import BidsQuery, Channel, Unlabelled, usual_channel_names
from nnunetv2_ext.datasets.splits import split_by_subject
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.datasets.wording import counted, listed
from nnunetv2_ext.errors import UserError

_LIKE_THE_IMAGE = ("orig", "native")
"""Values of `space`."""


@dataclass(frozen=True)
class _Found:
    """An image of the first channel, and what belongs to it."""

    image: BidsFile
    others: tuple[Match, ...]
    label: Match

    @property
    def subject(self) -> str:
        return self.image.entities["sub"]


def read_bids(
    root: Path, query: BidsQuery, classes: Classes | None = None, channel_names: Sequence[str] | None = None
) -> Collection:
    """One case for each image of the first channel; see `bids_matching` for what belongs to it.

    Args:
        root: of the dataset, with `dataset_description.json`.
        query: which images, and which label maps.
        classes: the names of the label maps' values; None: those of the `dseg.tsv` that is for a label map (columns
            `index` and `name`), or of no table each value is a class.
        channel_names: None: the suffixes, with the entities that tell channels of one suffix apart.

    Raises:
        UserError: no BIDS dataset, no image or label map like this, a subject that does not exist, more or fewer
            channel names than channels.
    """
    names = choose_channel_names(channel_names, usual_channel_names(query.channels))
    root = root.absolute()
    check_dataset(root)
    folder = pipeline_folder(root, query.derivatives)
    found, remarks = _with_labels(_find(root, folder, query), query.unlabelled)
    remarks = [*remarks, *_remarks_on_entities(found, query)]
    labels = [case.label.file for case in found if case.label.file is not None]
    tables: Mapping[Path, Classes | None] = dict.fromkeys((label.path for label in labels), classes)
    if classes is None and query.label_suffix == "dseg":
        tables = classes_of_labels(folder, labels)
        remarks += remarks_on_names(list(tables.values()))
    cases = tuple(_case(root, of_image, tables, query.unlabelled) for of_image in found)
    return Collection(
        cases=cases,
        channel_names=names,
        class_names=tuple(classes.values()) if classes is not None else names_in_order(list(tables.values())),
        splits=split_by_subject(cases),
        remarks=tuple(remarks),
        to_rename="remove all but one of these files",
    )


def _find(root: Path, folder: Path, query: BidsQuery) -> list[_Found]:
    """The images of the first channel with their partners, by path."""
    images, of_pipeline = read_folder(root), read_folder(folder)
    channels = [_of_channel(images, channel, query) for channel in query.channels]
    labels = [file for file in of_pipeline if file.suffix == query.label_suffix and file.has(query.label_entities)]
    for files, channel in zip(channels, query.channels, strict=True):
        _check_any(files, root, channel.suffix, query.conditions(channel), images, "-suffix, -entities")
    flags = "-derivatives, -label_suffix, -label_entities"
    _check_any(labels, folder, query.label_suffix, query.label_entities, of_pipeline, flags)
    first = _of_subjects(channels[0], root, query)
    suffixes = frozenset(channel.suffix for channel in query.channels)
    alike = {
        "space": suffixes.union(_LIKE_THE_IMAGE),
        "mod": suffixes,
        "datatype": frozenset(file.entities.get("datatype", ABSENT) for files in channels for file in files),
    }
    wanted = [WantedImage(query.conditions(c), alike, c.suffix, c.entities) for c in query.channels]
    others = [match_files(first, files, w, wanted[0]) for files, w in zip(channels[1:], wanted[1:], strict=True)]
    of_labels = match_files(first, labels, WantedLabel(query.label_entities, alike), wanted[0])
    return [
        _Found(image, tuple(of_image), label)
        for image, label, *of_image in zip(first, of_labels, *others, strict=True)
    ]  # fmt: skip


def _of_channel(images: Sequence[BidsFile], channel: Channel, query: BidsQuery) -> list[BidsFile]:
    """The images of a channel, less those of another with the same suffix that says more of them."""
    closer = [
        other.entities
        for other in query.channels
        if other.suffix == channel.suffix and len(other.entities) > len(channel.entities)
    ]
    files = [file for file in images if file.suffix == channel.suffix and file.has(query.conditions(channel))]
    return [file for file in files if not any(file.has(entities) for entities in closer)]


def _check_any(
    found: Sequence[BidsFile],
    folder: Path,
    suffix: str,
    conditions: Mapping[str, str],
    every: Sequence[BidsFile],
    flags: str,
) -> None:
    """Raises UserError where nothing was found: with the suffixes that there are, or the values of the entities."""
    if found:
        return
    asked = f" with {' '.join(texts(conditions))}" if conditions else ""
    alike = [{key: file.entities.get(key, ABSENT) for key in conditions} for file in every if file.suffix == suffix]
    has = sorted({" ".join(texts(entities)) for entities in alike} - {""})
    if not has:
        has = sorted({f"_{file.suffix}" for file in every}) or ["no NIfTI files of subjects"]
    raise UserError(f"{folder} has no _{suffix}.nii.gz{asked} ({flags}); it has {listed(has)}")


def _of_subjects(files: Sequence[BidsFile], root: Path, query: BidsQuery) -> list[BidsFile]:
    """The images of the subjects and sessions asked for. Raises UserError for one that has none."""
    for what, key, wanted in (("subject", "sub", query.subjects), ("session", "ses", query.sessions)):
        wanted = tuple(value.removeprefix(f"{key}-") for value in wanted)
        known = sorted({file.entities[key] for file in files if key in file.entities})
        if absent := [value for value in wanted if value not in known]:
            has = listed(known) or "none"
            raise UserError(f"{root} has no {what} {absent[0]} with _{files[0].suffix} images (-{key}); it has {has}")
        files = [file for file in files if not wanted or file.entities.get(key) in wanted]
    return list(files)


def _with_labels(found: Sequence[_Found], unlabelled: Unlabelled) -> tuple[list[_Found], list[str]]:
    """Less what is left out for want of a label map, and remarks on that.

    No subject is in training and test: with `Unlabelled.TEST`, an image without a label map is left out if another of
    its subject has one.
    """
    training = {case.subject for case in found if not case.label.absent}
    absent = [case for case in found if case.label.absent]
    if unlabelled is Unlabelled.ERROR or not absent:
        return list(found), []
    for_test = [case for case in absent if unlabelled is Unlabelled.TEST and case.subject not in training]
    kept = {case.image.path for case in for_test}
    left_out = [case for case in absent if case.image.path not in kept]
    remarks = []
    if for_test:
        remarks.append(f"{_unlabelled(for_test)}: {counted(len(for_test), 'test case')}{_reason(for_test)}")
    if left_out:
        why = ", as other images of their subjects are for training" if unlabelled is Unlabelled.TEST else ""
        remarks.append(f"{_unlabelled(left_out)}: left out{why}{_reason(left_out)}")
    return [case for case in found if not case.label.absent or case.image.path in kept], remarks


def _unlabelled(cases: Sequence[_Found]) -> str:
    names = listed([case.image.stem for case in cases])
    return f"{counted(len(cases), 'image')} without a label map ({names})"


def _reason(cases: Sequence[_Found]) -> str:
    """Why the first of them that has one near it has none."""
    return next((f" ({case.image.stem}: {case.label.reason})" for case in cases if case.label.reason), "")


def _remarks_on_entities(found: Sequence[_Found], query: BidsQuery) -> list[str]:
    """Of other channels whose names differ from the first's without anyone having asked for it."""
    remarks = []
    first = query.channels[0].suffix
    for number, channel in enumerate(query.channels[1:]):
        pairs = [(case.image, case.others[number]) for case in found if case.others[number].differing]
        if pairs:
            image, match = pairs[0]
            keys = " and ".join(sorted({key for _, match in pairs for key in match.differing}))
            example = f"{match.file.name} with {image.name}" if match.file is not None else ""
            remarks.append(
                f"{counted(len(pairs), f'{channel.suffix} image')} taken as the best fit that differ in {keys} from "
                f"their {first} image ({example}); -suffix {channel.suffix}:KEY=VALUE chooses others"
            )
    return remarks


def _case(root: Path, found: _Found, tables: Mapping[Path, Classes | None], unlabelled: Unlabelled) -> Case:
    for_test = found.label.absent and unlabelled is Unlabelled.TEST
    matches = (*found.others, *(() if for_test else (found.label,)))
    problems = tuple(match.problem for match in matches if match.problem)
    others = [match.file.path for match in found.others if match.file is not None]
    label = found.label.file
    return Case(
        name=case_name(found.image.stem),
        row=found.image.path.relative_to(root).as_posix(),
        subject=found.subject,
        part=TEST if for_test else TRAIN,
        images=() if problems else tuple(volume_at(path) for path in (found.image.path, *others)),
        label=volume_at(label.path) if label is not None and not problems else None,
        classes=tables[label.path] if label is not None else None,
        problems=problems,
    )
