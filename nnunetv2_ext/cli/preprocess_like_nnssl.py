"""nnUNetv2_preprocess_like_nnssl: plan a dataset for a pre-trained checkpoint and preprocess it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

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
    p.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids or names, one or more")
    p.add_argument(
        "-n",
        "--pretraining_name",
        required=True,
        metavar="NAME",
        help="a name for this pre-training; becomes part of the plan's name",
    )
    p.add_argument(
        "-pc",
        "--pretrained_checkpoint",
        required=True,
        metavar="SOURCE",
        help="checkpoint file, folder with checkpoint_final.pth, or Hugging Face repository "
        "(https://huggingface.co/ORG/NAME, hf://ORG/NAME[@REV], ORG/NAME[@REV])",
    )
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
    p.add_argument(
        "-pl",
        "--base_plan",
        metavar="PLANS",
        help="the dataset's nnU-Net plan to start from "
        "(default: nnUNetPlans, or a ResEnc plan; made first where there is none)",
    )
    p.add_argument(
        "-ps",
        "--patch_size",
        nargs="+",
        type=int,
        metavar="VOXELS",
        help="Z Y X in voxels, same order (default: what the checkpoint recommends)",
    )
    p.add_argument("-bs", "--batch_size", type=int, default=2, metavar="N", help="batch size (default: 2)")
    p.add_argument(
        "-norm",
        "--normalization",
        default="zscore",
        choices=("zscore", "default_nnunet"),
        help="z-score as in pre-training (default), or nnU-Net's choice for the dataset (CT windows)",
    )
    p.add_argument("-np", type=int, default=4, metavar="N", help="processes for preprocessing (default: 4)")
    p.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    p.add_argument("--overwrite_pp", action="store_true", help="preprocess again cases that are there already")
    p.add_argument("--verbose", action="store_true", help="more output; tracebacks of errors")
    p.add_argument("--no_pbar", action="store_true", help="no progress bars")
    return p  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run(parser(), _run, argv, interrupted="finished cases are kept, and the same command continues")


def _run(args: argparse.Namespace) -> None:
    from nnunetv2_ext.preprocessing.like_pretrained import plan_and_preprocess

    plan_and_preprocess(
        args.d,
        args.pretraining_name,
        args.pretrained_checkpoint,
        mode=args.adaptation_mode,
        override_spacing=args.override_spacing,
        base_plan=args.base_plan,
        patch_size=args.patch_size,
        batch_size=args.batch_size,
        normalization=args.normalization,
        num_processes=args.np,
        preprocess=not args.no_pp,
        overwrite=args.overwrite_pp,
        verbose=args.verbose,
        show_progress=not args.no_pbar,
    )
