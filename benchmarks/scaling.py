"""Several processes, the start of a training, and the saving of a checkpoint, beside what they are compared with.

    python benchmarks/scaling.py [--device cpu|cuda] [--processes 1 2 4] [--steps N] [--repeats N] [--parts PART ...]

* processes: images per second of `PretrainedTrainer.train_step` on 1, 2, 4 processes, started by torchrun on this
  machine, one image (48^3, four stages) each; on the CPU with one thread each, through Gloo, on GPUs through NCCL. The
  share of the exchange of gradients is what a step takes less without it (DDP's `no_sync`), the two kinds of steps
  taking turns; "stop?" is the question to all, before each step, whether one has been asked to stop. With more
  processes than cores the CPU's figures say what the exchange costs, not what is gained.
* start: seconds from the command to the first step, `nnUNetv2_train_pretrained` and stock `nnUNetv2_train` with the
  same plan and cases (six crops of the MNI template), by turns. Stock starts from random weights and checks nothing.
* save: `checkpoint_latest.pth` of a ResEnc-L with SGD's momentum: this package's (flushed to the disk, the previous one
  kept) and stock's; and the copy of the state that is kept in memory from the start of an epoch. Each in a process of
  its own; the peak is the resident memory above that before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from memory import highest_memory
from random_trainers import SIZES, Arm, make_batch, make_trainer, prepare

PARTS = ("processes", "start", "save")
SAVES = ("stock", "ours", "epoch start")
SCRIPTS = Path(sys.executable).parent
WARM_UP = 2


def measure_steps(device: str, steps: int, folder: Path) -> None:
    """One rank's steps, with and without the exchange; the first rank prints what it has seen."""
    from nnunetv2_ext.launching.ranks import ALONE, joined, launched

    torch.set_num_threads(1)
    with joined(launched(), device, 600) as ranks:
        size, arm = SIZES["small"], Arm(batch_size=max(1, (ranks or ALONE).size))
        trainer = make_trainer(arm, size, device, folder)
        batch = make_batch(trainer, Arm(batch_size=1), size)
        times: dict[str, list[float]] = {"step": [], "alone": [], "stop": []}
        for index in range(WARM_UP + steps):
            for kind in ("step", "alone"):
                context = trainer.network.no_sync() if kind == "alone" and trainer.is_ddp else nullcontext()
                ranks.wait_for_all()
                seconds = _timed(lambda context=context: _step(trainer, batch, context), device)
                if index >= WARM_UP:
                    times[kind].append(seconds)
            times["stop"].append(_timed(trainer.stop_if_asked, device))
        medians = {kind: statistics.median(values) for kind, values in times.items()}
        if ranks.is_first:
            (folder / "steps.json").write_text(json.dumps(medians | {"processes": ranks.size}))


def _step(trainer: Any, batch: dict[str, Any], context: Any) -> None:
    with context:
        trainer.train_step(batch)


def _timed(call: Any, device: str) -> float:
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare_processes(args: argparse.Namespace) -> None:
    """Print the table of processes; the first row is what the others are compared with."""
    rounds: list[dict[int, dict[str, float]]] = []
    for _ in range(args.repeats):
        rounds.append({})
        for count in args.processes:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                prepare(folder, SIZES["small"])
                own = ["--measure", "steps", "--device", args.device, "--steps", str(args.steps), "--folder", temporary]
                launch = [str(SCRIPTS / "torchrun"), "--standalone", "--nproc_per_node", str(count), __file__, *own]
                _run(launch if count > 1 else [sys.executable, __file__, *own], _environment(folder, args.device))
                rounds[-1][count] = json.loads((folder / "steps.json").read_text())
    print("\n| processes | images per second | ratio | exchange | stop? |\n|---|---|---|---|---|")
    for count in args.processes:
        first = args.processes[0]
        speed = [count / r[count]["step"] for r in rounds]
        ratio = [(count / r[count]["step"]) / (first / r[first]["step"]) for r in rounds]
        exchange = [1 - r[count]["alone"] / r[count]["step"] for r in rounds]
        stop = [r[count]["stop"] / r[count]["step"] for r in rounds]
        share = f"{max(0.0, statistics.median(exchange)):.0%}" if count > 1 else "-"
        print(
            f"| {count} | {statistics.median(speed):.2f} | {statistics.median(ratio):.2f} | {share} "
            f"| {statistics.median(stop):.2%} |"
        )


