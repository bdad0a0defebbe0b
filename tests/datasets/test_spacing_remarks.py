"""What is said of a spacing that is given and not used, and of headers that say two."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunetv2_ext.datasets.checking import CheckJob, check_case
from nnunetv2_ext.datasets.collection import TEST, Case
from nnunetv2_ext.datasets.spacing_remarks import remark_on_spacing
from nnunetv2_ext.datasets.volumes.opening import volume_at
from tests.datasets.conftest import SPACING, counted, save

GIVEN = (3.0, 2.0, 1.0)


def remarks(given: tuple[float, float, float] | None, *images: Path, label: Path | None = None) -> list[str]:
    """About cases of one image each."""
    cases = [
        Case(f"case{i}", f"line {i}", f"case{i}", TEST, (volume_at(path, given),), volume_at(label) if label else None)
        for i, path in enumerate(images)
    ]
    return remark_on_spacing(given, cases, {case.name: check_case(CheckJob(case, False)) for case in cases})


def array(path: Path) -> Path:
    np.save(path, counted(2, 3, 4))
    return path


def two_spacings(path: Path) -> Path:
    image = nib.Nifti1Image(counted(4, 3, 2), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header["pixdim"][1:4] = [1, 3, 4]
    image.header["qform_code"] = 1
    image.header["sform_code"] = 1
    content = image.header.binaryblock + bytes(4) + counted(2, 3, 4).tobytes()
    path.write_bytes(content[:108] + np.float32(352).tobytes() + content[112:])
    return path


def test_a_spacing_that_no_image_needs_is_said_to_be_unused_with_what_the_first_says(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.nii.gz", counted(2, 3, 4), (0.5, 1.25, 2.0 + i)) for i in range(3)]
    label = save(tmp_path / "seg.nii.gz", counted(2, 3, 4) % 2)
    said = f"(the first: 2 1.25 0.5, {paths[0]})"
    assert remarks(GIVEN, *paths) == [f"-spacing 3 2 1 is not used: all 3 images say their own {said}"]
    assert remarks(GIVEN, paths[0], label=label) == [f"-spacing 3 2 1 is not used: the only image says its own {said}"]


def test_how_many_images_say_their_own_spacing_is_counted(tmp_path: Path) -> None:
    nifti, other = (save(tmp_path / name, counted(2, 3, 4)) for name in ("b.nrrd", "c.nii.gz"))
    arrays = [array(tmp_path / f"{i}.npy") for i in range(2)]
    said = f"own (the first: 2 1.25 0.5, {nifti})"
    assert remarks(GIVEN, arrays[0], nifti, arrays[1]) == [
        f"-spacing 3 2 1 is not used for 1 of 3 images, which says its {said}"
    ]
    assert remarks(GIVEN, nifti, other, *arrays) == [
        f"-spacing 3 2 1 is not used for 2 of 4 images, which say their {said}"
    ]


@pytest.mark.parametrize("given", [None, SPACING[::-1]])
def test_nothing_is_said_where_no_spacing_is_given_or_all_have_it(
    given: tuple[float, float, float] | None, tmp_path: Path
) -> None:
    exact = save(tmp_path / "a.nii.gz", counted(2, 3, 4))
    rounded = save(tmp_path / "b.nii.gz", counted(2, 3, 4), (0.5, 1.25, 2.0000001))
    assert remarks(given, exact, rounded, *([array(tmp_path / "c.npy")] if given else [])) == []


def test_headers_that_say_two_spacings_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    one, two = (two_spacings(tmp_path / f"{i}.nii") for i in range(2))
    said = f"{one} says a spacing of 4 x 3 x 1 (pixdim) and of 4 x 3 x 2 (sform; z, y, x)"
    advice = "nnU-Net takes the first; correct the header where that is wrong"
    assert remarks(None, one) == [f"{said}: {advice}"]
    assert remarks(None, one, two) == [f"{said} (1 more file alike): {advice}"]
