"""Which numpy types a checkpoint may hold besides tensors: single numbers, nothing that can carry or run code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = ("bool", *INTEGERS, "float16", "float32", "float64")


def numpy_scalar_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """For `torch.serialization.safe_globals`: numpy's scalars, under the module names of numpy 1 and 2.

    nnU-Net writes losses and scores as `numpy.float64` into its checkpoints, as nnssl once did.
    """
    import numpy as np

    # numpy's own constructor of scalars, wherever this version keeps it
    scalar = cast("Callable[..., Any]", np.float64(0).__reduce__()[0])
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *{type(np.dtype(name)) for name in NUMBERS},
    ]
