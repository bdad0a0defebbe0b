"""Full-size pre-trained weights from a file into a network: this package against `torch.load` and `load_state_dict`.

    python benchmarks/transfer.py [--repeats N] [--keep FOLDER]

Writes a ResEnc-L (390 MiB) and a Primus-M (674 MiB) checkpoint with random weights. Then, in turn and every time in a
process of its own, the network that stock nnU-Net builds for it is loaded in three ways:

* `torch.load` (`weights_only=True`), then `load_state_dict(strict=False)` with the tensors whose shapes agree, as
  nnU-Net's `-pretrained_weights` does: no report, nothing checked;
* as `nnUNetv2_train_pretrained` does it: the file mapped, every tensor matched, checked for NaN, loaded and verified;
* the same without the verification.

The time is that from the file to the loaded network, imports done and the network built; of the processes the fastest
counts, which other programs on the machine disturb least. Memory is resident memory at its highest, the median of the
processes: above what the process had before loading (`extra`), and above what it had before the network was built
(`peak`), beside the network's own size. The files have just been written and come from the page cache for all. Ratios
are `torch.load`'s number divided by this package's: above 1 this package needs less.

The script ends with code 1 if this package's peak is above the network, the file's largest tensor and 100 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FILES = {"ResEnc-L": "RESENC_L", "Primus-M": "PRIMUS_M"}
PLAIN, VERIFIED, UNVERIFIED = "plain", "verified", "unverified"
WAYS = {PLAIN: "torch.load", VERIFIED: "this package", UNVERIFIED: "not verified"}
ALLOWANCE = 100.0
"""Megabytes beside the network and the largest tensor."""

MEASURE = """
import json, pydoc, sys, time
from pathlib import Path
import numpy, torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2_ext.architectures.presets import downstream_architecture
from nnunetv2_ext.checkpoints.adaptation_plan import AdaptationPlan
from nnunetv2_ext.checkpoints.pages import page_releaser
from nnunetv2_ext.checkpoints.reading import read_network_weights
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.transfer.loading import load_and_verify
from nnunetv2_ext.transfer.matching import PartKeys
from nnunetv2_ext.transfer.pretrained import plan_transfer
from tests.synthesis import read_manifest

way, path, manifest = sys.argv[1:]
plan = AdaptationPlan.from_dict(read_manifest(Path(manifest))["nnssl_adaptation_plan"])
patch_size = plan.recommended_downstream_patchsize
architecture = downstream_architecture(plan.architecture_name, plan.architecture_kwargs, patch_size)
pydoc.locate(architecture["network_class_name"])

def megabytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) * 1024 / 1e6

def forget_the_highest():
    Path("/proc/self/clear_refs").write_text("5")

def load_plainly():
    weights = torch.load(path, map_location="cpu", weights_only=True)["network_weights"]
    own = network.state_dict()
    network.load_state_dict({k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}, strict=False)

def planned():
    keys = PartKeys(plan.key_to_encoder, plan.key_to_stem, plan.keys_to_in_proj, plan.key_to_lpe)
    weights = read_network_weights(resolve_checkpoint_source(path))
    patches = {"pretrain_patch_size": plan.pretrain_patch_size, "patch_size": patch_size}
    return plan_transfer(network, weights, keys, **patches)

def load_verified():
    transfer = planned()
    load_and_verify(network, transfer, page_releaser(path))

def load_unverified():
    transfer, own = planned(), network.state_dict()
    release = page_releaser(path)
    for name, value in transfer.values():
        own[name].copy_(value)
        del value
        release()

forget_the_highest()
before_network = megabytes("VmRSS")
network = get_network_from_plans(
    architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
    1, 2, allow_init=True, deep_supervision=False,
)
built = megabytes("VmHWM")
forget_the_highest()
before = megabytes("VmRSS")
started = time.perf_counter()
{"plain": load_plainly, "verified": load_verified, "unverified": load_unverified}[way]()
seconds = time.perf_counter() - started
highest = megabytes("VmHWM")
print(json.dumps({
    "seconds": seconds,
    "extra": highest - before,
    "peak": max(built, highest) - before_network,
    "build": built - before_network,
    "network": sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6,
}))
"""


def measure(way: str, path: Path, manifest: Path) -> dict[str, float]:
    """Load a file the `plain`, `verified` or `unverified` way in a new process: seconds, and megabytes as above.

    `network` is the size of its parameters, `build` what building it took at its highest.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, way, str(path), str(manifest)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return json.loads(run.stdout.splitlines()[-1])


def largest_tensor(manifest: Path) -> float:
    """Megabytes of the largest tensor that a manifest names."""
    from math import prod

    import torch

    from tests import synthesis

    weights = synthesis.read_manifest(manifest)["network_weights"].values()
    return max(prod(shape) * getattr(torch, dtype).itemsize for dtype, shape in weights) / 1e6


def main() -> None:
    """Print the ratios and then one line per way, for each file, and whether the limit holds."""
    from tests import synthesis

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes per file and way (5)")
    parser.add_argument("--keep", type=Path, default=None, help="folder to keep the synthesised files in")
    arguments = parser.parse_args()

    kept = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, manifest_name in FILES.items():
            manifest = getattr(synthesis, manifest_name)
            path = synthesis.synthesise(manifest, folder / f"{name}.pth")
            kept &= _compare(name, path, manifest, arguments.repeats)
    sys.exit(0 if kept else 1)


def _compare(name: str, path: Path, manifest: Path, repeats: int) -> bool:
    """Print what the ways need for one file; whether the limit holds."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            runs[way].append(measure(way, path, manifest))
    result = {way: {key: median(run[key] for run in rs) for key in rs[0]} for way, rs in runs.items()}
    for way, rs in runs.items():
        result[way]["seconds"] = min(run["seconds"] for run in rs)
    ours, plain = result[VERIFIED], result[PLAIN]
    largest = largest_tensor(manifest)
    print(f"{name}: file {path.stat().st_size / 1e6:.0f} MB, network {ours['network']:.0f} MB, ", end="")
    print(f"largest tensor {largest:.0f} MB; building the network takes {ours['build']:.0f} MB")
    print(f"  {'':<14} {'time':>9} {'extra':>10} {'peak':>10}")
    print(f"  {'ratio':<14}" + "".join(f" {plain[k] / ours[k]:{w}.1f} x" for k, w in _COLUMNS.items()))
    for way, label in WAYS.items():
        r = result[way]
        print(f"  {label:<14} {r['seconds']:7.3f} s {r['extra']:7.0f} MB {r['peak']:7.0f} MB")
    share = 1 - result[UNVERIFIED]["seconds"] / ours["seconds"]
    print(f"  verification is {share:.0%} of this package's time")
    limit = ours["network"] + largest + ALLOWANCE
    worst = max(run["peak"] for run in runs[VERIFIED])
    holds = worst <= limit
    print(f"  peak at most network + largest tensor + {ALLOWANCE:.0f} MB = {limit:.0f} MB: ", end="")
    print(f"{'holds' if holds else 'DOES NOT HOLD'} ({worst:.0f} MB in the worst of {repeats} runs)")
    return holds


_COLUMNS = {"seconds": 7, "extra": 8, "peak": 8}


if __name__ == "__main__":
    main()
