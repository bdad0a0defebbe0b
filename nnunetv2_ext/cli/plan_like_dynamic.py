"""nnUNetv2_plan_like_dynamic: fine-tune a dataset's own nnU-Net network from whatever fits of a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2_ext.cli import _planning
from nnunetv2_ext.cli._command import Parser, run

DESCRIPTION = """\
Plan one or more datasets with their own nnU-Net network, spacing and patch, to be started from what fits of a
pre-trained checkpoint of any kind, and preprocess them. Writes, for each dataset,
nnUNet_preprocessed/DATASET/ptPlans_dynamic__NAME.json and the cases that are missing (those that nnU-Net has
preprocessed for the same plan are used), and prints the training command."""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="nnUNetv2_plan_like_dynamic",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _planning.add_planning_arguments(p)
    _planning.add_patch_size(p, "the dataset's own")
    p.add_argument("-bs", "--batch_size", type=int, metavar="N", help="batch size (default: the dataset's own plan's)")
    _planning.add_normalization(
        p, default="default_nnunet", meaning="nnU-Net's choice for the dataset (default), or z-score"
    )
    _planning.add_transfer_arguments(p, "0.5")
    _planning.add_run_arguments(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run(parser(), _run, argv, interrupted=_planning.INTERRUPTED)


def _run(args: argparse.Namespace) -> None:
    from nnunetv2_ext.planning.dynamic_plan import DynamicPlanOptions
    from nnunetv2_ext.preprocessing.like_dynamic import plan_dynamic_and_preprocess

    plan_options = DynamicPlanOptions(
        name=args.pretraining_name,
        batch_size=args.batch_size,
        normalization=args.normalization,
        patch_size=args.patch_size and tuple(args.patch_size),
        transfer=_planning.transfer_options(args),
    )
    plan_dynamic_and_preprocess(args.d, args.pretrained_checkpoint, plan_options, _planning.run_options(args))
