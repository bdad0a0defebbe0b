"""A file from anywhere is loaded as data, never executed, and every bad one is refused in one line."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import CheckpointFile
from nnunetv2_ext.errors import UserError
from tests.synthesis import DATA

TINY_PRIMUS = DATA / "tiny_primus"


class RunsCodeWhenLoaded:
    """Pickles as an instruction to create a file."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.evidence),)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return torch.load(TINY_PRIMUS / "checkpoint_final.pth", weights_only=True)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(CheckpointFile(path, str(path)))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "There is no file" in refusal(tmp_path / "nothing.pth")


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.touch()
    assert "is empty" in refusal(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_file_cut_off_is_called_so(tmp_path: Path, kept: float) -> None:
    content = (TINY_PRIMUS / "checkpoint_final.pth").read_bytes()
    path = tmp_path / "x.pth"
    path.write_bytes(content[: int(kept * len(content))])
    assert "is cut off" in refusal(path)


@pytest.mark.parametrize("kept", [2, 20, 0.01, 0.5, 0.999])
def test_a_file_of_the_older_format_cut_off_is_refused(tmp_path: Path, tiny: dict[str, Any], kept: float) -> None:
    path = saved(tmp_path / "x.pth", tiny, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    refusal(path)


@pytest.mark.parametrize(
    ("content", "called"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"\n  <html lang='en'>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "git-lfs pointer"),
        (b"hello", "not a PyTorch checkpoint"),
        (b'{"a": 1}', "not a PyTorch checkpoint"),
        (bytes(4096), "not a PyTorch checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path: Path, content: bytes, called: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert called in refusal(path)


def test_a_zip_of_anything_else_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fold_0/checkpoint_final.pth", b"x")
    assert "no plans.json" in refusal(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("where", ["whole", "network_weights", "nnssl_adaptation_plan", "citations"])
def test_a_pickle_that_would_run_code_is_refused_unexecuted(
    tmp_path: Path, tiny: dict[str, Any], where: str, new_format: bool
) -> None:
    evidence = tmp_path / "executed"
    trap = RunsCodeWhenLoaded(evidence)
    content = trap if where == "whole" else {**tiny, where: trap}
    path = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=new_format)
    message = refusal(path)
    assert "refused" in message
    assert "mkdir" in message
    assert not evidence.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_is_refused_unexecuted(tmp_path: Path, protocol: int) -> None:
    evidence = tmp_path / "executed"
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(RunsCodeWhenLoaded(evidence), protocol=protocol))
    refusal(path)
    assert not evidence.exists()


def test_a_checkpoint_damaged_anywhere_is_read_or_refused_but_never_raises_otherwise(tmp_path: Path) -> None:
    whole = (TINY_PRIMUS / "checkpoint_final.pth").read_bytes()
    with zipfile.ZipFile(TINY_PRIMUS / "checkpoint_final.pth") as archive:
        pickled = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
    dice = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[pickled.header_offset + dice.randrange(pickled.file_size)] = dice.randrange(256)
        path = tmp_path / "x.pth"
        path.write_bytes(damaged)
        try:
            read_checkpoint(CheckpointFile(path, str(path)))
        except UserError:
            refused += 1
    assert refused > 50
