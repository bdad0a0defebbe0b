"""Folders that are full or cannot be written to: found before the import, and named with their variable."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nnunetv2_ext.datasets.disk_faults import check_writable, faults_named
from nnunetv2_ext.errors import UserError
from tests.disks import fill, mounted

RAW, NAME = "nnUNet_raw", "Dataset123_Cells"


def test_a_folder_that_can_be_written_to_is_left_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAW, str(tmp_path / "raw"))
    check_writable(RAW, NAME)
    (tmp_path / "raw" / NAME).mkdir(parents=True)
    check_writable(RAW, NAME)
    assert list(tmp_path.rglob("*")) == [tmp_path / "raw", tmp_path / "raw" / NAME]


@pytest.mark.parametrize(
    ("options", "said"),
    [("ro", "Read-only file system: {} (nnUNet_raw); make it writable; nothing was imported"),
     ("size=64k", "No space left on device: {} (nnUNet_raw); make room; nothing was imported")],
)  # fmt: skip
def test_a_folder_that_cannot_is_named_with_its_variable(
    options: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAW, str(tmp_path / "disk"))
    with mounted(tmp_path / "disk", options) as disk:
        if options != "ro":
            fill(disk, leave=0)
        with pytest.raises(UserError) as caught:
            check_writable(RAW, NAME)
    assert str(caught.value) == said.format(disk)


def test_a_fault_while_writing_says_that_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAW, str(tmp_path))
    with pytest.raises(UserError) as caught, faults_named(RAW):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(caught.value) == (
        f"No space left on device: {tmp_path} (nnUNet_raw); make room; what is done is kept, and the same command "
        "goes on"
    )
    said = rf"^Permission denied: {tmp_path}/a \(nnUNet_raw\); make it writable; "
    with pytest.raises(UserError, match=said), faults_named(RAW):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "a"))


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAW, str(tmp_path))
    with pytest.raises(FileNotFoundError), faults_named(RAW):
        (tmp_path / "nothing").read_text()
