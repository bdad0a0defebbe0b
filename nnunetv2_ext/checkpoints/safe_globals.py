"""Which types a checkpoint may hold besides tensors and plain Python values: none that can carry or run code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, cast

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = ("bool", *INTEGERS, "float16", "float32", "float64")


def harmless_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """For `torch.serialization.safe_globals`: numpy's scalars and arrays of numbers, and `argparse.Namespace`.

    nnU-Net writes losses and scores as `numpy.float64` into its checkpoints, as nnssl once did; both under the module
    names of numpy 1 or 2. Training scripts in the manner of MAE keep their arguments as a `Namespace`: attributes, no
    code. Arrays of Python objects are not numbers: what they hold is read under the same rules.
    """
    import numpy as np

    # numpy's own constructor of scalars, wherever this version keeps it
    scalar = cast("Callable[..., Any]", np.float64(0).__reduce__()[0])
    array = cast("Callable[..., Any]", np.zeros(0).__reduce__()[0])
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (array, "numpy.core.multiarray._reconstruct"),
        (array, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        argparse.Namespace,
        *{type(np.dtype(name)) for name in NUMBERS},
    ]
