"""The preprocessing command against stock nnU-Net's: time, memory, and whether the results are the same.

    python benchmarks/preprocessing.py [--labels N ...] [--cases N] [--repeats N] [--crop Z Y X] [--keep FOLDER]

Makes subjects from nilearn's MNI template: 189 x 233 x 197 voxels of 1 mm, two channels, brought to 0.8 mm, so that all
are upsampled by 1.25 along every axis. Once with 3 labels (background, grey and white matter) and once with 117: both
tissues cut into parcels, each the voxels nearest to one of 58 random voxels of the tissue. Then, in turn,

    nnUNetv2_preprocess_like_nnssl -d ID -n bench -pc ... -am fixed -os 0.8 0.8 0.8 -ps 128 128 128 -np 2 --overwrite_pp
    nnUNetv2_preprocess            -d ID -plans_name ptPlans_bench_... -c 3d_fullres -np 2

run as a user runs them, on the same plan, the same cases and the same two cores, each into folders of its own. What is
timed is the whole command, which for the first one includes planning. Both replace all cases every time.

Start-up is what both take with the same plan for two cases of 24 x 24 x 24 voxels, one per worker: imports, plans,
worker processes and the end, and next to no work. It is measured so and not as the intercept of a line through few and
many cases, since the noise of minutes of work on a shared machine would hide a difference of seconds. The time per case
is what is left of the whole command without start-up, divided by the cases; it is wall-clock time with two cases at
work at once, so twice as much is spent on each. Times are the fastest of all repeats, start-up twice in each.

Memory is read from /proc while the commands run. "Worker" is the highest resident memory (VmHWM) of any process that
the command starts; workers of this package are forked and share with each other the libraries that were imported once,
which VmHWM counts for each. "All" counts what is shared once: the sum of all processes' proportional memory (PSS), the
command's own included, at the highest of all looks half a second apart.

The script ends with code 1 if a promise is broken: per case at least 5 times as fast with 3 labels and 20 times with
117, start-up no longer, memory of a worker no higher, images within 1e-4, and labels different in fewer than 1 of
100,000 voxels. The promises on speed are for full-size scans: `--crop` is for trying the script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
CHECKPOINT = ROOT / "nnunetv2_ext" / "data" / "tiny_resenc"

OURS, STOCK = "ours", "stock"
WAYS = {STOCK: "nnU-Net", OURS: "this package"}
FULL, SMALL = "full", "small"
SMALL_CROP = (24, 24, 24)
PLAN = "ptPlans_bench_Spacing_0.80_0.80_0.80_Norm_Z_Z"
CASES_FOLDER = "Spacing__0.80_0.80_0.80___Norm__Z_Z"
PATCH = ("-ps", "128", "128", "128")  # as full-size networks have, which the chunks of the files are made for
CORES = 2

LEAST_SPEED = {3: 5.0, 117: 20.0}
LARGEST_IMAGE_DIFFERENCE = 1e-4
LARGEST_LABEL_SHARE = 1e-5

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Run:
    """What a command took: seconds, megabytes of its largest worker and of all its processes together."""

    seconds: float
    worker: float
    together: float


@dataclass(frozen=True)
class Measured:
    """What one way took: seconds of the whole command, of start-up and per case, and megabytes as above.

    `images` and `labels` are megabytes of all preprocessed cases on the disk.
    """

    whole: float
    start_up: float
    per_case: float
    worker: float
    together: float
    images: float
    labels: float


_COLUMNS = {
    "whole": ("whole", "8.1f", "s"),
    "start_up": ("start-up", "8.1f", "s"),
    "per_case": ("per case", "8.2f", "s"),
    "worker": ("worker", "8.0f", "MB"),
    "together": ("all", "8.0f", "MB"),
    "images": ("images", "8.1f", "MB"),
    "labels": ("labels", "8.1f", "MB"),
}


def main() -> None:
    """Print, for each number of labels, the ratios, one line per way, and whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[3, 117], help="with background (3 117)")
    parser.add_argument("--cases", type=int, default=4, help="scans, an even number of them (4)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every command (3)")
    parser.add_argument("--crop", type=int, nargs=3, default=None, metavar="N", help="smaller scans, Z Y X in voxels")
    parser.add_argument("--keep", type=Path, default=None, help="folder to keep scans and results in")
    arguments = parser.parse_args()
    if arguments.cases < 2 or arguments.cases % 2:
        parser.error("--cases must be even, so that both workers have the same to do")

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    kept = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        scans = _make_scans(folder, arguments.cases, arguments.crop and tuple(arguments.crop))
        for number in arguments.labels:
            bench = Bench(folder / f"{number}_labels", number, arguments.cases, scans)
            bench.prepare()
            kept &= _compare(bench, arguments.repeats)
    sys.exit(0 if kept else 1)


