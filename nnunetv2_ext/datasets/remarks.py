"""What the user should know before a dataset is made: images that stand twice, classes without a case, plans that are
out of date after a change."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_ext.datasets.collection import BACKGROUND, TEST, TRAIN, Case
from nnunetv2_ext.datasets.labelling import IGNORE, class_of
from nnunetv2_ext.datasets.volumes.identity import identity
from nnunetv2_ext.datasets.wording import counted, listed
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import dataset_id, nnunet_folder, preprocessed_folder, read_json
from nnunetv2_ext.planning.names import inner_plans_name

_LEFT_OUT = {"patterns": "give their values 0 in labels, and leave them out of labels_names"}
_LEFT_OUT_BY_FLAG = "leave them out with -labels"
_DESCRIBED = {"labels": "labels", "channel_names": "channel names", "file_ending": "file ending"}
"""Keys of `dataset.json` on which plans, preprocessed cases and models depend."""
_NO_CASES = ("gt_segmentations",)
_OURS = "ptPlans"
_RESULTS = "nnUNet_results"


def remark_on_shared_images(cases: Sequence[Case]) -> list[str]:
    """Lines about images that several subjects have: a network would be validated with what it was trained with.

    Args:
        cases: after `Collection.checked`, so that no two of different parts have the same image.
    """
    first: dict[Hashable, Case] = {}
    shared: list[tuple[Case, Case]] = []
    for case in cases:
        other = first.setdefault(identity(case.images[0]), case) if case.images else case
        if other.subject != case.subject:
            shared.append((case, other))
    training = [pair for pair in shared if pair[0].part == TRAIN]
    others = [pair for pair in shared if pair[0].part != TRAIN]
    lines = []
    for pairs, what in ((training, "one may validate what the other has trained"), (others, "it counts twice")):
        if pairs:
            names = listed([f"{case.name} of {other.name}" for case, other in pairs])
            lines.append(
                f"{counted(len(pairs), 'case')} with the image of another subject's case ({names}): {what}; make them "
                "one subject, or remove one"
            )
    return lines


def remark_on_unused_classes(
    kind: str, numbers: Mapping[str, int], found: Sequence[tuple[Case, Sequence[int]]]
) -> list[str]:
    """A line about the classes that no training case has: a table has named them, or test cases alone have them.

    nnU-Net's networks have an output for every label of `dataset.json`; one without a voxel only learns to be silent.

    Args:
        kind: the importer's name, for what to do.
        numbers: nnU-Net's label for each class.
        found: cases with the values in their label maps.
    """
    training = [(case, values) for case, values in found if case.part != TEST]
    there = {class_of(case, value) for case, values in training for value in values}
    there |= {name for case, _ in training for group in case.merged if group[0] in there for name in group}
    classes = [name for name in numbers if name not in (BACKGROUND, IGNORE)]
    unused = [name for name in classes if name not in there]
    if not unused:
        return []
    return [
        f"{len(unused)} of {len(classes)} classes are in no training case: {listed(unused)}; nnU-Net will train "
        f"outputs for them: {_LEFT_OUT.get(kind, _LEFT_OUT_BY_FLAG)}"
    ]


def remark_on_outdated(
    dataset: str, description: Mapping[str, Any], before: Mapping[str, Any] | None, changed: Sequence[str]
) -> list[str]:
    """Lines about what nnU-Net has made of the dataset as it was, and what therefore has to be made again.

    Plans and models are compared with the `dataset.json` that lies beside them, so that a change is remembered until
    they are made anew.

    Args:
        dataset: full name.
        description: its new `dataset.json`.
        before: the one of the import that this one follows; None: there was none.
        changed: training cases that are new, gone or others than in that import.
    """
    return [*_outdated_cases(dataset, description, before, changed), *_outdated_models(dataset, description)]


def _outdated_cases(
    dataset: str, description: Mapping[str, Any], before: Mapping[str, Any] | None, changed: Sequence[str]
) -> list[str]:
    folder = preprocessed_folder(dataset)
    old = _read(folder / "dataset.json") or before
    made = _made(folder)
    if old is None or not made:
        return []
    what = [word for key, word in _DESCRIBED.items() if old.get(key) != description.get(key)]
    if changed:
        what.append(f"{counted(len(changed), 'training case')} ({listed(changed)})")
    elif old.get("numTraining") != description.get("numTraining"):
        what.append("the number of training cases")
    if not what:
        return []
    return [
        f"{folder} holds {listed(made)} of the dataset before a change of {_and(what)}: plan and preprocess again: "
        f"{_command(dataset, made)}"
    ]


def _made(folder: Path) -> list[str]:
    """Fingerprint, plans and folders of preprocessed cases."""
    plans = [path for path in sorted(folder.glob("*.json")) if "configurations" in (_read(path) or {})]
    twins = {inner_plans_name(path.stem) for path in plans if inner_plans_name(path.stem) != path.stem}
    files = [*folder.glob("dataset_fingerprint.json"), *(path for path in plans if path.stem not in twins)]
    folders = [path for path in sorted(folder.glob("[!.]*")) if path.is_dir() and path.name not in _NO_CASES]
    return [path.name for path in [*files, *(path for path in folders if any(path.iterdir()))]]


def _command(dataset: str, made: Sequence[str]) -> str:
    """With `--clean`, without which nnU-Net keeps the fingerprint; it preprocesses only if it has done so before."""
    plans = [name.removesuffix(".json") for name in made if name.endswith(".json")]
    ours = [plan for plan in plans if plan.startswith(_OURS)]
    stock = tuple(f"{plan}_" for plan in plans if plan not in ours)
    preprocessed = any(name.startswith(stock) for name in made if not name.endswith(".json"))
    return (
        f"nnUNetv2_plan_and_preprocess -d {dataset_id(dataset)} --clean"
        + (" --no_pp" if ours and not preprocessed else "")
        + (f", then the command that made {listed(ours)}" if ours else "")
    )


def _and(things: Sequence[str]) -> str:
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def _outdated_models(dataset: str, description: Mapping[str, Any]) -> list[str]:
    if not os.environ.get(_RESULTS):  # importing needs no such folder
        return []
    remarks = []
    for path in sorted((nnunet_folder(_RESULTS) / dataset).glob("*__*__*/dataset.json")):
        model = path.parent
        old = _read(path) or description
        what = [_DESCRIBED[key] for key in ("labels", "channel_names") if old.get(key) != description.get(key)]
        if what and any(model.glob("fold_*/checkpoint_*.pth")):
            remarks.append(f"{model} was trained with other {_and(what)}, and predicts with those: train it anew")
    return remarks


def _read(path: Path) -> dict[str, Any] | None:
    """None for a file that is not there, or no JSON."""
    try:
        return read_json(path)
    except UserError:
        return None
