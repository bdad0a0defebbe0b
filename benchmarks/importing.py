"""An import of 200 cases beside a plain copy loop of the same files.

    python benchmarks/importing.py [--cases N] [--shape Z Y X] [--channels N] [--repeats N] [--processes N]

The source is a table of NIfTI images (int16, noise, compressed) and label maps (0 to 2): eight cases, each of which
lies there many times. The loop is `shutil.copyfile` over the same files, in one process, followed by fsync of each as
the import does; the command is `nnUNetv2_import_dataset csv` with everything that it checks, once with --copy and once
with --symlink, its start included. All take turns; ratios are of the medians. Ends with code 1 if copying or linking
takes more than 1.3 times as long as the loop.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.files import flush_to_disk

LIMIT = 1.3
_DISTINCT = 8


def make_source(folder: Path, num_cases: int, shape: tuple[int, ...], num_channels: int) -> Path:
    """A table with `num_cases` rows; the first `_DISTINCT` cases are made, the others are copies of theirs."""
    rng = np.random.default_rng(0)
    names = [*(f"image{channel}" for channel in range(num_channels)), "label"]
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        for index in range(num_cases):
            table.writerow([f"{name}_{index:03d}.nii.gz" for name in names])
            for name in names:
                path = folder / f"{name}_{index:03d}.nii.gz"
                if index >= _DISTINCT:
                    shutil.copyfile(folder / f"{name}_{index % _DISTINCT:03d}.nii.gz", path)
                    continue
                voxels = _organs(shape, rng) if name == "label" else rng.integers(0, 1200, shape).astype(np.int16)
                sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), True)
    return folder / "table.csv"


def _organs(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Two ellipsoids of a third of the field."""
    label = np.zeros(shape, np.uint8)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    for value in (1, 2):
        centre = rng.uniform(-0.5, 0.5, 3)
        label[sum(((axis - c) / 0.35) ** 2 for axis, c in zip(grid, centre, strict=True)) < 1] = value
    return label


def copy_loop(source: Path, target: Path) -> float:
    """Seconds of the plain loop."""
    begin = time.perf_counter()
    target.mkdir()
    for path in sorted(source.glob("*.nii.gz")):
        shutil.copyfile(path, target / path.name)
    for path in target.iterdir():
        flush_to_disk(path)
    return time.perf_counter() - begin


def import_table(table: Path, folder: Path, how: str, num_channels: int, processes: int) -> float:
    """Seconds of the command."""
    folders = {f"nnUNet_{v}": folder / v for v in ("raw", "preprocessed", "results")}
    for path in folders.values():
        path.mkdir(parents=True)
    environment = {**os.environ, **{variable: str(path) for variable, path in folders.items()}}
    begin = time.perf_counter()
    command = str(Path(sys.executable).parent / "nnUNetv2_import_dataset")
    subprocess.run(
        [command, "csv", str(table), "-d", "500", "-name", "Many", how, "-np", str(processes),
         "-images", *(f"image{channel}" for channel in range(num_channels))],
        env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 128, 128], help="voxels of a case")
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    times: dict[str, list[float]] = {"loop": [], "--copy": [], "--symlink": []}
    with tempfile.TemporaryDirectory() as root:
        source = Path(root) / "source"
        source.mkdir()
        table = make_source(source, args.cases, tuple(args.shape), args.channels)
        num_bytes = sum(path.stat().st_size for path in source.iterdir())
        for _ in range(args.repeats):
            for what, seconds in times.items():
                folder = Path(root) / "target"
                shutil.rmtree(folder, ignore_errors=True)
                os.sync()
                if what == "loop":
                    seconds.append(copy_loop(source, folder))
                else:
                    seconds.append(import_table(table, folder, what, args.channels, args.processes))
    loop = statistics.median(times["loop"])
    shape = " x ".join(map(str, args.shape))
    channels = f"{args.channels} channel{'s' if args.channels > 1 else ''}"
    print(f"{args.cases} cases of {shape}, {channels}, {num_bytes / 1e6:.0f} MB, {args.processes} processes\n")
    print("| | seconds | ratio |\n|---|---|---|")
    for what, seconds in times.items():
        print(f"| {what} | {statistics.median(seconds):.2f} | {statistics.median(seconds) / loop:.2f} |")
    if any(statistics.median(times[how]) > LIMIT * loop for how in ("--copy", "--symlink")):
        print(f"more than {LIMIT} times the loop")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
