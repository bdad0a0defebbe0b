"""A checkpoint may hold numbers of numpy and a Namespace, and nothing that could run or crash."""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_ext.checkpoints.loading import load_as_data
from nnunetv2_ext.errors import UserError
from tests.conftest import StockModel

NUMBERS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NUMBERS += ["float16", "float32", "float64"]


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def through_a_file(folder: Path, content: Any, **options: Any) -> Any:
    torch.save({"a": torch.ones(2), "content": content}, folder / "x.pth", **options)
    return load_as_data(folder / "x.pth")["content"]


def refusal(folder: Path, content: Any) -> str:
    with pytest.raises(UserError) as caught:
        through_a_file(folder, content)
    message = str(caught.value)
    assert str(folder / "x.pth") in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("name", NUMBERS)
def test_scalars_of_numbers_keep_type_and_value(tmp_path: Path, name: str, new_format: bool) -> None:
    number = np.dtype(name).type(1)
    found = through_a_file(tmp_path, [number], _use_new_zipfile_serialization=new_format)[0]
    assert type(found) is type(number)
    assert found == number


@pytest.mark.parametrize("array", [
    *(np.arange(24).reshape(2, 3, 4).astype(name) for name in NUMBERS),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6.0, dtype=">f8"), np.zeros((0, 3)), np.array(2.5),
], ids=str)  # fmt: skip
def test_arrays_of_numbers_keep_type_shape_and_values(tmp_path: Path, array: np.ndarray) -> None:
    found, expected = through_a_file(tmp_path, array), pickle.loads(pickle.dumps(array, protocol=2))
    assert (found.dtype, found.shape) == (expected.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_both_names_of_numpy_s_package_are_known(tmp_path: Path, package: str) -> None:
    torch.save([np.float64(0.5), np.arange(3)], tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    mine = np.float64(0).__reduce__()[0].__module__.rpartition(".")[0].encode()
    (tmp_path / "x.pth").write_bytes(content.replace(b"c" + mine + b".", b"c" + package.encode() + b"."))
    number, array = load_as_data(tmp_path / "x.pth")
    assert number == 0.5
    assert array.tolist() == [0, 1, 2]


def test_a_namespace_keeps_its_attributes(tmp_path: Path) -> None:
    args = argparse.Namespace(model="mae_vit_base", lr=np.float64(1e-3), output=None, betas=(0.9, 0.95))
    assert through_a_file(tmp_path, args) == args


def test_every_value_that_stock_nnunet_stored_is_read(plain_model: StockModel) -> None:
    found = load_as_data(plain_model.checkpoint)
    expected = torch.load(plain_model.checkpoint, weights_only=False)
    assert found["logging"] == expected["logging"]
    assert found["_best_ema"] == expected["_best_ema"]
    assert found["init_args"] == expected["init_args"]
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(plain_model.checkpoint, weights_only=True)


@pytest.mark.parametrize("array", [
    np.array([{}], dtype=object), np.array(["text"]), np.array([b"bytes"]), np.zeros(1, dtype="f8,i4"),
    np.zeros(1, dtype="complex64"), np.zeros(1, dtype="datetime64[s]"), np.void(b"12345678"),
], ids=lambda a: str(a.dtype))  # fmt: skip
def test_numpy_values_that_are_no_numbers_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    assert "refused" in refusal(tmp_path, array)


@pytest.mark.parametrize("code", ["O", "|O", "O8", "object", "V8", "f8,O", "U4", np.dtype("O").char])
def test_bytes_cannot_be_passed_off_as_python_objects(tmp_path: Path, code: str) -> None:
    forged = Calls(np.ndarray, (1,), Calls(np.dtype, code), b"\x41" * 8)
    refusal(tmp_path, forged)


def test_numpy_s_array_cannot_be_called_at_all(tmp_path: Path) -> None:
    refusal(tmp_path, Calls(np.ndarray, (1,), Calls(np.dtype, "f8"), b"\x41" * 8))


def test_a_number_s_type_cannot_be_turned_into_another(tmp_path: Path) -> None:
    reconstruct, arguments, _ = np.zeros(1).__reduce__()

    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            state = (3, "<", None, ("x",), {"x": (Calls(np.dtype, "O"), 0)}, 8, 1, 63)
            return np.dtype, ("f8", False, True), state

    class Array:
        def __reduce__(self) -> tuple[Any, ...]:
            return reconstruct, arguments, (1, (1,), Forged(), False, b"\x41" * 8)

    refusal(tmp_path, Array())


HARMFUL = {
    "a command": Calls(os.system, "touch executed"),
    "a file": Calls(os.mkdir, "executed"),
    "evaluation": Calls(eval, "open('executed', 'w')"),
    "a partial call": functools.partial(os.system, "touch executed"),
    "a program": Calls(subprocess.Popen, ["touch", "executed"]),
    "an import": Calls(__import__, "antigravity"),
    "attributes": Calls(getattr, "x", "upper"),
    "numpy's loader": Calls(np.load, "executed"),
    "torch's loader": Calls(torch.load, "executed"),
}


@pytest.mark.parametrize("trap", HARMFUL.values(), ids=HARMFUL)
@pytest.mark.parametrize("where", ["beside", "in a namespace", "in an object array", "as a scalar's bytes"])
def test_a_call_is_refused_unexecuted_wherever_it_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: Any, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    holder = np.empty(1, dtype=object)
    holder[0] = trap
    scalar = np.float64(0).__reduce__()[0]
    content = {
        "beside": trap,
        "in a namespace": argparse.Namespace(lr=trap),
        "in an object array": holder,
        "as a scalar's bytes": Calls(scalar, np.dtype("f8"), trap),
    }[where]
    assert "nothing of it executed" in refusal(tmp_path, content)
    assert not (tmp_path / "executed").exists()
    assert "antigravity" not in sys.modules


def test_a_refused_type_is_named_with_the_way_out(tmp_path: Path) -> None:
    message = refusal(tmp_path, pathlib.PurePosixPath("/data"))
    assert "pathlib" in message
    assert "state_dict()" in message


def test_what_is_let_through_here_is_let_through_nowhere_else(tmp_path: Path) -> None:
    before = set(map(str, torch.serialization.get_safe_globals()))
    through_a_file(tmp_path, np.float64(1))
    assert set(map(str, torch.serialization.get_safe_globals())) == before
