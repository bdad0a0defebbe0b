"""The demo touches nothing that is not its own, and its numbers are Dice. Its whole run is a slow test of packaging."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.cli import demo
from nnunetv2_ext.errors import UserError


def test_a_folder_with_anything_else_in_it_is_refused_in_one_line_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    command = [sys.executable, "-m", "nnunetv2_ext", "demo", "-o", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "holds something other than a demo" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_earlier_demo_is_removed_but_not_what_a_user_put_beside_it(tmp_path: Path) -> None:
    demo._start_over(tmp_path)
    (tmp_path / "nnUNet_results" / "DatasetX").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    demo._start_over(tmp_path)
    assert not (tmp_path / "nnUNet_results").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="-o"):
        demo._start_over(tmp_path / "file")


def test_a_command_that_fails_ends_the_demo_with_its_name_and_code() -> None:
    with pytest.raises(UserError, match=r"python.* failed with exit code 3"):
        demo._call([Path(sys.executable).name, "-c", "raise SystemExit(3)"], {}, {})


def test_a_command_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match="nnUNetv2_of_tomorrow is not installed"):
        demo._call(["nnUNetv2_of_tomorrow"], {}, {})


def test_single_process_augmentation_of_the_callers_reaches_no_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    show = [Path(sys.executable).name, "-c", "import os; print(os.environ.get('nnUNet_n_proc_DA', 'unset'))"]
    demo._call(show, {}, {})
    demo._call(show, {}, {"nnUNet_n_proc_DA": "0"})
    assert [line for line in capfd.readouterr().out.splitlines() if line in ("unset", "0")] == ["unset", "0"]


def test_dice_is_twice_the_overlap_over_the_sum_of_sizes(tmp_path: Path) -> None:
    truth = np.array([[[0, 1, 1, 1], [2, 2, 0, 0]]], dtype=np.uint8)
    found = np.array([[[1, 1, 1, 0], [2, 0, 0, 0]]], dtype=np.uint8)
    for name, array in (("truth", truth), ("found", found)):
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / f"{name}.nii.gz")
    dice = demo._dice(tmp_path / "truth.nii.gz", tmp_path / "found.nii.gz", [1, 2])
    np.testing.assert_allclose(dice, [2 * 2 / (3 + 3), 2 * 1 / (2 + 1)])
