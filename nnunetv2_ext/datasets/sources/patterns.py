"""`patterns`: a YAML file of folders and globs, as the Hippocampal Segmentation Factory's trainings are configured."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnunetv2_ext.datasets.collection import BACKGROUND, TRAIN, Case, Collection, case_name
from nnunetv2_ext.datasets.sources.configured_split import split_as_configured
from nnunetv2_ext.datasets.sources.merged_fields import common_classes, parse_ca_type
from nnunetv2_ext.datasets.sources.pattern_file import SUBJECT, DataSet, read_pattern_file
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.datasets.wording import counted
from nnunetv2_ext.errors import UserError


def read_patterns(config: Path, spacing: tuple[float, float, float] | None = None) -> Collection:
    """The cases of all data sets of a file, in its order; within a pattern by path.

    Args:
        config: YAML with `main_path`, `datasets` and, if it defines a split, `train_ratio`, `replace`, `k_sample`,
            `train_val_test_idx`, `train_on_all`. Relative paths are meant from its folder.
        spacing: (z, y, x), of files that do not say it.

    Raises:
        UserError: no such file, a key is missing or unknown, a pattern matches nothing, a split that cannot be.
    """
    datasets, content = read_pattern_file(config)
    merged, datasets = _with_common_classes(datasets)
    cases = [case for dataset in datasets for case in _cases(dataset, merged[dataset.name], spacing)]
    cases = [replace(case, index=index) for index, case in enumerate(_told_apart(cases))]  # of train_val_test_idx
    cases, splits, remarks = split_as_configured(cases, content)
    num_merged = sum(bool(case.merged) for case in cases)
    if num_merged:
        groups = sorted({" and ".join(group) for case in cases for group in case.merged})
        have = f"{counted(num_merged, 'case')} {'has' if num_merged == 1 else 'have'}"
        remarks.append(f"{have} merged classes ({'; '.join(groups)}): train with --set loss=marginal")
    names = dict.fromkeys(name for dataset in datasets for name in dataset.classes.values())
    names.update(dict.fromkeys(name for case in cases for group in case.merged for name in group))
    names.pop(BACKGROUND, None)
    to_rename = "rename its folder, or the pattern"
    return Collection(tuple(cases), ("MRI",), tuple(names), splits, tuple(remarks), to_rename=to_rename)


def _with_common_classes(datasets: Sequence[DataSet]) -> tuple[dict[str, dict[str, tuple[str, ...]]], list[DataSet]]:
    """Give the CA fields the same names in all data sets, and say which stand for several of them."""
    typed = {dataset.name: dataset for dataset in datasets if dataset.ca_type is not None}
    parts = common_classes(
        {name: parse_ca_type(str(dataset.ca_type), name) for name, dataset in typed.items()},
        {name: list(dataset.classes.values()) for name, dataset in typed.items()},
    )
    renamed, merged = [], {}
    for dataset in datasets:
        of_dataset = parts.get(dataset.name, {})
        classes = {value: of_dataset.get(name, (name,))[0] for value, name in dataset.classes.items()}
        renamed.append(replace(dataset, classes=classes))
        merged[dataset.name] = {names[0]: names for names in of_dataset.values() if len(names) > 1}
    return merged, renamed


def _cases(
    dataset: DataSet, merged: Mapping[str, tuple[str, ...]], spacing: tuple[float, float, float] | None
) -> list[Case]:
    matches: dict[Path, list[str]] = {}
    for pattern, (mri, _) in dataset.patterns.items():
        found = _files(dataset.path, mri)
        if not found:
            raise UserError(f"the pattern {pattern} of {dataset.name} matches no file: {dataset.path}/{mri}")
        for path in found:
            matches.setdefault(path, []).append(pattern)
    common = Path(os.path.commonpath([path.parent for path in matches]))  # below it, the first folder is the subject
    cases = []
    for pattern, (mri, label) in dataset.patterns.items():
        owner_of: dict[Path, tuple[str, str]] = {}
        for image in (path for path, patterns in matches.items() if pattern in patterns):
            folders = image.parent.relative_to(common).parts
            guess = folders[0] if folders else _matched_by_wildcards(image, mri) or common.name
            place = image.relative_to(dataset.path).as_posix()
            subject = guess if dataset.subject is None else _searched(dataset.subject, place)
            problems = []
            if not subject:
                problems.append(f"{SUBJECT} of {dataset.name} matches nothing in {place}")
            if len(matches[image]) > 1:
                problems.append(f"{image} is matched by the patterns {' and '.join(matches[image])}")
            labels = _labels(image, mri, label)
            if len(labels) == 1:
                owner = owner_of.setdefault(labels[0], (guess, subject))
                if others := [name for name, own in zip(owner, (guess, subject), strict=True) if name != own]:
                    problems.append(f"its label is that of {others[0]} too: {labels[0]}")
            if image in labels:
                problems.append(f"its label pattern matches the image itself: {image.parent}/{label}")
            if len(labels) != 1:
                found_labels = f"{len(labels)} files ({', '.join(p.name for p in labels[:3])})" if labels else "no file"
                problems.append(f"its label pattern matches {found_labels}: {image.parent}/{label}")
            try:
                volumes = [volume_at(image, spacing), *map(volume_at, labels[:1])]  # a label has its image's
            except UserError as error:
                problems.append(str(error))
            cases.append(
                Case(
                    name=case_name(dataset.name, *(folders or (guess,)), pattern),
                    row=f"{dataset.name}, {pattern}: {place}",
                    subject=f"{dataset.name} {subject or place}",
                    part=TRAIN,
                    images=() if problems else (volumes[0],),
                    label=None if problems else volumes[1],
                    classes=dataset.classes,
                    merged=tuple(merged.values()),
                    problems=tuple(problems),
                )
            )
    return cases


def _searched(expression: re.Pattern[str], place: str) -> str:
    """What an expression finds in an image's path: its groups if it has any, else all of it; nothing is `""`."""
    match = expression.search(place)
    return "" if match is None else "-".join(filter(None, match.groups())) if expression.groups else match[0]


