"""The YAML file of `patterns`: its data sets, with every key checked."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nnunetv2_ext.datasets.collection import BACKGROUND
from nnunetv2_ext.datasets.sources.configured_split import SPLIT_KEYS
from nnunetv2_ext.errors import UserError

_OF_THE_TRAINING = ("output_path", "batch_size", "num_workers", "pin_memory", "defaults")
_DATASET_KEYS = ("path", "ca_type", "patterns", "labels", "labels_names")
SUBJECT = "subject"
"""A key of ours, which HSF does not have."""


@dataclass(frozen=True)
class DataSet:
    """One entry of `datasets`.

    Attributes:
        name: its key.
        path: of its folder.
        patterns: globs of images and of their labels.
        classes: of a label map's values, in the order of HSF's numbers.
        ca_type: as it is written.
        subject: what is searched in an image's path below `path`: its groups, or all of it, are the subject's name.
    """

    name: str
    path: Path
    patterns: Mapping[str, tuple[str, str]]
    classes: Mapping[int, str]
    ca_type: str | None
    subject: re.Pattern[str] | None


def read_pattern_file(config: Path) -> tuple[list[DataSet], dict[str, Any]]:
    """The data sets of a file in its order, and all its values by key.

    Args:
        config: YAML with `main_path`, `datasets` and `SPLIT_KEYS`. Relative paths are meant from its folder.

    Raises:
        UserError: no such file, a key is missing or unknown, a value that cannot be.
    """
    content = _read(config)
    main = _below(config.absolute().parent, str(content.get("main_path") or ""))
    entries = _mapping(content, "datasets", str(config))
    return [_dataset(str(name), main, entry) for name, entry in entries.items()], content


def _read(config: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.load(config)
        if not isinstance(content, DictConfig):
            raise UserError(f"{config} holds no keys and values")
        # what is not used may refer to what is not there, such as hydra's own settings
        values = {str(key): _plain(content[key]) for key in content if key not in _OF_THE_TRAINING}
    except FileNotFoundError:
        raise UserError(f"there is no file {config}") from None
    except IsADirectoryError:
        raise UserError(f"{config} is a folder: give the YAML file in it") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{config} cannot be read as YAML: {error}") from error
    known = ("main_path", "datasets", *SPLIT_KEYS, *_OF_THE_TRAINING)
    if unknown := [key for key in values if key not in known]:
        raise UserError(f"{config} has an unknown key {unknown[0]}; there are {', '.join(known)}")
    return values


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def _below(folder: Path, text: str) -> Path:
    return folder / os.path.expanduser(text)


def _mapping(content: Mapping[str, Any], key: str, where: str) -> Mapping[Any, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{where} needs {key}, a list of names and values")
    return value


def _dataset(name: str, main: Path, entry: Any) -> DataSet:
    where = f"the data set {name}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} needs {', '.join(_DATASET_KEYS)}")
    known = (*_DATASET_KEYS, SUBJECT)
    if unknown := [str(key) for key in entry if key not in known]:
        raise UserError(f"{where} has an unknown key {unknown[0]}; there are {', '.join(known)}")
    if not entry.get("path"):
        raise UserError(f"{where} needs a path")
    path = _below(main, str(entry["path"]))
    as_hsf_joins = Path(f"{main}/{entry['path']}")  # one behind the other, so that `/clark` is below main_path
    if not path.is_dir() and as_hsf_joins.is_dir():
        path = as_hsf_joins
    if not path.is_dir():
        raise UserError(f"there is no folder {path}, the path of {name}")
    patterns: dict[str, tuple[str, str]] = {}
    for key, pattern in _mapping(entry, "patterns", where).items():
        if not isinstance(pattern, Mapping) or set(pattern) != {"mri", "label"}:
            raise UserError(f"the pattern {key} of {name} needs mri and label, and nothing else")
        patterns[str(key)] = (str(pattern["mri"]), str(pattern["label"]))
    ca_type = entry.get("ca_type")
    return DataSet(
        name,
        path,
        patterns,
        _classes(name, entry),
        None if ca_type is None else str(ca_type),
        _expression(name, entry.get(SUBJECT)),
    )


def _expression(name: str, text: Any) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(str(text))
    except re.error as error:
        raise UserError(f"{SUBJECT} of {name} is {str(text)!r}, which is no regular expression: {error}") from error


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
    by_number = sorted(numbers.items(), key=lambda item: item[1])
    return {value: names[number] if number else BACKGROUND for value, number in by_number}
