"""The arguments that the planning commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnunetv2_ext.cli._command import Parser
from nnunetv2_ext.preprocessing.run_options import EXECUTORS, LOCAL
from nnunetv2_ext.transfer.request import LOAD_CHOICES, parse_channel_map

if TYPE_CHECKING:
    from nnunetv2_ext.planning.pretrain_info import TransferOptions
    from nnunetv2_ext.preprocessing.run_options import RunOptions

SOURCE_HELP = (
    "checkpoint of nnssl, trained nnU-Net model (folder, one of its checkpoints, or zip), file of weights (.pth, .pt, "
    ".ckpt, .safetensors), or Hugging Face repository (https://huggingface.co/ORG/NAME, hf://ORG/NAME[@REV], "
    "ORG/NAME[@REV])"
)
INTERRUPTED = "what is finished is kept, and the same command continues"


def add_source(p: Parser) -> None:
    """`-pc`."""
    p.add_argument("-pc", "--pretrained_checkpoint", required=True, metavar="SOURCE", help=SOURCE_HELP)


def add_planning_arguments(p: Parser) -> None:
    """Datasets, name and source."""
    p.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids or names, one or more")
    p.add_argument(
        "-n",
        "--pretraining_name",
        required=True,
        metavar="NAME",
        help="a name for this pre-training; becomes part of the plan's name",
    )
    add_source(p)
    p.add_argument(
        "-pl",
        "--base_plan",
        metavar="PLANS",
        help="the dataset's nnU-Net plan to start from "
        "(default: nnUNetPlans, or a ResEnc plan; made first where there is none)",
    )


def add_patch_size(p: Parser, default: str) -> None:
    """`-ps`; `default` in words."""
    p.add_argument(
        "-ps",
        "--patch_size",
        nargs="+",
        type=int,
        metavar="VOXELS",
        help=f"Z Y X in voxels, in the order of the plan's spacing (default: {default})",
    )


def add_normalization(p: Parser, *, default: str, meaning: str) -> None:
    """`-norm`."""
    p.add_argument("-norm", "--normalization", default=default, choices=("zscore", "default_nnunet"), help=meaning)


def add_transfer_arguments(p: Parser, default_coverage: str) -> None:
    """What to bring over of the checkpoint."""
    p.add_argument(
        "-load",
        choices=LOAD_CHOICES,
        help="which parts to bring over (default: encoder; of a trained nnU-Net model the decoder too)",
    )
    p.add_argument(
        "-keep_head",
        action="store_true",
        help="bring over the segmentation head too; only where the model was trained on the same labels",
    )
    p.add_argument(
        "-cm",
        "--channel_map",
        nargs="+",
        metavar="CHANNEL",
        help="for each channel of the dataset the checkpoint's channel, counted from 0, or none (default: all channels "
        "are shared out equally)",
    )
    p.add_argument(
        "-min_coverage",
        type=float,
        metavar="F",
        help="share of the encoder's and stem's parameters that must arrive, 0 to 1 "
        + f"(default: {default_coverage})",
    )


def add_run_arguments(p: Parser) -> None:
    """How to go about it."""
    p.add_argument("-np", type=int, default=4, metavar="N", help="processes for preprocessing (default: 4)")
    p.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    p.add_argument(
        "--overwrite_pp",
        action="store_true",
        help="preprocess again cases that are there already, one after the other",
    )
    p.add_argument(
        "--preview", action="store_true", help="draw up to four cases before and after, as preview.png beside the plan"
    )
    p.add_argument(
        "-executor",
        choices=EXECUTORS,
        default=LOCAL,
        help="where to preprocess: processes on this machine (default), or a Dask cluster that is running",
    )
    p.add_argument("-scheduler", metavar="ADDRESS", help="of the Dask cluster, HOST:PORT; with -executor dask")
    p.add_argument(
        "-part", type=int, metavar="I", help="preprocess one part of the cases, counted from 0; with -num_parts"
    )
    p.add_argument(
        "-num_parts", type=int, metavar="N", help="in how many parts the cases are preprocessed, for array jobs"
    )
    p.add_argument("--verbose", action="store_true", help="more output; tracebacks of errors")
    p.add_argument("--no_pbar", action="store_true", help="no progress bars")


def transfer_options(args: argparse.Namespace) -> TransferOptions:
    """From the parsed arguments. Raises UserError for a channel map that is none."""
    from nnunetv2_ext.planning.pretrain_info import TransferOptions

    return TransferOptions(args.load, args.keep_head, parse_channel_map(args.channel_map), args.min_coverage)


def run_options(args: argparse.Namespace) -> RunOptions:
    """From the parsed arguments."""
    from nnunetv2_ext.preprocessing.run_options import RunOptions

    return RunOptions(
        base_plan=args.base_plan,
        num_processes=args.np,
        preprocess=not args.no_pp,
        overwrite=args.overwrite_pp,
        preview=args.preview,
        executor=args.executor,
        scheduler=args.scheduler,
        part=args.part,
        num_parts=args.num_parts,
        verbose=args.verbose,
        show_progress=not args.no_pbar,
    )
