"""nnUNetv2_torchrun_pretrained: nnUNetv2_train_pretrained on several processes and nodes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnunetv2_ext.cli._command import Parser, run
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.launching.elastic import TRAINING, launch
from nnunetv2_ext.launching.stopping import listen

DESCRIPTION = f"""\
Fine-tune one network on several GPUs of several nodes: torchrun with exit codes and signals for job scripts.
The same command runs once on each node. Before -- stand torchrun's arguments (torchrun --help lists them all), after
it those of nnUNetv2_train_pretrained; instead of -- torchrun's own -m {TRAINING} does as well.

  --nnodes N                 how many nodes
  --nproc_per_node G         processes on each, one for each GPU
  --rdzv_backend c10d        how they meet; with --nnodes 1, --standalone instead of this and the next two
  --rdzv_endpoint HOST:PORT  where: the first node and any free port of it
  --rdzv_id ID               any word, the same on all nodes
  --rdzv_conf join_timeout=S seconds to wait for nodes that start later (default: 600)
  --shutdown_timeout S       seconds from a signal until processes that still save are killed (default: 600)"""
EPILOG = """\
example, on each of two nodes with four GPUs:
  nnUNetv2_torchrun_pretrained --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint node1:29400 \\
    --rdzv_id 7 -- -d 999 -c 3d_fullres -f 0 -p PLANS --c

SIGTERM, SIGUSR1 and Ctrl-C, on any node, finish the current iteration, save and end all processes.
exit codes: 0 finished; 75 stopped, and the same command with --c continues; 1 an error, in one line.
One node needs no torchrun: nnUNetv2_train_pretrained -num_gpus G. Scripts for SLURM and LSF: documentation/job_scripts.
"""


def parser() -> Parser:
    """The command's help; torchrun parses the arguments."""
    p = Parser(
        prog="nnUNetv2_torchrun_pretrained",
        usage="%(prog)s [TORCHRUN'S ARGUMENTS] -- [nnUNetv2_train_pretrained'S ARGUMENTS]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # found among the training's arguments
    p.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    return p


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """torchrun's arguments, and those of the training, which stand after `--` or `-m` and the training's module.

    Raises:
        UserError: they name no training.
    """
    arguments = list(arguments)
    for position, argument in enumerate(arguments):
        if argument in ("-m", "--module") and arguments[position + 1 : position + 2] == [TRAINING]:
            return arguments[:position], arguments[position + 2 :]
        if argument == "--":
            return arguments[:position], arguments[position + 1 :]
    raise UserError("the arguments of nnUNetv2_train_pretrained are missing: they stand after -- (see --help)")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    given = list(sys.argv[1:] if argv is None else argv)
    own = given[:1] if given[:1] in (["-h"], ["--help"]) else [a for a in given if a == "--verbose"]
    listen()
    run(parser(), lambda _: _run(given), own, interrupted="the same command with --c continues")


def _run(given: Sequence[str]) -> None:
    from nnunetv2_ext.cli import train_pretrained

    own, training = split_arguments(given)
    train_pretrained.parser().parse_args(training)  # here once, not in each process

    if code := launch([*own, "-m", TRAINING, *training]):
        raise SystemExit(code)