def _labels(image: Path, mri: str, label: str) -> list[Path]:
    """The files in an image's folder that a label pattern matches; in a flat folder, where it matches those of other
    subjects as well, the one with the same text for the wildcards.
    """
    labels = _files(image.parent, label)
    if len(labels) > 1 and (own := _matched_by_wildcards(image, mri)):
        return [path for path in labels if _matched_by_wildcards(path, label) == own] or labels
    return labels


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files that a glob matches. Raises UserError for what is no glob."""
    try:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        return [path for path in found if not path.name.startswith("._")]  # macOS's notes on files of other disks
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"the pattern {pattern!r} cannot be used below {folder}: {error}") from error


def _matched_by_wildcards(image: Path, pattern: str) -> str:
    """Of a file's name what a glob leaves open: in a flat folder that is the subject (`*_left.nii.gz`)."""
    pieces = re.findall(r"\*|\?|\[!?\]?[^\]]*\]|.", pattern.rpartition("/")[2])
    open_ones = {"*": "(.*)", "?": "(.)"}
    expression = "".join(
        open_ones.get(piece) or (re.escape(piece) if len(piece) == 1 else f"({piece.replace('[!', '[^')})")
        for piece in pieces
    )
    match = re.fullmatch(expression, image.name)
    return "-".join(text for text in match.groups() if text) if match else ""


def _told_apart(cases: Sequence[Case]) -> list[Case]:
    """Give several images that one pattern matches in one folder the names of their files as well."""
    names = Counter(case.name for case in cases)
    return [
        replace(case, name=case_name(case.name, Path(case.row).name.partition(".")[0]))
        if names[case.name] > 1
        else case
        for case in cases
    ]
