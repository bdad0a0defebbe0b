"""Plan and preprocess datasets like a checkpoint was pre-trained: what nnUNetv2_preprocess_like_nnssl does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_ext.checkpoints.hashing import sha256_of_file
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import CONFIGURATION
from nnunetv2_ext.planning import names
from nnunetv2_ext.planning.given_architecture import read_with_architecture
from nnunetv2_ext.planning.modes import target_spacing
from nnunetv2_ext.planning.pretrained_plan import ZSCORE, PlanOptions, make_plan
from nnunetv2_ext.preprocessing.plan_datasets import NewPlan, known_datasets, plan_datasets, print_checkpoint
from nnunetv2_ext.preprocessing.run_options import RunOptions


def plan_and_preprocess(
    datasets: Sequence[str],
    source: str,
    plan_options: PlanOptions,
    run_options: RunOptions,
    *,
    mode: str,
    override_spacing: Sequence[float] | None = None,
    arch: str | None = None,
) -> None:
    """Write a ptPlan with the checkpoint's own network for each dataset, preprocess it, and say how to train.

    Args:
        datasets: ids or full names.
        source: `-pc`.
        plan_options: what the plan is to be.
        run_options: how to go about it.
        mode: `-am`.
        override_spacing: `-os`, mm, network axis order.
        arch: `-arch`, for a checkpoint that does not say which network it is of.

    Raises:
        UserError: whatever the user can put right; nothing is written for a dataset whose plan fails.
    """
    names.check_pretraining_name(plan_options.name)
    if plan_options.batch_size < 1:
        raise UserError(f"-bs must be at least 1, not {plan_options.batch_size}")
    dataset_names = known_datasets(datasets, run_options)
    checkpoint = read_with_architecture(resolve_checkpoint_source(source), arch, plan_options.patch_size)
    pretraining = checkpoint.plan
    print_checkpoint(checkpoint)
    others = {s for s in pretraining.normalization_schemes or () if s != "ZScoreNormalization"}
    if others and plan_options.normalization == ZSCORE:
        print(
            f"It was trained with {', '.join(sorted(others))}; -norm default_nnunet keeps nnU-Net's choice, not z-score"
        )
    # a mistake in the mode's arguments is found before any dataset is fingerprinted
    target_spacing(mode, pretraining, (1.0, 1.0, 1.0), override_spacing)
    sha256 = sha256_of_file(checkpoint.file.path)

    def plan_of(name: str, base: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> NewPlan:
        spacing = target_spacing(mode, pretraining, base["configurations"][CONFIGURATION]["spacing"], override_spacing)
        if spacing.note:
            print(f"{name}: {spacing.note}")
        plan, report = make_plan(base, dataset_json, checkpoint, spacing, plan_options, sha256)
        identifier = plan["configurations"][CONFIGURATION]["data_identifier"]
        return NewPlan(plan, names.plans_file_stem(plan_options.name, identifier), report)

    plan_datasets(dataset_names, plan_of, run_options)
