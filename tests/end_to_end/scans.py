"""Twelve scans large enough for a run to be met in their midst, and the command that preprocesses them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.commands import nnunet_environment, run_command
from tests.conftest import DATASET_ID, TINY_RESENC, Workplace
from tests.preprocessed_folders import assert_same_folder
from tests.processes import start

CASES = tuple(f"MNI_{number:03d}" for number in range(12))
IDENTIFIER = "Spacing__1.00_1.00_1.00___Norm__Z"
NAME = "nnUNetv2_preprocess_like_nnssl"
ARGUMENTS = ("-d", DATASET_ID, "-n", "MAE", "-pc", TINY_RESENC, "-am", "like_pretrained", "-np", 2, "--no_pbar")


def larger_scans(small: Workplace, root: Path) -> Workplace:
    """Cases eight times as large, side by side copies of `small`'s, with its plan."""
    place = Workplace(root, {**nnunet_environment(root), "XDG_CACHE_HOME": small.env["XDG_CACHE_HOME"]})
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (place.raw / folder).mkdir(parents=True)
        sources = sorted((small.raw / folder).iterdir())
        for number, case in enumerate(CASES):
            image = sitk.ReadImage(str(sources[number % len(sources)]))
            voxels = np.roll(np.tile(sitk.GetArrayFromImage(image), (2, 2, 2)), number, axis=0)
            larger = sitk.GetImageFromArray(voxels)
            larger.SetSpacing(image.GetSpacing())
            sitk.WriteImage(larger, str(place.raw / folder / f"{case}{ending}"), useCompression=True)
    shutil.copy(small.raw / "dataset.json", place.raw)
    _copy_plan(small.preprocessed, place.preprocessed)
    return place


def _copy_plan(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copy(source / name, target)


def unprocessed(scans: Workplace, root: Path) -> Workplace:
    """The same raw data and plan, with nothing preprocessed yet."""
    env = {**nnunet_environment(root), **{k: scans.env[k] for k in ("nnUNet_raw", "XDG_CACHE_HOME")}}
    place = Workplace(root, env)
    _copy_plan(scans.preprocessed, place.preprocessed)
    return place


def cases_of(place: Workplace) -> Path:
    return place.preprocessed / IDENTIFIER


def finished_in(place: Workplace) -> set[str]:
    """Cases whose image, which comes last, is there."""
    return {p.name.removesuffix(".b2nd") for p in cases_of(place).glob("*.b2nd")} & set(CASES)


def preprocess_scans(place: Workplace, *options: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_command(NAME, *ARGUMENTS, *options, env=place.env, check=check)


def start_preprocessing(place: Workplace, *options: object, log: str = "log") -> subprocess.Popen[str]:
    """In a session of its own; output goes to a file below `place`."""
    return start(NAME, *ARGUMENTS, *options, env=place.env, log=place.root / log)


def assert_same_result(ours: Workplace, theirs: Workplace) -> None:
    """Everything in the datasets' preprocessed folders: cases, records, settings, labels and plans."""
    assert_same_folder(ours.preprocessed, theirs.preprocessed)
