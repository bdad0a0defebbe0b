"""Room on the disk: estimated before the first case, and a disk that fills up all the same is one line."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nnunetv2_ext.cli import preprocess_like_nnssl
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.nnunet_folders import NO_RESAMPLING
from nnunetv2_ext.preprocessing import space
from nnunetv2_ext.preprocessing.space import check_space
from tests.conftest import DATASET, TINY_RESENC
from tests.preprocessed_folders import assert_same_folder, in_the_making
from tests.preprocessing.conftest import CASES, WHOLE, Dataset

PLAN: dict[str, Any] = {
    "original_median_shape_after_transp": [50, 200, 100],
    "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
    "configurations": {
        "3d_fullres": {"spacing": [1.0, 1.0, 2.0], "resampling_fn_data": "resample_data_or_seg_to_shape"}
    },
}
"""Of cases that become 100 x 200 x 50 voxels: a million."""


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def disk_with(free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: Usage(10**15, 0, int(free)))


# 10 cases x 2 channels x 1e6 voxels x 4 bytes = 80 MB uncompressed: 64 MB as usual, 24 MB at best
def test_with_room_as_usual_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_with(64.1e6, monkeypatch)
    assert check_space(tmp_path, PLAN, num_channels=2, num_classes=0, num_cases=10) == ""


@pytest.mark.parametrize(("free", "shown"), [(63.9e6, "63.9 MB"), (24.1e6, "24.1 MB")])
def test_with_less_there_is_a_warning(free: float, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_with(free, monkeypatch)
    warning = check_space(tmp_path, PLAN, num_channels=2, num_classes=0, num_cases=10)
    assert warning == (f"Disk space may run out: 10 cases will take about 64 MB, and {tmp_path} has {shown} free")


def test_with_too_little_room_even_at_best_the_run_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_with(23.9e6, monkeypatch)
    with pytest.raises(UserError, match=r"^10 cases will take about 64 MB, and .* has 23\.9 MB free: make room"):
        check_space(tmp_path, PLAN, num_channels=2, num_classes=0, num_cases=10)


def test_foreground_locations_count_where_there_are_many_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_with(64.1e6, monkeypatch)  # 116 classes x 10,000 locations x 4 indices x 8 bytes = 37.1 MB for each case
    warning = check_space(tmp_path, PLAN, num_channels=2, num_classes=116, num_cases=1)
    assert warning == ""
    with pytest.raises(UserError, match=r"10 cases will take about 435 MB"):
        check_space(tmp_path, PLAN, num_channels=2, num_classes=116, num_cases=10)


def test_without_resampling_the_shapes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {
        **PLAN,
        "original_median_spacing_after_transp": [9.0, 9.0, 9.0],
        "configurations": {"3d_fullres": {"spacing": [1.0] * 3, "resampling_fn_data": NO_RESAMPLING}},
    }
    disk_with(1e6, monkeypatch)
    with pytest.raises(UserError, match=r"1 cases will take about 3\.2 MB"):
        check_space(tmp_path, plan, num_channels=1, num_classes=0, num_cases=1)


@pytest.fixture
def small_disk(planned: Dataset) -> Iterator[Path]:
    """A file system of its own below `nnUNet_preprocessed`, which `resize` makes larger."""
    content = {p.name: p.read_bytes() for p in planned.preprocessed.iterdir()}
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(planned.preprocessed)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        for name, data in content.items():
            (planned.preprocessed / name).write_bytes(data)
        yield planned.preprocessed
    finally:
        subprocess.run(["umount", "--lazy", str(planned.preprocessed)], check=True)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


def bytes_in(folder: Path) -> int:
    """In the pages that a tmpfs counts."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def fail(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one line that the command ends with."""
    capsys.readouterr()
    arguments = ["-d", 999, "-n", "MAE", "-pc", TINY_RESENC, "-am", "like_pretrained", "--no_pbar", *options]
    with pytest.raises(SystemExit) as left:
        preprocess_like_nnssl.main([str(a) for a in arguments])
    message = capsys.readouterr().err
    assert left.value.code == 1
    assert message.count("\n") == 1, message
    return message


@pytest.mark.slow  # with two processes a case that was made on a full disk differed: see why before it goes back
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_disk_that_fills_up_is_one_line_and_the_run_continues_when_there_is_room(
    num_processes: int, small_disk: Path, planned: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    resize(small_disk, 64 * 1024)
    planned.run()
    (whole := planned.root / "whole").mkdir()
    for folder in (planned.folder, planned.records):
        subprocess.run(["mv", str(folder), str(whole)], check=True)

    per_case = bytes_in(whole) // len(CASES)
    resize(small_disk, (bytes_in(small_disk) + 5 * per_case // 2) // 1024)
    message = fail(capsys, "-np", num_processes)
    assert "No space left on device" in message
    assert "finished and kept, and the same command continues" in message
    finished = [p.name.removesuffix(".pkl") for p in planned.folder.glob("*.pkl")]
    assert 0 < len(finished) < len(CASES)
    assert set(planned.files()) == {n for n in WHOLE if n.startswith(tuple(finished))}
    assert not in_the_making(planned.folder)

    resize(small_disk, 64 * 1024)
    summary = planned.run()
    assert (summary.made, summary.kept) == (len(CASES) - len(finished), len(finished))
    for folder in (planned.folder, planned.records):
        assert_same_folder(folder, whole / folder.name)


def test_a_disk_that_is_too_small_from_the_start_is_refused_before_the_first_case(
    small_disk: Path, planned: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    resize(small_disk, bytes_in(small_disk) // 1024 + 200)
    message = fail(capsys, "-np", 1)
    assert "3 cases will take about" in message
    assert "make room, or point nnUNet_preprocessed to a larger disk" in message
    assert list(planned.folder.iterdir()) == []
    assert DATASET in message
