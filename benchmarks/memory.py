"""The highest memory of a stretch of code, for the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def highest_memory(device: str) -> Callable[[], float]:
    """Ask the result, later, for the highest memory since now, in bytes.

    On CUDA that is all that torch has allocated; on the CPU the resident memory above that of now.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return lambda: float(torch.cuda.max_memory_allocated())

    def resident(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(key + ":")) * 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    return lambda: resident("VmHWM") - before
