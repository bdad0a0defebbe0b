"""The state of all random numbers, as plain data that a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """The present states of Python's, numpy's and torch's random numbers, on the CPU and on the device."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": (version, list(numbers), gauss),
        "numpy": (name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
    }
    return states | torch_random_states(device)


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Go on as from `random_states`; a device of another kind than then begins anew."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    set_torch_random_states(states, device)


def torch_random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Of torch's random numbers alone, on the CPU and on the device."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_torch_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Go on as from `torch_random_states`, or as from its part of `random_states`."""
    torch.set_rng_state(states["torch"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"].cpu())
