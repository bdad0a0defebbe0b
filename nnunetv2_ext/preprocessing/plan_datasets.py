"""Write plans for datasets, preprocess them, and print what comes next: what the planning commands have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from nnunetv2_ext.planning.base_plan import find_base_plan, has_base_plan
from nnunetv2_ext.planning.data_settings import choose_data_identifier, settings_that_shape_data
from nnunetv2_ext.planning.plan_files import first_difference, first_lasting_difference, write_plan
from nnunetv2_ext.preprocessing.dask_cluster import check_scheduler
from nnunetv2_ext.preprocessing.dataset import failure_line, preprocess_dataset
from nnunetv2_ext.preprocessing.integrity import check_files
from nnunetv2_ext.preprocessing.preview import write_preview
from nnunetv2_ext.preprocessing.run_options import RunOptions
from nnunetv2_ext.preprocessing.sources import RawCase, raw_cases
from nnunetv2_ext.preprocessing.workers import start_early
from nnunetv2_ext.transfer.report import TransferReport
from nnunetv2_ext.transfer.table import report_lines

RAW, RESULTS = "nnUNet_raw", "nnUNet_results"

_MEANING = ("channel_names", "labels", "regions_class_order", "file_ending")
"""What in a `dataset.json` decides what cases and networks look like."""


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
        UserError: no such dataset, no raw data, a folder variable that is not set or cannot be written to, options that
            do not go together, a Dask scheduler that does not answer.
    """
    options.check()
    names = list(dict.fromkeys(dataset_name(d) for d in datasets))
    for name in names:
        folder = preprocessed_folder(name)
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written to")
        if options.preprocess:
            raw_folder(name)
        if options.num_parts is not None and options.base_plan is None and not has_base_plan(name):
            raise UserError(
                f"{name} has no nnU-Net plan yet, which all parts would make at once: "
                "run the same command with --no_pp instead of -part first"
            )
    if options.scheduler is not None:
        check_scheduler(options.scheduler)
    elif options.preprocess and options.num_processes > 1:
        start_early()
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
        base = _base_plan(name, options)
        try:
            plans[name] = make_plan(name, base, _dataset_json(name))
        except UserError as error:
            if len(datasets) == 1:
                raise
            raise UserError(f"{name}: {error} (no dataset was planned)") from error
    for name, new in plans.items():
        _write(name, new, options.verbose)
        print("\n".join(["Transfer into the network of this plan:", *report_lines(new.report)]))
    failed = []
    for name, new in plans.items():
        if options.preprocess:
            summary = preprocess_dataset(name, new.plan, options)
            print(summary)
            if options.preview:
                unreadable = [failure.case for failure in summary.failures]
                print(f"Preview: {write_preview(name, new.plan, leave_out=unreadable)}")
            if summary.failures:
                failed.append(failure_line(name, summary.failures))
    if failed:
        raise UserError("; ".join(failed))
    commands = [
        f"nnUNetv2_train_pretrained -d {dataset_id(name)} -c {CONFIGURATION} -f 0 -p {new.stem}"
        for name, new in plans.items()
    ]
    print("\n".join(["", _when(options), *(f"  {command}" for command in commands)]))


def _when(options: RunOptions) -> str:
    if not options.preprocess:
        return "Next, after preprocessing (the same command without --no_pp):"
    return "Next:" if options.num_parts is None else f"Next, when all {options.num_parts} parts are done:"


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


def _base_plan(dataset: str, options: RunOptions) -> dict[str, Any]:
    """The dataset's own plan; where nnU-Net fails at making one, with the case that is at fault."""
    planned = options.base_plan is not None or has_base_plan(dataset)
    description, cases = ({}, []) if planned else raw_cases(dataset)
    try:
        return find_base_plan(
            dataset, options.base_plan, num_processes=options.num_processes, show_progress=options.show_progress
        )
    except UserError as error:
        faults = _faults(cases, len(description.get("channel_names", ())))
        if fault := next(faults, None):
            raise UserError(f"{fault} ({error})") from error
        raise


def _faults(cases: Sequence[RawCase], num_channels: int) -> Iterator[str]:
    """What is wrong with cases' files."""
    one_file_each = any(len(case.images) == num_channels for case in cases)  # else one may hold all channels
    for case in cases:
        if one_file_each and len(case.images) != num_channels:
            yield f"case {case.name} has {len(case.images)} images, dataset.json names {num_channels} channels"
        try:
            check_files(case.files)
        except UserError as fault:
            yield f"case {case.name}: {fault}"


def _dataset_json(dataset: str) -> dict[str, Any]:
    """The dataset's description beside its plan; copied from the raw data where a plan came without."""
    path = preprocessed_folder(dataset) / "dataset.json"
    if not path.is_file():
        with whole_or_absent(path) as temporary:
            temporary.write_bytes((raw_folder(dataset) / "dataset.json").read_bytes())
    description = read_json(path)
    # cases are made by the raw one, planned and trained by the other
    raw = Path(os.environ.get(RAW, "")) / dataset / "dataset.json"  # not needed for planning
    original = read_json(raw) if raw.is_file() else description
    if differ := [key for key in _MEANING if original.get(key) != description.get(key)]:
        raise UserError(
            f"{raw} and {path} differ in {', '.join(differ)}: copy the right one over the other (if channels have "
            "changed, plan again with nnU-Net as well)"
        )
    return description


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
