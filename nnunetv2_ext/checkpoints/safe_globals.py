"""Which types a checkpoint may hold besides tensors and plain Python values: none that can carry or run code."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
"""numpy's codes of booleans, integers and floats, as its pickles spell them."""


@cache
def harmless_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """For `torch.serialization.safe_globals`: numpy's scalars and arrays of numbers, and `argparse.Namespace`.

    nnU-Net writes losses and scores as `numpy.float64` into its checkpoints, as nnssl once did; both under the module
    names of numpy 1 or 2. Training scripts in the manner of MAE keep their arguments as a `Namespace`: attributes, no
    code. numpy's own constructors are not let through but answered by narrow ones under their names: called by a
    crafted file, `numpy.ndarray` makes an array of Python objects out of any bytes, which crashes, or worse, once it is
    looked at.
    """
    import numpy as np

    class NumberType:
        """Stands for `numpy.dtype`."""

        def __init__(self, code: str, *_: Any) -> None:
            if code not in _NUMBERS:
                raise pickle.UnpicklingError(f"a numpy array of {code!r}, not of numbers")
            self.dtype = np.dtype(code)

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.dtype = self.dtype.newbyteorder(state[1])

    class NumberArray(np.ndarray):
        """Stands for `numpy.ndarray`: made empty by `reconstruct` alone, then filled from its state."""

        def __new__(cls, *_: Any) -> NumberArray:
            raise pickle.UnpicklingError("a numpy array that numpy did not write")

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            version, shape, number_type, is_fortran, content = state
            super().__setstate__((version, shape, number_type.dtype, is_fortran, bytes(content)))

    def reconstruct(*_: Any) -> NumberArray:
        return np.ndarray.__new__(NumberArray, (0,), np.int8)

    def scalar(number_type: NumberType, content: bytes) -> Any:
        return np.frombuffer(content, number_type.dtype, count=1)[0]

    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    return [
        *((scalar, f"{module}.scalar") for module in modules),
        *((reconstruct, f"{module}._reconstruct") for module in modules),
        (NumberArray, "numpy.ndarray"),
        (NumberType, "numpy.dtype"),
        bytes,  # how an empty array's content is written
        argparse.Namespace,
    ]
