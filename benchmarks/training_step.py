"""A training step with each recipe and lever, beside one of stock nnU-Net with the same network and batch.

    python benchmarks/training_step.py [--device cpu|cuda] [--size small|full] [--steps N] [--repeats N]

Builds the real trainers, `nnUNetTrainer` and `PretrainedTrainer` (which loads a checkpoint with random weights), gives
them a batch of random values in memory, and measures `train_step`, each arm in a process of its own. The arms take
turns in rounds (`--repeats`), stock and full fine-tuning next to each other; every second round runs backwards and has
only the arms that a limit is set for. Data loading is not part of a step; it is nnU-Net's own for both.

* small: a ResEnc of ResEnc-L's first four stages with half the features, 48^3, batch 2, single precision on the CPU (as
  nnU-Net), fp16 on CUDA; deep supervision off, as in the recipes, and off in stock too.
* full: ResEnc-L, 192^3, batch 2, bf16, deep supervision on, in stock too; for a large GPU, where 0.310 s a step and
  18.3 GiB (batch 4: 0.499 s, 35.6 GiB) have been published for an H200. With `torch.compile`, as nnU-Net has it.

Per arm, the median of the rounds: the median time of an update (with `accumulation=2` that is two batches), its ratio
to stock's in the same round, the peak memory, the most bytes that autograd keeps for the backward pass ("graph", on the
CPU alone; counted, so free of noise), the bytes of the optimizer's state after the steps, the parameters that train.
The peak is, on CUDA, the highest memory allocated, weights and all; on the CPU the highest resident memory of the steps
above that before the first (the copy of the weights that an average keeps is older, and not in it). On the CPU the time
is the process's own on one thread, so that other work on the machine hardly counts.

What must hold, or the script ends with code 1: full fine-tuning takes at most 1.05 times stock's time and has the same
losses from the same weights; the frozen encoder is at least 1.5 times as fast as full fine-tuning and keeps and needs
less memory; LoRA's optimizer state is smaller than full fine-tuning's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from memory import highest_memory
from random_trainers import SIZES, Arm, Size, make_batch, make_trainer, network_of, prepare

SLOWEST_FULL, FASTEST_FROZEN = 1.05, 1.5
CHECKED_STEPS = 3

STOCK, STOCK_4, FULL = "stock `nnUNetTrainer`", "stock, batch 4", "`default`"
FROZEN, LORA = "`frozen_encoder`", "`lora`"
LIMITED = (STOCK, FULL, FROZEN, LORA)


def arms_of(size: Size, device: str) -> dict[str, Arm]:
    """The arms by the names they have in the table; the order is that of a round."""
    # on the CPU fp16 is single precision, and so the same as off: the difference of the two arms is noise
    precisions = [p for p in ("fp16", "bf16", "off") if p != size.precision]
    levers = [
        "ema=0.999", "gradient_checkpointing=true", "channels_last=true", *(f"precision={p}" for p in precisions),
        f"deep_supervision={str(not size.deep_supervision).lower()}",
    ]  # fmt: skip
    return {
        STOCK: Arm(None),
        FULL: Arm(),
        FROZEN: Arm("frozen_encoder"),
        LORA: Arm("lora"),
        "`gradual_unfreezing`, first phase": Arm("gradual_unfreezing"),
        "`layer_decay`, `accumulation=1`": Arm("layer_decay", ("accumulation=1",)),
        STOCK_4: Arm(None, batch_size=4),
        "`accumulation=2`": Arm(overrides=("accumulation=2",)),
        "`accumulation=2`, batch Dice": Arm(overrides=("accumulation=2",), batch_dice=True),
        **{f"`{lever}`": Arm(overrides=(lever,)) for lever in levers},
    }


@dataclass(frozen=True)
class Measurement:
    """Of one process: seconds of a step, bytes, and the number of parameters that train."""

    seconds: float
    peak: float
    graph: float
    optimizer: float
    trainable: float


def measure(arm: Arm, size: Size, device: str, steps: int, folder: Path) -> Measurement:
    """Train some steps in this process."""
    trainer = make_trainer(arm, size, device, folder)
    batch = make_batch(trainer, arm, size)
    trainer.dataloader_train = itertools.repeat(batch)  # where accumulation takes more from
    highest = highest_memory(device)
    for _ in range(size.warm_up):
        trainer.train_step(batch)
    if device == "cuda":  # leave out what cuDNN tries while it chooses its kernels
        torch.cuda.reset_peak_memory_stats()
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = []
    for _ in range(steps):
        _wait_for(device)
        started = clock()
        trainer.train_step(batch)
        _wait_for(device)
        seconds.append(clock() - started)
    peak = highest()
    states = [v for state in trainer.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return Measurement(
        seconds=statistics.median(seconds),
        peak=peak,
        graph=kept_by_autograd(trainer, batch) if device == "cpu" else 0,
        optimizer=sum(v.numel() * v.element_size() for v in states),
        trainable=sum(p.numel() for p in {id(p): p for p in trainer.network.parameters() if p.requires_grad}.values()),
    )


def kept_by_autograd(trainer: Any, batch: dict[str, Any]) -> int:
    """The most bytes that a step's graph keeps at a time; parameters do not count, and shared storage counts once."""
    own = {p.untyped_storage().data_ptr() for p in trainer.network.parameters()}
    holders: dict[int, int] = {}
    live = highest = 0

    class Kept:
        """What autograd holds in a tensor's place, as long as it holds it."""

        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal live, highest
            self.tensor = tensor.detach()
            storage = tensor.untyped_storage()
            self.place, self.size = storage.data_ptr(), storage.nbytes()
            holders[self.place] = holders.get(self.place, 0) + 1
            if holders[self.place] == 1 and self.place not in own:
                live += self.size
                highest = max(highest, live)

        def __del__(self) -> None:
            nonlocal live
            holders[self.place] -= 1
            if not holders[self.place] and self.place not in own:
                live -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        trainer.train_step(batch)
    return highest


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def losses_side_by_side(size: Size, device: str, folder: Path) -> list[list[float]]:
    """Stock's losses, then ours, of the first steps from the same weights, with the same batch and learning rate."""
    trainers = [make_trainer(Arm(recipe), size, device, folder) for recipe in (None, "default")]
    networks = [getattr(trainer.network, "_orig_mod", trainer.network) for trainer in trainers]
    networks[0].load_state_dict(networks[1].state_dict())
    losses = []
    for trainer in trainers:
        for group in trainer.optimizer.param_groups:
            group["lr"] = 1e-2
        batch = make_batch(trainer, Arm(), size)
        losses.append([float(trainer.train_step(batch)["loss"]) for _ in range(CHECKED_STEPS)])
    return losses


