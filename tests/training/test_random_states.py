"""Random numbers go on where they were."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from nnunetv2_ext.training.random_states import random_states, set_random_states

CPU = torch.device("cpu")


def draw() -> list[float]:
    """Of every kind; an odd number of Gaussian ones, of which Python and numpy keep every second for later."""
    gaussian = [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]
    return [*gaussian, random.random(), float(np.random.random()), float(torch.rand(())), np.random.randint(10**9)]


def test_they_repeat_from_a_state_that_a_checkpoint_held(tmp_path: Path) -> None:
    draw()
    torch.save(random_states(CPU), tmp_path / "states.pth")
    first = [draw() for _ in range(400)]  # more than numpy and Python make at a time
    assert first[0] != first[1]
    set_random_states(torch.load(tmp_path / "states.pth", weights_only=True), CPU)
    assert [draw() for _ in range(400)] == first


def test_a_state_is_no_view_of_what_goes_on() -> None:
    states = random_states(CPU)
    first = draw()
    set_random_states(states, CPU)
    assert draw() == first
    set_random_states(states, CPU)
    assert draw() == first


def test_a_checkpoint_of_a_gpu_goes_on_on_the_cpu() -> None:
    states = random_states(CPU)
    first = draw()
    set_random_states({**states, "cuda": torch.get_rng_state()}, CPU)
    assert draw() == first
