"""Plan and preprocess datasets with their own nnU-Net network: what nnUNetv2_plan_like_dynamic does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_ext.checkpoints.hashing import sha256_of_file
from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning import names
from nnunetv2_ext.planning.dynamic_plan import DynamicPlanOptions, make_dynamic_plan
from nnunetv2_ext.preprocessing.plan_datasets import NewPlan, known_datasets, plan_datasets, print_checkpoint
from nnunetv2_ext.preprocessing.run_options import RunOptions


def plan_dynamic_and_preprocess(
    datasets: Sequence[str], source: str, plan_options: DynamicPlanOptions, run_options: RunOptions
) -> None:
    """Write a ptPlan with the dataset's own network for each dataset, preprocess it, and say how to train.

    Args:
        datasets: ids or full names.
        source: `-pc`, of any kind.
        plan_options: what the plan is to be.
        run_options: how to go about it.

    Raises:
        UserError: whatever the user can put right; nothing is written for a dataset whose plan fails.
    """
    names.check_pretraining_name(plan_options.name)
    if plan_options.batch_size is not None and plan_options.batch_size < 1:
        raise UserError(f"-bs must be at least 1, not {plan_options.batch_size}")
    dataset_names = known_datasets(datasets, run_options)
    checkpoint = read_checkpoint(resolve_checkpoint_source(source))
    print_checkpoint(checkpoint)
    sha256 = sha256_of_file(checkpoint.file.path)

    def plan_of(name: str, base: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> NewPlan:
        plan, report = make_dynamic_plan(base, dataset_json, checkpoint, plan_options, sha256)
        return NewPlan(plan, names.dynamic_file_stem(plan_options.name), report)

    plan_datasets(dataset_names, plan_of, run_options)