@dataclass(frozen=True)
class Bench:
    """A dataset at full size and one of small cases, and folders for the results of both ways.

    Attributes:
        folder: of its own; what an earlier run left in it is removed.
        labels: how many, with the background.
        cases: of the full-size dataset.
        scans: of each size, a raw dataset with 3 labels.
    """

    folder: Path
    labels: int
    cases: int
    scans: Mapping[str, Path]

    @property
    def dataset(self) -> str:
        """The dataset's full name."""
        return f"Dataset{self.labels:03d}_MNI"

    def prepare(self) -> None:
        """Make the datasets, plan once, and give every way and size the same plan."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for size, scans in self.scans.items():
            raw = self.folder / size / "raw" / self.dataset
            shutil.copytree(scans, raw)
            if self.labels != 3:
                _parcellate_all(raw, self.labels)
        planned = self.folder / FULL / OURS
        planned.mkdir()
        _run(self.command(OURS, planning_only=True), self.environment(FULL, OURS))
        for size, way in ((FULL, STOCK), (SMALL, OURS), (SMALL, STOCK)):
            shutil.copytree(planned, self.folder / size / way)

    def command(self, way: str, *, planning_only: bool = False) -> Command:
        """As a user types it."""
        if way == STOCK:
            plan = ("-plans_name", PLAN, "-c", "3d_fullres", "-np", str(CORES), "--no_pbar")
            return (SCRIPTS / "nnUNetv2_preprocess", "-d", str(self.labels), *plan)
        source = ("-n", "bench", "-pc", CHECKPOINT, "-am", "fixed", "-os", "0.8", "0.8", "0.8", *PATCH)
        flags = ("-np", str(CORES), "--no_pp" if planning_only else "--overwrite_pp", "--no_pbar")
        return (SCRIPTS / "nnUNetv2_preprocess_like_nnssl", "-d", str(self.labels), *source, *flags)

    def environment(self, size: str, way: str) -> dict[str, str]:
        """nnU-Net's folders for a way and a size."""
        place = self.folder / size
        folders = {"raw": place / "raw", "preprocessed": place / way, "results": place / "results"}
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")},
            **{f"nnUNet_{name}": str(path) for name, path in folders.items()},
            "nnUNet_def_n_proc": "1",
            "OMP_WAIT_POLICY": "passive",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def cases_folder(self, way: str) -> Path:
        """Where the preprocessed full-size cases lie."""
        return self.folder / FULL / way / self.dataset / CASES_FOLDER


def _make_scans(folder: Path, cases: int, crop: tuple[int, int, int] | None) -> dict[str, Path]:
    """A raw dataset of each size, unless an earlier run has left them."""
    from nnunetv2_ext.datasets.mni import make_mni_dataset

    scans = {}
    for size, number, shape in ((FULL, cases, crop), (SMALL, CORES, SMALL_CROP)):
        voxels = "x".join(map(str, shape or ("whole",)))
        scans[size] = folder / "scans" / f"{number}_of_{voxels}"
        if not scans[size].is_dir():
            make_mni_dataset(
                scans[size],
                num_subjects=number,
                num_test_subjects=0,
                crop=shape,
                spacings=((1.0, 1.0, 1.0),),
                num_channels=2,
            )
    return scans


def _parcellate_all(folder: Path, labels: int) -> None:
    """Cut the tissues of a raw dataset into parcels, so that there are `labels` labels with the background."""
    for path in sorted((folder / "labelsTr").iterdir()):
        _parcellate(path, labels)
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"] = {"background": 0, **{f"parcel_{label}": label for label in range(1, labels)}}
    (folder / "dataset.json").write_text(json.dumps(description, indent=4))


def _parcellate(path: Path, labels: int) -> None:
    import numpy as np
    import SimpleITK as sitk
    from scipy.spatial import cKDTree

    image = sitk.ReadImage(str(path))
    tissues = sitk.GetArrayFromImage(image)
    parcels = np.zeros(tissues.shape, np.uint8)
    random = np.random.default_rng(labels)
    numbers = np.array_split(np.arange(1, labels), 2)  # of grey and of white matter
    for tissue, names in enumerate(numbers, start=1):
        voxels = np.argwhere(tissues == tissue)
        seeds = voxels[random.choice(len(voxels), len(names), replace=False)]
        parcels[tuple(voxels.T)] = names[cKDTree(seeds).query(voxels)[1]]
    result = sitk.GetImageFromArray(parcels)
    result.CopyInformation(image)
    sitk.WriteImage(result, str(path))


