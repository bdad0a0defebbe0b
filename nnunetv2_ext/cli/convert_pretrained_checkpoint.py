"""nnUNetv2_convert_pretrained_checkpoint: write weights of any origin in nnssl's format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_ext.cli import _planning
from nnunetv2_ext.cli._command import Parser, run
from nnunetv2_ext.errors import UserError

DESCRIPTION = """\
Write a folder in nnssl's format (checkpoint_final.pth, adaptation_plan.json, config.json) from weights of any origin,
for this package and for nnssl's users. What the checkpoint says of itself is kept where no flag says otherwise; keys
are the architecture's own."""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="nnUNetv2_convert_pretrained_checkpoint",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _planning.add_source(p)
    p.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder to write")
    p.add_argument(
        "-arch",
        metavar="NAME|FILE",
        help="the network: ResEncL, PrimusM, ..., or a JSON file (an adaptation plan or an nnU-Net plan with "
        "3d_fullres); needed unless the checkpoint says",
    )
    p.add_argument("-spacing", nargs=3, type=float, metavar="MM", help="Z Y X of the pre-training (default: none)")
    p.add_argument("-patch_size", nargs=3, type=int, metavar="VOXELS", help="Z Y X of the pre-training")
    p.add_argument("-channels", type=int, metavar="N", help="input channels (default: those of the stem's weight)")
    p.add_argument("-key_to_encoder", metavar="KEY", help="prefix of the encoder's tensors, like encoder.stages")
    p.add_argument("-key_to_stem", metavar="KEY", help="prefix of the stem's tensors, like encoder.stem")
    p.add_argument("-keys_to_in_proj", nargs="+", metavar="KEY", help="the layers that see the image")
    p.add_argument("-key_to_lpe", metavar="KEY", help="the learned positional embedding, like eva.pos_embed")
    p.add_argument("--verbose", action="store_true", help="tracebacks of errors")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run(parser(), _run, argv, interrupted="no checkpoint was written; the same command starts again")


def _run(args: argparse.Namespace) -> None:
    if args.channels is not None and args.channels < 1:
        raise UserError(f"-channels must be at least 1, not {args.channels}")
    from nnunetv2_ext.checkpoints.describe import KEYS
    from nnunetv2_ext.planning.conversion import convert_checkpoint
    from nnunetv2_ext.planning.given_architecture import GivenArchitecture
    from nnunetv2_ext.preprocessing.plan_datasets import checkpoint_line

    given = GivenArchitecture(
        args.arch, args.patch_size, args.spacing, args.channels, {key: getattr(args, key) for key in KEYS}
    )
    folder = Path(args.output).expanduser().absolute()
    checkpoint = convert_checkpoint(args.pretrained_checkpoint, folder, given)
    print(
        f"{folder}: {checkpoint_line(checkpoint)}\nNext:\n"
        f"  nnUNetv2_inspect_pretrained_checkpoint -pc {folder}\n"
        f"  nnUNetv2_preprocess_like_nnssl -d DATASET -n NAME -pc {folder} -am like_pretrained"
    )
