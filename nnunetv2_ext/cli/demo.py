"""python -m nnunetv2_ext demo: the whole way on six subjects made from the MNI template, without download or GPU."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_ext.cli._command import Parser, run
from nnunetv2_ext.errors import UserError

DESCRIPTION = """\
Make six subjects from the MNI template (needs nilearn: the demo extra), then plan, preprocess, fine-tune from the
small pre-trained weights in this package and predict an unseen subject, with the four commands that a user would run.
Needs no GPU and no download; some minutes on 2 cores."""

DATASET_ID = 999
DATASET = f"Dataset{DATASET_ID}_MNITissues"
PLANS_FILE = "ptPlans__MAE_demo____Spacing__1.00_1.00_1.00___Norm__Z"
PLANS_NAME = "ptPlans_MAE_demo_Spacing_1.00_1.00_1.00_Norm_Z"

#: Voxels (z, y, x) of every case, 5 to 9 centimetres a side: patches of 32 mm cover one in seconds.
CROP = (72, 72, 48)

#: 400 steps instead of 250,000, at ten times the usual rate: enough to tell grey matter from white.
RECIPE = {
    "num_epochs": 8,
    "num_iterations_per_epoch": 50,
    "num_val_iterations_per_epoch": 5,
    "warmup_epochs": 1,
    "initial_lr": 0.01,
}

_MARKER = ".nnunetv2_ext_demo"
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions")


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="python -m nnunetv2_ext demo",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "-o",
        dest="folder",
        type=Path,
        default=Path("demo_output"),
        metavar="FOLDER",
        help="where everything goes; an earlier demo there is done anew (default: demo_output)",
    )
    p.add_argument("--verbose", action="store_true", help="tracebacks of errors")
    return p  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m nnunetv2_ext demo`."""
    run(parser(), lambda args: demo(args.folder), argv, interrupted="the same command starts the demo over")


def demo(folder: Path) -> None:
    """Run the main job in `folder` and print the Dice of the unseen subject.

    Raises:
        UserError: the folder holds something else, nilearn is missing, or one of the commands failed.
    """
    from nnunetv2_ext.datasets.mni import make_mni_dataset

    folder = folder.absolute()
    _start_over(folder)
    raw = folder / "nnUNet_raw" / DATASET
    _say(f"Making six subjects and an unseen one from the MNI template in {raw}")
    make_mni_dataset(raw, crop=CROP)

    variables = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, value in variables.items():
        Path(value).mkdir(exist_ok=True)
        print(f"export {name}={shlex.quote(value)}")
    predictions = folder / "predictions"
    seconds = {}
    for command, more_variables in _commands(raw, predictions):
        started = time.monotonic()
        _call(command, variables, more_variables)
        seconds[command[0]] = time.monotonic() - started
    _print_results(raw / "labelsTs", predictions, folder, seconds)


def _commands(raw: Path, predictions: Path) -> list[tuple[list[str], dict[str, str]]]:
    """The four commands, each with the environment variables that it alone gets."""
    import nnunetv2_ext

    weights = Path(nnunetv2_ext.__file__).parent / "data" / "tiny_resenc"
    dataset = ["-d", str(DATASET_ID)]
    model = [*dataset, "-c", "3d_fullres", "-f", "0"]
    pretraining = ["-n", "MAE_demo", "-pc", str(weights), "-am", "like_pretrained"]
    recipe = ["--set", *(f"{key}={value}" for key, value in RECIPE.items())]
    trained = ["-p", PLANS_NAME, "-tr", "PretrainedTrainer"]
    where = ["-i", str(raw / "imagesTs"), "-o", str(predictions)]
    # Starting a dozen augmentation workers would take longer than this training; planning fails with the same setting.
    in_one_process = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    return [
        (["nnUNetv2_plan_and_preprocess", *dataset, "--no_pp"], {}),
        (["nnUNetv2_preprocess_like_nnssl", *dataset, *pretraining, "-np", "2"], {}),
        (["nnUNetv2_train_pretrained", *model, "-p", PLANS_FILE, "-device", "cpu", *recipe], in_one_process),
        (["nnUNetv2_predict", *where, *model, *trained, "-device", "cpu"], {}),
    ]


def _start_over(folder: Path) -> None:
    """Remove what an earlier demo left in `folder`, and nothing else."""
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARKER).exists()):
            raise UserError(f"{folder} holds something other than a demo: choose another folder with -o")
        for name in _FOLDERS:
            if (folder / name).exists():
                shutil.rmtree(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()


def _call(command: Sequence[str], variables: Mapping[str, str], more_variables: Mapping[str, str]) -> None:
    """Show a command as one would type it, then run it, from this Python's own environment if it is there."""
    prefix = "".join(f"{name}={value} " for name, value in more_variables.items())
    _say(f"$ {prefix}{shlex.join(command)}")
    scripts = str(Path(sys.executable).parent)  # so that an environment need not be activated
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])}
    environment.pop("nnUNet_n_proc_DA", None)
    # Waiting threads that spin make the training seven times slower when anything else runs on the same two cores.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise UserError(f"{command[0]} is not installed beside {sys.executable}: pip install nnunetv2-ext")
    code = subprocess.run([program, *command[1:]], env={**environment, **variables, **more_variables}).returncode
    if code:
        raise UserError(f"{command[0]} failed with exit code {code}; what it said is above")


def _print_results(truths: Path, predictions: Path, folder: Path, seconds: Mapping[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    from nnunetv2_ext.datasets.mni import LABELS

    classes = {name: value for name, value in LABELS.items() if value}
    table = Table("unseen subject", *(name.replace("_", " ") for name in classes), title="Dice")
    for truth in sorted(truths.glob("*.nii.gz")):
        scores = _dice(truth, predictions / truth.name, list(classes.values()))
        table.add_row(truth.name.removesuffix(".nii.gz"), *(f"{score:.3f}" for score in scores))
    console = Console()
    console.print()
    console.print(table)
    durations = ", ".join(f"{command} {duration:.0f} s" for command, duration in seconds.items())
    console.print(durations, highlight=False, soft_wrap=True)
    for what, path in (
        ("plan", folder / "nnUNet_preprocessed" / DATASET / f"{PLANS_FILE}.json"),
        ("model", folder / "nnUNet_results" / DATASET / f"PretrainedTrainer__{PLANS_NAME}__3d_fullres"),
        ("predictions", predictions),
    ):
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)


def _dice(truth: Path, prediction: Path, values: Sequence[int]) -> list[float]:
    """Dice coefficient of each label between two label files of the same grid."""
    import SimpleITK as sitk

    expected, found = (sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in (truth, prediction))
    return [
        float(2 * ((expected == value) & (found == value)).sum() / ((expected == value).sum() + (found == value).sum()))
        for value in values
    ]


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)
