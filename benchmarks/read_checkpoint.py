"""Reading a full-size checkpoint for planning: this package against reading the whole file.

    python benchmarks/read_checkpoint.py [--repeats N] [--keep FOLDER]

Writes a ResEnc-L (390 MiB) and a Primus-M (674 MiB) checkpoint with random weights, then opens each with
`torch.load(path, weights_only=True)` and with `read_checkpoint`, every time in a process of its own. The time is that
of the call alone (imports done), the memory is what the process' resident set grew by at its highest. The files have
just been written, so they come from the page cache for both.
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

MEASURE = """
import json, sys, time
from pathlib import Path
import numpy, torch
from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source

way, path = sys.argv[1:]

def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

before = kilobytes("VmRSS")
started = time.perf_counter()
if way == "whole":
    content = torch.load(path, map_location="cpu", weights_only=True)
    entries = len(content["network_weights"])
else:
    content = read_checkpoint(resolve_checkpoint_source(path))
    entries = len(content.network_weights)
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "megabytes": (kilobytes("VmHWM") - before) / 1000, "entries": entries}))
"""


def measure(way: str, path: Path) -> dict[str, float]:
    """Open a checkpoint the `whole` or the `lazy` way in a new process: seconds, extra megabytes, number of tensors."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, way, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Print one line per file and way, and the ratios."""
    from tests import synthesis

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes per file and way; the median counts (3)")
    parser.add_argument("--keep", type=Path, default=None, help="folder to keep the synthesised files in")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'file':<10} {'MiB':>5}   {'way':<16} {'time':>9} {'extra memory':>14}")
        for name, manifest in FILES.items():
            path = synthesis.synthesise(getattr(synthesis, manifest), folder / f"{name}.pth")
            size = path.stat().st_size / 2**20
            runs = {way: [measure(way, path) for _ in range(arguments.repeats)] for way in ("whole", "lazy")}
            result = {
                way: {key: median(run[key] for run in ways) for key in ("seconds", "megabytes")}
                for way, ways in runs.items()
            }
            for way, label in (("whole", "whole file"), ("lazy", "read_checkpoint")):
                seconds, megabytes = result[way]["seconds"], result[way]["megabytes"]
                print(f"{name:<10} {size:5.0f}   {label:<16} {seconds:7.3f} s {megabytes:11.1f} MB")
            faster, smaller = (result["whole"][key] / result["lazy"][key] for key in ("seconds", "megabytes"))
            print(f"{'':<10} {'':5}   {'ratio':<16} {faster:7.0f} x {smaller:11.0f} x")


if __name__ == "__main__":
    main()