def compare_starts(args: argparse.Namespace) -> None:
    """Print how long the two commands take until the first step."""
    from nnunetv2_ext.datasets.mni import make_mni_dataset

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        env = _environment(folder, args.device)
        make_mni_dataset(folder / "nnUNet_raw" / "Dataset999_MNI", num_subjects=6, crop=(48, 48, 48))
        checkpoint = Path(__file__).parent.parent / "nnunetv2_ext" / "data" / "tiny_resenc"
        planning = {k: v for k, v in env.items() if k != "nnUNet_n_proc_DA"}
        _run([str(SCRIPTS / "nnUNetv2_plan_and_preprocess"), "-d", "999", "--no_pp"], planning)
        own = ["-d", "999", "-n", "tiny", "-pc", str(checkpoint), "-am", "like_pretrained"]
        _run([str(SCRIPTS / "nnUNetv2_preprocess_like_nnssl"), *own], planning)
        plan = "ptPlans_tiny_Spacing_1.00_1.00_1.00_Norm_Z"
        arguments = ["999", "3d_fullres", "0", "-p", plan, "-device", args.device]
        commands = {
            "stock": [str(SCRIPTS / "nnUNetv2_train"), *arguments],
            "ours": [str(SCRIPTS / "nnUNetv2_train_pretrained"), *arguments],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for index in range(args.repeats):
            for name in list(commands) if index % 2 == 0 else list(commands)[::-1]:
                seconds[name].append(_seconds_to_the_first_step(commands[name], env))
    ratio = statistics.median(o / s for o, s in zip(seconds["ours"], seconds["stock"], strict=True))
    print(
        f"\nstart: {statistics.median(seconds['ours']):.1f} s to the first step, stock "
        f"{statistics.median(seconds['stock']):.1f} s: {ratio:.2f} times"
    )


def _seconds_to_the_first_step(command: Sequence[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env={**env, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "Current learning rate" in line:  # nnU-Net's last line before the first step
                return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
    sys.exit(f"{' '.join(command)} ended before its first step")


def measure_save(way: str, folder: Path) -> dict[str, float]:
    """One way to save, in this process: seconds, bytes of memory above that before, bytes of the file."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = make_trainer(Arm(), SIZES["full"], "cpu", folder)
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            trainer.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    trainer.logger.log("ema_fg_dice", 0.5, 0)
    trainer._best_ema = 1.0  # no `checkpoint_best` on the way
    path = folder / "checkpoint_latest.pth"
    highest, started = highest_memory("cpu"), time.perf_counter()
    if way == "stock":
        nnUNetTrainer.save_checkpoint(trainer, str(path))
    elif way == "ours":
        trainer.save_checkpoint(str(path))
    else:
        trainer.keep_epoch_start()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": highest(), "file": path.stat().st_size if path.is_file() else 0}


def compare_saves(args: argparse.Namespace) -> None:
    """Print the table of saves."""
    rounds: list[dict[str, dict[str, float]]] = []
    for index in range(args.repeats):
        rounds.append({})
        for way in SAVES if index % 2 == 0 else SAVES[::-1]:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                prepare(folder, SIZES["full"])
                command = [sys.executable, __file__, "--measure", way, "--folder", temporary]
                rounds[-1][way] = json.loads(_run(command, _environment(folder, "cpu")).splitlines()[-1])
    print("\n| ResEnc-L, SGD | seconds | ratio | peak | file |\n|---|---|---|---|---|")
    for way in SAVES:
        seconds = statistics.median(r[way]["seconds"] for r in rounds)
        ratio = statistics.median(r[way]["seconds"] / r["stock"]["seconds"] for r in rounds)
        peak = statistics.median(r[way]["peak"] for r in rounds) / 1e6
        size = rounds[0][way]["file"] / 1e6
        print(f"| {way} | {seconds:.2f} | {ratio:.2f} | {peak:.0f} MB | {f'{size:.0f} MB' if size else '-'} |")


def _environment(folder: Path, device: str) -> dict[str, str]:
    folders = {key: str(folder / key) for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for path in folders.values():
        Path(path).mkdir(exist_ok=True)
    env = {**os.environ, **folders, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    return env | {"nnUNet_compile": "f"} if device == "cpu" else env


def _run(command: Sequence[str], env: dict[str, str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    if run.returncode:
        sys.exit(f"{' '.join(command)}:\n{run.stderr}")
    return run.stdout


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    counts = [n for n in (1, 2, 4) if not cuda or n <= torch.cuda.device_count()]
    parser.add_argument("--processes", type=int, nargs="+", default=counts, help="1 2 4, as many as there are GPUs")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each kind in a process (8)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--measure", choices=("steps", *SAVES), help=argparse.SUPPRESS)  # in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure == "steps":
        measure_steps(args.device, args.steps, args.folder)
    elif args.measure:
        print(json.dumps(measure_save(args.measure, args.folder)))
    else:
        for part, compare in zip(PARTS, (compare_processes, compare_starts, compare_saves), strict=True):
            if part in args.parts:
                compare(args)


if __name__ == "__main__":
    main()
