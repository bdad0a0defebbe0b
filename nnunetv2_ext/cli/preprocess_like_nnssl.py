"""nnUNetv2_preprocess_like_nnssl: plan a dataset for a pre-trained checkpoint and preprocess it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2_ext.cli import _planning
from nnunetv2_ext.cli._command import Parser, run
from nnunetv2_ext.planning.modes import ADAPTATION_MODES, DEFAULT_NNUNET

DESCRIPTION = """\
Plan one or more datasets for a pre-trained checkpoint and preprocess them. Writes, for each dataset,
nnUNet_preprocessed/DATASET/ptPlans__NAME____Spacing__...___Norm__Z.json and the preprocessed cases, and prints the
training command. A run that was interrupted is continued by the same command."""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="nnUNetv2_preprocess_like_nnssl",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _planning.add_planning_arguments(p)
    p.add_argument(
        "-am",
        "--adaptation_mode",
        default=DEFAULT_NNUNET,
        choices=ADAPTATION_MODES,
        help="target spacing: that of the pre-training, nnU-Net's own for the dataset (default), the one given with "
        "-os, or none (every case keeps its spacing)",
    )
    p.add_argument(
        "-os",
        "--override_spacing",
        nargs="+",
        type=float,
        metavar="MM",
        help="Z Y X in mm, in the order of the plan's spacing (after transposition); with -am fixed",
    )
    _planning.add_patch_size(p, "what the checkpoint recommends")
    p.add_argument(
        "-arch",
        metavar="NAME|FILE",
        help="for weights that do not say which network they are of: ResEncL, PrimusM, ..., or a JSON file (an "
        "adaptation plan or an nnU-Net plan)",
    )
    p.add_argument("-bs", "--batch_size", type=int, default=2, metavar="N", help="batch size (default: 2)")
    _planning.add_normalization(
        p,
        default="zscore",
        meaning="z-score as in pre-training (default), or nnU-Net's choice for the dataset (CT windows)",
    )
    _planning.add_transfer_arguments(p, "1, all of the checkpoint's own network")
    _planning.add_run_arguments(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run(parser(), _run, argv, interrupted=_planning.INTERRUPTED)


def _run(args: argparse.Namespace) -> None:
    from nnunetv2_ext.planning.pretrained_plan import PlanOptions
    from nnunetv2_ext.preprocessing.like_pretrained import plan_and_preprocess

    plan_options = PlanOptions(
        name=args.pretraining_name,
        batch_size=args.batch_size,
        normalization=args.normalization,
        patch_size=args.patch_size and tuple(args.patch_size),
        transfer=_planning.transfer_options(args),
    )
    plan_and_preprocess(
        args.d,
        args.pretrained_checkpoint,
        plan_options,
        _planning.run_options(args),
        mode=args.adaptation_mode,
        override_spacing=args.override_spacing,
        arch=args.arch,
    )
