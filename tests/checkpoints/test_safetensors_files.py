"""Safetensors files are read from the disk when used, and every bad one is refused in one line."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_ext.checkpoints.reading import read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
TYPES |= {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file made by hand after the format's description: length, header, tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(resolve_checkpoint_source(str(path)))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_file_made_by_hand_is_read_as_its_bytes_say(tmp_path: Path) -> None:
    data = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
    path = write(tmp_path / "x", {"__metadata__": {"format": "pt"}, "a.b": entry([2, 2], 0, 16)}, data)
    weights = read_checkpoint(resolve_checkpoint_source(str(path))).network_weights
    assert list(weights) == ["a.b"]
    assert weights["a.b"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_tensors_may_lie_at_odd_places(tmp_path: Path) -> None:
    text = json.dumps({"a": entry([2], 0, 8)}).encode()
    path = write(tmp_path / "x", text + b" " * (len(text) % 2 == 0), struct.pack("<2f", 1.5, -2.5))
    assert read_checkpoint(resolve_checkpoint_source(str(path))).network_weights["a"].tolist() == [1.5, -2.5]


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_every_type_of_numbers_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    save_file({"a": tensor, "empty": torch.zeros(0, 3).to(dtype)}, tmp_path / "x.safetensors")
    weights = read_checkpoint(resolve_checkpoint_source(str(tmp_path / "x.safetensors"))).network_weights
    assert weights["a"].dtype == dtype
    assert torch.equal(weights["a"], tensor)
    assert weights["empty"].shape == (0, 3)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    assert "no weights" in refusal(write(tmp_path / "x.safetensors", {"__metadata__": {}}))


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"{}}",
        b'{"a": ',
        b"{\xff\xfe}",
        {"a": {}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": entry([2], 0, 8, dtype="F33")},
        {"a": entry([3], 0, 8)},
        {"a": entry([2], 8, 0)},
        {"a": entry([2], 4, 12)},
        {"a": entry([200], 0, 800)},
        {"a": entry([-2], 0, 8)},
        {"a": entry([2**40, 2**40], 0, 8)},
        {"a": entry([2], 0, 8), "b": entry([2], 0, 8)},
        {"a": "text"},
        {"a": [1, 2]},
        {"a": None},
    ],
    ids=str,
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: Any) -> None:
    assert "damaged or no safetensors file" in refusal(write(tmp_path / "x.safetensors", header, bytes(8)))


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_wrong_length_of_the_header_is_refused(tmp_path: Path, length: int) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + content[8:])
    refusal(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kept", [4, 8, 9, 30, 0.5, 0.999])
def test_a_file_cut_off_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "x.safetensors"
    save_file({str(i): torch.ones(100) for i in range(10)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    message = refusal(path)
    assert "damaged" in message or "is not a PyTorch checkpoint" in message


@pytest.mark.parametrize(
    ("content", "called"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "git-lfs pointer"),
        (b"", "is empty"),
        (b'{"__metadata__": {}}', "not a PyTorch checkpoint"),
        (b'        {"a": 1}', "damaged or no safetensors file"),
    ],
)
def test_what_is_something_else_is_called_by_its_name(tmp_path: Path, content: bytes, called: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert called in refusal(tmp_path / "x.safetensors")


def test_a_file_damaged_anywhere_is_read_or_refused_but_never_raises_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"layer.{i}.weight": torch.ones(i + 1, 2) for i in range(5)}, path)
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    dice, messages = random.Random(0), []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(2):
            damaged[dice.randrange(8 + header)] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(resolve_checkpoint_source(str(path)))
        except UserError as error:
            messages.append(str(error))
    assert 100 < len(messages) < 300
    assert not any("\n" in message for message in messages)
