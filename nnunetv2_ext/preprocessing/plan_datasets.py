"""Write plans for datasets, preprocess them, and print what comes next: what the planning commands have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint, format_citations
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import whole_or_absent
from nnunetv2_ext.nnunet_folders import (
    CONFIGURATION,
    dataset_id,
    dataset_name,
    nnunet_folder,
    preprocessed_folder,
    raw_folder,
    read_json,
)
from nnunetv2_ext.planning.base_plan import find_base_plan
from nnunetv2_ext.planning.data_settings import choose_data_identifier, settings_that_shape_data
from nnunetv2_ext.planning.plan_files import first_difference, first_lasting_difference, write_plan
from nnunetv2_ext.preprocessing.dataset import preprocess_dataset
from nnunetv2_ext.transfer.report import TransferReport
from nnunetv2_ext.transfer.table import report_lines

RESULTS = "nnUNet_results"


@dataclass(frozen=True)
class RunOptions:
    """What the planning commands have in common.

    Attributes:
        base_plan: `-pl`.
        num_processes: `-np`.
        preprocess: False plans only (`--no_pp`).
        overwrite: preprocess cases again that are there (`--overwrite_pp`).
        verbose: more output.
        show_progress: progress bars on a terminal.
    """

    base_plan: str | None = None
    num_processes: int = 4
    preprocess: bool = True
    overwrite: bool = False
    verbose: bool = False
    show_progress: bool = True


@dataclass(frozen=True)
class NewPlan:
    """A plan to be written: its content, its long name, and what transfer will do with it."""

    plan: dict[str, Any]
    stem: str
    report: TransferReport


PlanMaker = Callable[[str, Mapping[str, Any], Mapping[str, Any]], NewPlan]
"""From a dataset's name, its own nnU-Net plan and its description to the plan to be written."""


def known_datasets(datasets: Sequence[str], options: RunOptions) -> list[str]:
    """The datasets' full names, once it is certain that each can be planned.

    Raises:
        UserError: no such dataset, no raw data, a folder variable that is not set, `-np` below 1.
    """
    if options.num_processes < 1:
        raise UserError(f"-np must be at least 1, not {options.num_processes}")
    names = list(dict.fromkeys(dataset_name(d) for d in datasets))
    for name in names:
        preprocessed_folder(name)
        if options.preprocess:
            raw_folder(name)
    return names


def plan_datasets(datasets: Sequence[str], make_plan: PlanMaker, options: RunOptions) -> None:
    """Write a plan for each dataset, preprocess them, and print the training commands.

    All plans are made before the first is written, and all are written before the first dataset is preprocessed: a
    mistake shows in minutes, not after hours.

    Args:
        datasets: full names, from `known_datasets`.
        make_plan: makes one dataset's plan.
        options: the user's choices.

    Raises:
        UserError: whatever the user can put right; nothing is written for any dataset if the plan of one fails.
    """
    plans: dict[str, NewPlan] = {}
    for name in datasets:
        base = find_base_plan(
            name, options.base_plan, num_processes=options.num_processes, show_progress=options.show_progress
        )
        try:
            plans[name] = make_plan(name, base, _dataset_json(name))
        except UserError as error:
            if len(datasets) == 1:
                raise
            raise UserError(f"{name}: {error} (no dataset was planned)") from error
    for name, new in plans.items():
        _write(name, new, options.verbose)
        print("\n".join(["Transfer into the network of this plan:", *report_lines(new.report)]))
    next_commands = []
    for name, new in plans.items():
        if options.preprocess:
            summary = preprocess_dataset(
                name,
                new.plan,
                num_processes=options.num_processes,
                overwrite=options.overwrite,
                verbose=options.verbose,
                show_progress=options.show_progress,
            )
            print(f"{summary.made} cases preprocessed, {summary.kept} were there already: {summary.folder}")
        next_commands.append(f"nnUNetv2_train_pretrained -d {dataset_id(name)} -c {CONFIGURATION} -f 0 -p {new.stem}")
    then = "Next:" if options.preprocess else "Next, after preprocessing (the same command without --no_pp):"
    print("\n".join(["", then, *(f"  {c}" for c in next_commands)]))


def print_checkpoint(checkpoint: PretrainedCheckpoint) -> None:
    """Say on the screen what a checkpoint is, and what it asks to be cited."""
    print(
        "\n".join([f"{checkpoint.file.path}: {checkpoint_line(checkpoint)}", *format_citations(checkpoint.citations)])
    )


def checkpoint_line(checkpoint: PretrainedCheckpoint) -> str:
    """What a checkpoint is, in a line."""
    plan = checkpoint.adaptation_plan
    if plan is None:
        return f"{checkpoint.kind}, {len(checkpoint.network_weights)} tensors that do not say of which network"
    spacing = "not resampled" if plan.spacing_style else "spacing not known"
    if plan.spacing is not None:
        spacing = " x ".join(f"{s:g}" for s in plan.spacing) + " mm"
    return (
        f"{checkpoint.kind}, {plan.architecture_name}, pre-trained on patches of "
        f"{' x '.join(map(str, plan.pretrain_patch_size))} voxels, {spacing}, "
        f"{plan.pretrain_num_input_channels} channel(s)"
    )


def _dataset_json(dataset: str) -> dict[str, Any]:
    """The dataset's description beside its plan; copied from the raw data where a plan came without."""
    path = preprocessed_folder(dataset) / "dataset.json"
    if not path.is_file():
        with whole_or_absent(path) as temporary:
            temporary.write_bytes((raw_folder(dataset) / "dataset.json").read_bytes())
    return read_json(path)


def _check_trained_models(dataset: str, plan: dict[str, Any]) -> None:
    """Refuse to replace a plan that a model was trained with by one that the model does not fit."""
    if not os.environ.get(RESULTS):  # not needed for planning
        return
    for path in sorted((nnunet_folder(RESULTS) / dataset).glob(f"*__{plan['plans_name']}__{CONFIGURATION}/plans.json")):
        if difference := first_lasting_difference(read_json(path), plan):
            raise UserError(
                f"{path.parent} was trained with an earlier plan of this name, which differs in {difference}: plan "
                "under another name (-n), or move that folder away"
            )


def _write(dataset: str, new: NewPlan, verbose: bool) -> None:
    """Settle the plan's data identifier and write its two files."""
    folder, plan = preprocessed_folder(dataset), new.plan
    configuration = plan["configurations"][CONFIGURATION]
    identifier = configuration["data_identifier"]
    settings = settings_that_shape_data(plan, configuration)
    configuration["data_identifier"] = choose_data_identifier(folder, identifier, settings, plan["plans_name"])
    if configuration["data_identifier"] != identifier:
        print(
            f"Another plan preprocessed {identifier} with other settings, so this one gets a folder of its own: "
            f"{configuration['data_identifier']}"
        )
    _check_trained_models(dataset, plan)
    before = folder / f"{new.stem}.json"
    if before.is_file() and (difference := first_difference(read_json(before), plan)):
        print(f"This replaces an earlier plan of the same name, which differed in {difference}")
    paths: list[Path] = write_plan(folder, new.stem, plan)
    print(f"Plan: {paths[-1]}")
    print(f"      (stock nnU-Net commands take it as -p {plan['plans_name']})")
    if verbose:
        print(f"      {configuration}")
