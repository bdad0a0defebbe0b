"""`patterns`: a YAML file of folders and globs, as the Hippocampal Segmentation Factory's trainings are configured."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nnunetv2_ext.datasets.collection import BACKGROUND, TRAIN, Case, Collection, case_name
from nnunetv2_ext.datasets.sources.configured_split import SPLIT_KEYS, split_as_configured
from nnunetv2_ext.datasets.sources.merged_fields import common_classes, parse_ca_type
from nnunetv2_ext.datasets.volumes.opening import volume_at
from nnunetv2_ext.errors import UserError

_OF_THE_TRAINING = ("output_path", "batch_size", "num_workers", "pin_memory", "defaults")
_DATASET_KEYS = ("path", "ca_type", "patterns", "labels", "labels_names")


@dataclass(frozen=True)
class _DataSet:
    """One entry of `datasets`."""

    name: str
    path: Path
    patterns: Mapping[str, tuple[str, str]]
    classes: Mapping[int, str]
    ca_type: str | None


def read_patterns(config: Path, spacing: tuple[float, float, float] | None = None) -> Collection:
    """The cases of all data sets of a file, in its order; within a pattern by path.

    Args:
        config: YAML with `main_path`, `datasets` and, if it defines a split, `train_ratio`, `replace`, `k_sample`,
            `train_val_test_idx`, `train_on_all`. Relative paths are meant from its folder.
        spacing: (z, y, x), of files that do not say it.

    Raises:
        UserError: no such file, a key is missing or unknown, a pattern matches nothing, a split that cannot be.
    """
    content = _read(config)
    main = config.absolute().parent / str(content.get("main_path") or "")
    datasets = [_dataset(str(name), main, entry) for name, entry in _mapping(content, "datasets", str(config)).items()]
    if not datasets:
        raise UserError(f"{config} names no datasets")
    merged, datasets = _with_common_classes(datasets)
    cases = [case for dataset in datasets for case in _cases(dataset, merged[dataset.name], spacing)]
    cases = _told_apart(cases)
    cases, splits, remarks = split_as_configured(cases, content)
    num_merged = sum(bool(case.merged) for case in cases)
    if num_merged:
        groups = sorted({" and ".join(group) for case in cases for group in case.merged})
        remarks.append(f"{num_merged} cases have merged classes ({'; '.join(groups)}): train with --set loss=marginal")
    names = dict.fromkeys(name for dataset in datasets for name in dataset.classes.values())
    names.update(dict.fromkeys(name for case in cases for group in case.merged for name in group))
    names.pop(BACKGROUND, None)
    return Collection(tuple(cases), ("MRI",), tuple(names), splits, tuple(remarks))


def _read(config: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(config), resolve=True)
    except FileNotFoundError:
        raise UserError(f"there is no file {config}") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{config} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{config} holds no keys and values")
    known = ("main_path", "datasets", *SPLIT_KEYS, *_OF_THE_TRAINING)
    if unknown := [str(key) for key in content if key not in known]:
        raise UserError(f"{config} has an unknown key {unknown[0]}; there are {', '.join(known)}")
    return {str(key): value for key, value in content.items()}


def _mapping(content: Mapping[str, Any], key: str, where: str) -> Mapping[Any, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{where} needs {key}, a list of names and values")
    return value


def _dataset(name: str, main: Path, entry: Any) -> _DataSet:
    where = f"the data set {name}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} needs {', '.join(_DATASET_KEYS)}")
    if unknown := [str(key) for key in entry if key not in _DATASET_KEYS]:
        raise UserError(f"{where} has an unknown key {unknown[0]}; there are {', '.join(_DATASET_KEYS)}")
    if not entry.get("path"):
        raise UserError(f"{where} needs a path")
    path = main / str(entry["path"])
    if not path.is_dir():
        raise UserError(f"there is no folder {path}, the path of {name}")
    patterns: dict[str, tuple[str, str]] = {}
    for key, pattern in _mapping(entry, "patterns", where).items():
        if not isinstance(pattern, Mapping) or set(pattern) != {"mri", "label"}:
            raise UserError(f"the pattern {key} of {name} needs mri and label, and nothing else")
        patterns[str(key)] = (str(pattern["mri"]), str(pattern["label"]))
    ca_type = entry.get("ca_type")
    return _DataSet(name, path, patterns, _classes(name, entry), None if ca_type is None else str(ca_type))


def _classes(name: str, entry: Mapping[str, Any]) -> dict[int, str]:
    """From a value in the label map to a name: by `labels` to a number, and by `labels_names` to its name."""
    where = f"the data set {name}"
    try:
        numbers = {int(str(value)): int(str(number)) for value, number in _mapping(entry, "labels", where).items()}
        names = {int(str(number)): str(text) for number, text in _mapping(entry, "labels_names", where).items()}
    except ValueError as error:
        raise UserError(f"labels and labels_names of {name} need whole numbers: {error}") from error
    if twice := [text for text, count in Counter(names.values()).items() if count > 1]:
        raise UserError(f"labels_names of {name} have {twice[0]} twice")
    if unnamed := sorted({number for number in numbers.values() if number and number not in names}):
        raise UserError(f"labels of {name} lead to {unnamed[0]}, which labels_names do not name")
    return {value: names[number] if number else BACKGROUND for value, number in numbers.items()}


def _with_common_classes(datasets: Sequence[_DataSet]) -> tuple[dict[str, dict[str, tuple[str, ...]]], list[_DataSet]]:
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
    dataset: _DataSet, merged: Mapping[str, tuple[str, ...]], spacing: tuple[float, float, float] | None
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
        subject_of: dict[Path, str] = {}
        for image in (path for path, patterns in matches.items() if pattern in patterns):
            relative = image.parent.relative_to(common)
            subject = relative.parts[0] if relative.parts else _matched_by_wildcards(image, mri) or common.name
            problems = []
            if len(matches[image]) > 1:
                problems.append(f"{image} is matched by the patterns {' and '.join(matches[image])}")
            labels = _files(image.parent, label)
            if len(labels) > 1:  # in a flat folder, those of other subjects as well
                own = _matched_by_wildcards(image, mri)
                labels = [path for path in labels if own and _matched_by_wildcards(path, label) == own] or labels
            other = subject_of.setdefault(labels[0], subject) if len(labels) == 1 else subject
            if other != subject:
                problems.append(f"its label is that of {other} too: {labels[0]}")
            if image in labels:
                problems.append(f"its label pattern matches the image itself: {image.parent}/{label}")
            if len(labels) != 1:
                found_labels = f"{len(labels)} files ({', '.join(p.name for p in labels[:3])})" if labels else "no file"
                problems.append(f"its label pattern matches {found_labels}: {image.parent}/{label}")
            try:
                volumes = [volume_at(path, spacing) for path in (image, *labels[:1])]
            except UserError as error:
                problems.append(str(error))
            cases.append(
                Case(
                    name=case_name(dataset.name, *(relative.parts or (subject,)), pattern),
                    row=f"{dataset.name}, {pattern}: {image.relative_to(dataset.path)}",
                    subject=f"{dataset.name} {subject}",
                    part=TRAIN,
                    images=() if problems else (volumes[0],),
                    label=None if problems else volumes[1],
                    classes=dataset.classes,
                    merged=tuple(merged.values()),
                    problems=tuple(problems),
                )
            )
    return cases


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files that a glob matches. Raises UserError for what is no glob."""
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
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
