"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_of_update(decay: float, update: int) -> float:
    """The decay of an update (counted from 0): `min(decay, (1 + t) / (10 + t))`.

    The warm-up of TensorFlow's `tf.train.ExponentialMovingAverage` (its `num_updates`). A fresh decoder starts from
    random values, which a decay of 0.999 would keep in the average for some epochs; a validation of it would say
    nothing, and an early stop or a choice of the best epoch would rest on that.
    """
    return min(decay, (1 + update) / (10 + update))


class WeightAverage:
    """The average e of a network's weights w: `e = d * e + (1 - d) * w` after every step, from e = w at the start.

    All parameters are averaged, frozen ones too: one that never moves stays as it is bit by bit, and one that a later
    phase freezes is still approached. A parameter under several names is averaged once. Buffers are the network's own
    and stay in it. torch's `AveragedModel` does the same arithmetic (its function is used here), but takes the weights
    after the first step for the start and copies the modules too.

    Memory: one copy of the parameters, in their type and on their device.

    Args:
        network: the network without wrappers, with the weights to start from; its parameters' names go into the state.
        decay: d in (0, 1), warmed up, see `decay_of_update`.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._names = [name for name, _ in network.named_parameters()]
        self._weights = [parameter.detach().clone() for parameter in network.parameters()]
        self._is_swapped = False

    def update(self, network: nn.Module) -> None:
        """Take the network's present weights in; call it after every step of the optimizer.

        Raises:
            RuntimeError: inside `swapped`.
        """
        if self._is_swapped:
            raise RuntimeError("the network holds the average: it cannot be averaged again")
        take_in = get_ema_multi_avg_fn(decay_of_update(self.decay, self.num_updates))
        take_in(self._weights, [parameter.detach() for parameter in network.parameters()], self.num_updates)
        self.num_updates += 1

    @contextmanager
    def swapped(self, network: nn.Module) -> Iterator[None]:
        """The network with the average in its parameters; afterwards, or after an error, with its own weights again.

        The values change places, one tensor at a time: parameters stay the same objects in the same memory, as
        optimizers and compiled networks need them. Inside another `swapped` it changes nothing.
        """
        if self._is_swapped:
            yield
            return
        self._swap(network)
        try:
            yield
        finally:
            self._swap(network)

    @torch.no_grad()
    def _swap(self, network: nn.Module) -> None:
        for weight, parameter in zip(self._weights, network.parameters(), strict=True):
            average = weight.clone()
            weight.copy_(parameter)
            parameter.copy_(average)
        self._is_swapped = not self._is_swapped

    def state_dict(self) -> dict[str, Any]:
        """The number of updates and the weights that are *not* in the network: inside `swapped`, those in training.

        So a checkpoint that is written inside `swapped` has the average as the network's weights, for inference, and is
        continued from by loading both inside `swapped`. The tensors are those in use, not copies.
        """
        weights = dict(zip(self._names, self._weights, strict=True))
        return {"num_updates": self.num_updates, "swapped": self._is_swapped, "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, outside or inside `swapped` as it was made.

        Raises:
            RuntimeError: it was made the other way round, or for another network.
        """
        if state["swapped"] != self._is_swapped:
            raise RuntimeError("a state of the average is loaded inside `swapped` if it was made there, else outside")
        theirs = {name: weight.shape for name, weight in state["weights"].items()}
        ours = {name: weight.shape for name, weight in zip(self._names, self._weights, strict=True)}
        if theirs != ours:
            name = next(n for n in [*ours, *theirs] if theirs.get(n) != ours.get(n))
            raise RuntimeError(f"the average is of another network: {name} is not the same in both")
        for name, weight in zip(self._names, self._weights, strict=True):
            weight.copy_(state["weights"][name])
        self.num_updates = state["num_updates"]
