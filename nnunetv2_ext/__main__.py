"""`python -m nnunetv2_ext COMMAND ...`: every command, for where another package owns the script's name."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "import_dataset": "make a raw nnU-Net dataset of Zarr crops, tables, patterns or BIDS",
    "preprocess_like_nnssl": "plan a dataset for a pre-trained checkpoint and preprocess it",
    "plan_like_dynamic": "plan a dataset's own network, started from what fits of a checkpoint",
    "inspect_pretrained_checkpoint": "what a checkpoint is, and what a plan would take of it",
    "convert_pretrained_checkpoint": "write weights of any origin in nnssl's format",
    "train_pretrained": "fine-tune on a planned dataset",
    "torchrun_pretrained": "train_pretrained in several processes, on one node or several",
    "compare_finetuning": "finished trainings side by side: a table and learning curves",
    "demo": "the whole way on six subjects made from the MNI template",
}


def main() -> None:
    """Run the command that the first argument names, with or without `nnUNetv2_`."""
    name = sys.argv[1].removeprefix("nnUNetv2_") if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = "\n".join(f"  {command:<32}{text}" for command, text in COMMANDS.items())
        print(f"usage: python -m nnunetv2_ext COMMAND ...\n\ncommands (each has --help):\n{lines}")
        return
    if name not in COMMANDS:
        sys.stderr.write(f"nnunetv2_ext: error: there is no command {name!r}; there are {', '.join(COMMANDS)}\n")
        raise SystemExit(1)
    sys.argv = [f"python -m nnunetv2_ext {name}", *sys.argv[2:]]
    importlib.import_module(f"nnunetv2_ext.cli.{name}").main()


if __name__ == "__main__":
    main()
