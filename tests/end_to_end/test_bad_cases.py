"""A dataset in which most cases are bad: each is named with its fault, and the others are made."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.commands import run_command
from tests.conftest import Workplace, copy_of
from tests.end_to_end.scans import ARGUMENTS, IDENTIFIER, NAME
from tests.preprocessing.test_cases import change_voxels


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def test_every_bad_case_is_named_and_the_others_are_made(workplace: Workplace, tmp_path: Path) -> None:
    place = copy_of(workplace, tmp_path)
    for folder in place.preprocessed.glob("Spacing__*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    images, labels = place.raw / "imagesTr", place.raw / "labelsTr"
    cut_off(images / "MNI_001_0000.nii.gz")
    flip_a_byte(images / "MNI_002_0000.nii.gz")
    (images / "MNI_003_0000.nii.gz").write_bytes(b"<!DOCTYPE html><html>log in</html>")
    change_voxels(labels / "MNI_004.nii.gz", lambda voxels: voxels[1:])
    change_voxels(labels / "MNI_005.nii.gz", lambda voxels: np.where(voxels == 2, 9, voxels))
    result = run_command(NAME, *ARGUMENTS, env=place.env, check=False)

    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "5 cases failed: MNI_001, MNI_002, MNI_003, MNI_004, MNI_005" in result.stderr
    faults = {
        "MNI_001": "MNI_001_0000.nii.gz is damaged",
        "MNI_002": "MNI_002_0000.nii.gz is damaged",
        "MNI_003": "MNI_003_0000.nii.gz is damaged",
        "MNI_004": "the image has 48 x 48 x 48 voxels, its label 47 x 48 x 48",
        "MNI_005": "its label has values that are not in dataset.json: 9 ",
    }
    for case, fault in faults.items():
        assert f"{case} failed: {fault}" in result.stdout
    assert "1 cases preprocessed, 0 were there already, 5 failed" in result.stdout
    made = {p.name for p in (place.preprocessed / IDENTIFIER).iterdir()}
    assert made == {"MNI_000.b2nd", "MNI_000_seg.b2nd", "MNI_000.pkl"}


def test_a_damaged_image_is_named_also_where_nnunet_has_yet_to_plan(workplace: Workplace, tmp_path: Path) -> None:
    place = copy_of(workplace, tmp_path)
    shutil.rmtree(place.preprocessed)
    (place.raw / "imagesTr" / "MNI_003_0000.nii.gz").write_bytes(b"<!DOCTYPE html><html>log in</html>")
    result = run_command(NAME, *ARGUMENTS, env=place.env, check=False)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "error: " in line]
    assert "case MNI_003: MNI_003_0000.nii.gz is damaged: Not a gzipped file" in line
    assert f"nnU-Net could not plan {place.dataset}: RuntimeError" in line
    assert "Traceback" not in result.stderr
    assert not list(place.preprocessed.glob("ptPlans*"))