def flops_of_steps(size: Size) -> tuple[float, float]:
    """The encoder's share of a forward pass, and how many times the arithmetic of a frozen encoder's step a full one's
    is. Convolutions alone, counted by torch without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network: Any = network_of(size)
        data = torch.empty(2, 1, *[size.patch] * 3)

    def flops_of(work: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return int(counter.get_total_flops())

    def step() -> None:
        output = network(data)
        sum(o.sum() for o in (output if isinstance(output, list) else [output])).backward()

    share = flops_of(lambda: network.encoder(data)) / flops_of(lambda: network(data))
    full = flops_of(step)
    network.encoder.requires_grad_(False)
    return share, full / flops_of(step)


def in_a_process(name: str, args: argparse.Namespace, folder: Path) -> Any:
    """What the script prints last for one arm, or the check, in a process of its own."""
    folders = {key: str(folder / key) for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    env = {**os.environ, **folders, "nnUNet_n_proc_DA": "0"}
    if args.device == "cpu":
        env |= {"nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    options = ["--device", args.device, "--size", args.size, "--steps", str(args.steps)]
    command = [sys.executable, __file__, *options, "--measure", name, "--folder", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    if run.returncode:
        sys.exit(f"{name}:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Print a table, and whether the limits hold."""
    args = _arguments()
    size = SIZES[args.size]
    arms = arms_of(size, args.device)
    if args.measure is not None:
        if args.device == "cuda":  # as nnU-Net's command
            torch.set_num_threads(1)
            torch.backends.cudnn.benchmark = True
        if args.measure == "check":
            print(json.dumps(losses_side_by_side(size, args.device, args.folder)))
        else:
            print(json.dumps(asdict(measure(arms[args.measure], size, args.device, args.steps, args.folder))))
        return

    rounds: list[dict[str, Measurement]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, size)
        losses = in_a_process("check", args, folder)
        for index in range(args.repeats):
            order = list(arms) if index % 2 == 0 else LIMITED[::-1]
            rounds.append({name: Measurement(**in_a_process(name, args, folder)) for name in order})
            print(f"round {index + 1} of {args.repeats} done", file=sys.stderr)
    _print_table(list(arms), rounds, args.device)
    for name, s in SIZES.items():
        share, ratio = flops_of_steps(s)
        print(f"{name}: {share:.0%} of the forward pass is the encoder's; by arithmetic alone, ", end="")
        print(f"a frozen encoder makes a step {ratio:.2f} times as fast")
    print(size.published)
    sys.exit(0 if _holds(rounds, losses, args.device) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default=None, help="full on CUDA, small on the CPU")
    parser.add_argument("--steps", type=int, default=None, help="measured steps in a process (small 5, full 20)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one arm, or the check, in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.size = args.size or ("full" if args.device == "cuda" else "small")
    args.steps = args.steps or SIZES[args.size].steps
    if args.size == "full" and args.device == "cpu":
        parser.error("--size full takes a GPU: stock nnU-Net has no bf16 on the CPU")
    return args


def _median(rounds: list[dict[str, Measurement]], key: str, name: str, beside: str | None = None) -> float:
    """What an arm needs, or how many times what another one needs in the same round; the median of the rounds."""
    values = [
        getattr(measured[name], key) / (getattr(measured[beside], key) if beside else 1)
        for measured in rounds
        if name in measured
    ]
    return statistics.median(values)


def _print_table(names: list[str], rounds: list[dict[str, Measurement]], device: str) -> None:
    print("\n| | step | ratio | peak | graph | optimizer | trainable |\n|---|---|---|---|---|---|---|")
    for name in names:
        ratio = _median(rounds, "seconds", name, STOCK)
        graph = f"{_median(rounds, 'graph', name) / 1e6:.1f} MB" if device == "cpu" else "-"
        highest = _median(rounds, "peak", name)
        peak = f"{highest / 1e6:.0f} MB" if device == "cpu" else f"{highest / 2**30:.1f} GiB"
        print(
            f"| {name} | {_median(rounds, 'seconds', name):.3f} s | {ratio:.2f} | {peak} | {graph} "
            f"| {_median(rounds, 'optimizer', name) / 1e6:.1f} MB | {rounds[0][name].trainable / 1e6:.2f} M |"
        )
    print()


def _holds(rounds: list[dict[str, Measurement]], losses: list[list[float]], device: str) -> bool:
    """Print what must hold and whether it does."""
    difference = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    # kernels of CUDA add in varying order, and half precision shows it
    largest = 1e-6 if device == "cpu" else 1e-2
    slowness = _median(rounds, "seconds", FULL, STOCK)
    gain = _median(rounds, "seconds", FULL, FROZEN)
    less = {
        "frozen encoder's peak memory": _median(rounds, "peak", FROZEN, FULL),
        "LoRA's optimizer state": _median(rounds, "optimizer", LORA, FULL),
    }
    if device == "cpu":
        less["frozen encoder's graph"] = _median(rounds, "graph", FROZEN, FULL)
    limits = {
        f"losses of {CHECKED_STEPS} steps as stock's (largest relative difference {difference:.1e}; "
        f"{', '.join(f'{loss:.6f}' for loss in losses[1])})": difference <= largest,
        f"full fine-tuning at most {SLOWEST_FULL} times stock's time ({slowness:.3f})": slowness <= SLOWEST_FULL,
        f"frozen encoder at least {FASTEST_FROZEN} times as fast as full ({gain:.2f})": gain >= FASTEST_FROZEN,
        **{f"{name} below full fine-tuning's ({share:.2f} of it)": share < 1 for name, share in less.items()},
    }
    for text, kept in limits.items():
        print(f"{'holds' if kept else 'DOES NOT HOLD'}: {text}")
    return all(limits.values())


if __name__ == "__main__":
    main()
