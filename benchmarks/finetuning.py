"""Does pre-training help? The demo's data and weights, fine-tuned and from scratch, on the same short budget.

    python benchmarks/finetuning.py [--epochs N] [--iterations N] [--seeds N] [--keep FOLDER] [--figure FILE.png]

Six crops of the MNI template (four train, two validate), labels from its tissue maps, and the tiny ResEnc that nnssl
has pre-trained for 400 steps of a masked autoencoder on that template: the best that can be shown without a data set
or a GPU, and no statement about a foundation model. Three ways, each with seeds 0, 1, ..., by the command
`nnUNetv2_train_pretrained` on the CPU, everything else alike:

* fine-tuned with the default recipe, peak rate 1e-3;
* fine-tuned with the peak rate that the default recipe has from scratch, 1e-2;
* from scratch, 1e-2.

Prints the mean Dice of the validation cases (nnU-Net's `summary.json`) and the epochs until the pseudo Dice first
reaches 0.8, and draws nnU-Net's pseudo Dice (of random patches) after every epoch, the seeds thin, their mean thick.
Without mirroring, which makes the validation eight times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from nnunetv2_ext.datasets.mni import make_mni_dataset

SCRIPTS = Path(sys.executable).parent
DATASET = "Dataset999_MNITissues"
PLANS = "ptPlans_MAE_demo_Spacing_1.00_1.00_1.00_Norm_Z"
WEIGHTS = Path(__file__).resolve().parents[1] / "nnunetv2_ext" / "data" / "tiny_resenc"
WAYS = {
    "fine-tuned, peak 1e-3": ["-r", "default"],
    "fine-tuned, peak 1e-2": ["-r", "default", "--set", "initial_lr=1e-2"],
    "from scratch, peak 1e-2": ["-r", "from_scratch"],
}
COLOURS = ("#0072b2", "#009e73", "#d55e00")
LEVEL = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=20, help="training steps in an epoch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there and leave everything")
    parser.add_argument("--figure", type=Path, default=Path("finetuning_against_scratch.png"), metavar="FILE.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        env = prepare(args.keep or Path(temporary))
        curves, dice = {}, {}
        for way, options in WAYS.items():
            runs = [train(way, options, seed, args, env) for seed in range(args.seeds)]
            curves[way] = np.array([curve for curve, _ in runs])
            dice[way] = np.array([score for _, score in runs])
    report(curves, dice)
    draw(curves, args.figure)
    print(f"\n{args.figure}")


def prepare(root: Path) -> dict[str, str]:
    """The demo's dataset, planned and preprocessed, unless `root` has it."""
    folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    env = {**os.environ, **folders, "nnUNet_compile": "f", "OMP_WAIT_POLICY": "passive"}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    if not (Path(folders["nnUNet_preprocessed"]) / DATASET / f"{PLANS}.json").is_file():
        make_mni_dataset(Path(folders["nnUNet_raw"]) / DATASET, crop=(72, 72, 48))
        call(env, "nnUNetv2_plan_and_preprocess", "-d", "999", "--no_pp")
        call(
            env,
            "nnUNetv2_preprocess_like_nnssl",
            "-d",
            "999",
            "-n",
            "MAE_demo",
            "-pc",
            str(WEIGHTS),
            "-np",
            "2",
            "-am",
            "like_pretrained",
        )
    return {**env, "nnUNet_n_proc_DA": "0"}


def train(
    way: str, options: list[str], seed: int, args: argparse.Namespace, env: dict[str, str]
) -> tuple[list[float], float]:
    """The pseudo Dice after every epoch, and the mean Dice of the validation cases."""
    name = f"{''.join(c for c in way if c.isalnum())}{seed}"
    settings = [
        f"num_epochs={args.epochs}", f"num_iterations_per_epoch={args.iterations}", "num_val_iterations_per_epoch=10",
        "mirroring=false",
        f"seed={seed}",
    ]  # fmt: skip
    folder = Path(env["nnUNet_results"]) / DATASET / f"PretrainedTrainer__{PLANS}_{name}__3d_fullres" / "fold_0"
    if not (folder / "validation" / "summary.json").is_file():
        call(
            env, "nnUNetv2_train_pretrained", "-d", "999", "-c", "3d_fullres", "-f", "0", "-p", PLANS, "-device", "cpu",
            "-rn", name, *options, "--set", *settings,
        )  # fmt: skip
    logging = torch.load(folder / "checkpoint_final.pth", weights_only=True)["logging"]
    score = json.loads((folder / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]
    print(f"{way}, seed {seed}: Dice {score:.3f}", flush=True)
    return logging["mean_fg_dice"], score


def report(curves: dict[str, np.ndarray], dice: dict[str, np.ndarray]) -> None:
    print(f"\n| | validation Dice: mean (seeds) | first epoch with a pseudo Dice of {LEVEL} (seeds) |\n|---|---|---|")
    for way, scores in dice.items():
        first = [str(int(np.argmax(c >= LEVEL)) + 1) if (c >= LEVEL).any() else "none" for c in curves[way]]
        print(f"| {way} | {scores.mean():.3f} ({', '.join(f'{s:.3f}' for s in scores)}) | {', '.join(first)} |")


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (way, values), colour in zip(curves.items(), COLOURS, strict=True):
        epochs = np.arange(1, values.shape[1] + 1)
        axes.plot(epochs, values.T, color=colour, linewidth=0.8, alpha=0.5)
        axes.plot(epochs, values.mean(axis=0), color=colour, linewidth=2.5, label=way)
    axes.set(xlabel="epoch", ylabel="pseudo Dice, mean of the two labels", ylim=(0.4, 0.9))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def call(env: dict[str, str], name: str, *arguments: str) -> None:
    done = subprocess.run([str(SCRIPTS / name), *arguments], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    main()
