"""Plan and preprocess datasets for one checkpoint: what nnUNetv2_preprocess_like_nnssl does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_ext.checkpoints.hashing import sha256_of_file
from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint, format_citations, read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
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
from nnunetv2_ext.planning import names
from nnunetv2_ext.planning.base_plan import find_base_plan
from nnunetv2_ext.planning.data_settings import choose_data_identifier, settings_that_shape_data
from nnunetv2_ext.planning.modes import target_spacing
from nnunetv2_ext.planning.plan_files import first_difference, first_lasting_difference, write_plan
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from nnunetv2_ext.preprocessing.dataset import preprocess_dataset

RESULTS = "nnUNet_results"


def plan_and_preprocess(
    datasets: Sequence[str],
    pretraining_name: str,
    source: str,
    *,
    mode: str,
    override_spacing: Sequence[float] | None = None,
    base_plan: str | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int = 2,
    normalization: str = "zscore",
    num_processes: int = 4,
    preprocess: bool = True,
    overwrite: bool = False,
    verbose: bool = False,
    show_progress: bool = True,
) -> None:
    """Write a ptPlan for each dataset, preprocess it, and print the training commands.

    Args:
        datasets: ids or full names.
        pretraining_name: `-n`.
        source: `-pc`.
        mode: `-am`.
        override_spacing: `-os`, mm, network axis order.
        base_plan: `-pl`.
        patch_size: `-ps`, voxels, network axis order.
        batch_size: `-bs`.
        normalization: `-norm`.
        num_processes: `-np`.
        preprocess: False plans only.
        overwrite: preprocess cases again that are there.
        verbose: more output.
        show_progress: progress bars on a terminal.

    Raises:
        UserError: whatever the user can put right; nothing is written for a dataset whose plan fails.
    """
    names.check_pretraining_name(pretraining_name)
    if num_processes < 1 or batch_size < 1:
        raise UserError(f"-np and -bs must be at least 1, not {num_processes} and {batch_size}")
    options = PlanOptions(
        name=pretraining_name,
        batch_size=batch_size,
        normalization=normalization,
        patch_size=None if patch_size is None else tuple(patch_size),
    )
    dataset_names = [dataset_name(d) for d in datasets]
    for name in dataset_names:
        preprocessed_folder(name)
        if preprocess:
            raw_folder(name)
    checkpoint = read_checkpoint(resolve_checkpoint_source(source))
    _print_checkpoint(checkpoint)
    # a mistake in the mode's arguments is found before any dataset is fingerprinted
    target_spacing(mode, checkpoint.adaptation_plan, (1.0, 1.0, 1.0), override_spacing)
    sha256 = sha256_of_file(checkpoint.file.path)

    next_commands = []
    for name in dataset_names:
        base = find_base_plan(name, base_plan, num_processes=num_processes, show_progress=show_progress)
        spacing = target_spacing(
            mode, checkpoint.adaptation_plan, base["configurations"][CONFIGURATION]["spacing"], override_spacing
        )
        if spacing.note:
            print(f"{name}: {spacing.note}")
        dataset_json = _dataset_json(name)
        plan, report = make_plan(base, dataset_json, checkpoint, spacing, options, sha256)
        stem = _write(name, plan, pretraining_name, verbose)
        print("\n".join(["Transfer into the network of this plan:", *report.summary_lines()]))
        if preprocess:
            summary = preprocess_dataset(
                name, plan, num_processes=num_processes, overwrite=overwrite, verbose=verbose,
                show_progress=show_progress,
            )  # fmt: skip
            print(f"{summary.made} cases preprocessed, {summary.kept} were there already: {summary.folder}")
        next_commands.append(f"nnUNetv2_train_pretrained -d {dataset_id(name)} -c {CONFIGURATION} -f 0 -p {stem}")
    then = "Next:" if preprocess else "Next, after preprocessing (the same command without --no_pp):"
    print("\n".join(["", then, *(f"  {c}" for c in next_commands)]))


def _print_checkpoint(checkpoint: PretrainedCheckpoint) -> None:
    plan = checkpoint.adaptation_plan
    spacing = "not resampled" if plan.spacing is None else " x ".join(f"{s:g}" for s in plan.spacing) + " mm"
    print(
        f"Checkpoint {checkpoint.file.path}: {plan.architecture_name}, pre-trained on patches of "
        f"{' x '.join(map(str, plan.pretrain_patch_size))} voxels, {spacing}, "
        f"{plan.pretrain_num_input_channels} channel(s)"
    )
    for line in format_citations(checkpoint.citations):
        print(line)


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


def _write(dataset: str, plan: dict[str, Any], pretraining_name: str, verbose: bool) -> str:
    """Settle the plan's data identifier, write its two files and return the long name."""
    folder = preprocessed_folder(dataset)
    configuration = plan["configurations"][CONFIGURATION]
    identifier = configuration["data_identifier"]
    stem = names.plans_file_stem(pretraining_name, identifier)
    settings = settings_that_shape_data(plan, configuration)
    configuration["data_identifier"] = choose_data_identifier(folder, identifier, settings, plan["plans_name"])
    if configuration["data_identifier"] != identifier:
        print(
            f"Another plan preprocessed {identifier} with other settings, so this one gets a folder of its own: "
            f"{configuration['data_identifier']}"
        )
    _check_trained_models(dataset, plan)
    before = folder / f"{stem}.json"
    if before.is_file() and (difference := first_difference(read_json(before), plan)):
        print(f"This replaces an earlier plan of the same name, which differed in {difference}")
    paths: list[Path] = write_plan(folder, stem, plan)
    print(f"Plan: {paths[-1]}")
    print(f"      (stock nnU-Net commands take it as -p {plan['plans_name']})")
    if verbose:
        print(f"      {configuration}")
    return stem