def _compare(bench: Bench, repeats: int) -> bool:
    """Run both ways in turn and print what they took; whether the promises hold."""
    runs: dict[tuple[str, str], list[Run]] = {(size, way): [] for size in (SMALL, FULL) for way in WAYS}
    for _ in range(repeats):
        for size in (SMALL, SMALL, FULL):  # start-up twice, since it is short and subtracted from what is long
            for way in WAYS:
                runs[size, way].append(_run(bench.command(way), bench.environment(size, way)))
    results = {way: _summary(bench, way, runs[SMALL, way], runs[FULL, way]) for way in WAYS}
    ours, stock = results[OURS], results[STOCK]
    images, different, voxels, shapes = _differences(bench)

    print(f"{bench.labels} labels, {bench.cases} cases of {shapes}")
    print(f"  {'':<13}" + "".join(f" {title:>11}" for title, _, _ in _COLUMNS.values()))
    ratios = {name: getattr(stock, name) / getattr(ours, name) for name in _COLUMNS}
    print(f"  {'ratio':<13}" + "".join(f" {ratio:9.1f} x" for ratio in ratios.values()))
    for way, label in WAYS.items():
        shown = (f" {getattr(results[way], name):{form}} {unit:<2}" for name, (_, form, unit) in _COLUMNS.items())
        print(f"  {label:<13}" + "".join(shown))
    pairs = [s.seconds / o.seconds for s, o in zip(runs[FULL, STOCK], runs[FULL, OURS], strict=True)]
    print(f"  the whole command, of {repeats} pairs of runs: {min(pairs):.1f} to {max(pairs):.1f} times as fast")
    print(f"  largest difference of images {images:.1e}, {different} of {voxels:,} labels differ")

    least = LEAST_SPEED.get(bench.labels, 1.0)
    promises = {
        f"per case at least {least:g} times as fast": ratios["per_case"] >= least,
        "start-up no longer": ours.start_up <= stock.start_up,
        "memory of a worker no higher": ours.worker <= stock.worker,
        f"images within {LARGEST_IMAGE_DIFFERENCE:g}": images <= LARGEST_IMAGE_DIFFERENCE,
        "labels different in fewer than 1 of 100,000 voxels": different < LARGEST_LABEL_SHARE * voxels,
    }
    for promise, holds in promises.items():
        print(f"  {promise}: {'holds' if holds else 'DOES NOT HOLD'}")
    return all(promises.values())


def _summary(bench: Bench, way: str, small: Sequence[Run], full: Sequence[Run]) -> Measured:
    whole, start_up = (min(run.seconds for run in runs) for runs in (full, small))
    files = list(bench.cases_folder(way).glob("*.b2nd"))
    labels = sum(path.stat().st_size for path in files if path.name.endswith("_seg.b2nd"))
    return Measured(
        whole=whole,
        start_up=start_up,
        per_case=(whole - start_up) / bench.cases,
        worker=max(run.worker for run in full),
        together=max(run.together for run in full),
        images=(sum(path.stat().st_size for path in files) - labels) / 1e6,
        labels=labels / 1e6,
    )


def _differences(bench: Bench) -> tuple[float, int, int, str]:
    """Between both ways' cases: of images the largest, of labels how many of how many; and the shapes, in words."""
    import blosc2
    import numpy as np

    largest, different, voxels, shapes = 0.0, 0, 0, ""
    for name in sorted(path.name for path in bench.cases_folder(STOCK).glob("*.b2nd")):
        theirs, mine = (blosc2.open(str(bench.cases_folder(way) / name), mode="r")[:] for way in (STOCK, OURS))
        if theirs.shape != mine.shape:
            sys.exit(f"{name} has the shape {theirs.shape} of nnU-Net and {mine.shape} of this package")
        if name.endswith("_seg.b2nd"):
            different += int(np.count_nonzero(theirs != mine))
            voxels += theirs.size
        else:
            largest = max(largest, float(np.abs(theirs - mine).max()))
            shapes = f"{len(theirs)} channels, the last {' x '.join(map(str, theirs.shape[1:]))} voxels in the end"
    return largest, different, voxels, shapes


def _run(command: Command, environment: Mapping[str, str]) -> Run:
    """Run a command while looking at the memory of its processes."""
    highest: dict[int, float] = {}
    together = 0.0
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], env=environment, stdout=output, stderr=output)
        looks = 0
        while True:
            try:
                code = process.wait(_SECONDS_BETWEEN_LOOKS)
                break
            except subprocess.TimeoutExpired:
                family = _family(process.pid)
            for pid in family:
                highest[pid] = max(highest.get(pid, 0.0), _megabytes(pid, "status", "VmHWM"))
            if looks % _LOOKS_PER_SUM == 0:
                together = max(together, sum(_megabytes(pid, "smaps_rollup", "Pss") for pid in family))
            looks += 1
        seconds = time.perf_counter() - started
        if code:
            output.seek(0)
            sys.exit(f"{' '.join(map(str, command))}\nexit {code}\n{output.read().decode(errors='replace')}")
    highest.pop(process.pid, None)
    return Run(seconds, max(highest.values(), default=0.0), together)


_SECONDS_BETWEEN_LOOKS = 0.25
_LOOKS_PER_SUM = 2


def _family(pid: int) -> set[int]:
    """A process, its children, their children and so on."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    family, found = {pid}, {pid}
    while found := {child for child, parent in parents.items() if parent in found}:
        family |= found
    return family


def _parent(process: Path) -> int:
    fields = _text(process / "stat").rpartition(")")[2].split()  # a name may hold anything
    return int(fields[1]) if fields else 0


def _megabytes(pid: int, file: str, key: str) -> float:
    """An entry of a file of a process in /proc; 0 where the process has ended."""
    lines = _text(Path(f"/proc/{pid}/{file}")).splitlines()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:")), 0.0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
