"""One training step between `zero_grad` and the next batch: the gradient of one or several micro-batches, and the step.

With one micro-batch this is what nnU-Net's `train_step` does, call by call. With several, the gradient of the big batch
is had in the memory of a small one: by accumulation, or, for losses that couple the samples of a batch, by gradient
caching. Networks with batch statistics (batch normalisation) see micro-batches in either case; nnU-Net's 3D networks
have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_ext.training.random_states import set_torch_random_states, torch_random_states

Batch = Mapping[str, Any]
"""As nnU-Net's data loaders give it: `data` (b, c, z, y, x), `target`, a tensor (b, 1 or regions, z, y, x) or a list of
them from full resolution down (deep supervision), and `keys`, the names of the b cases."""

Loss = Callable[[Any, Any, list[str]], torch.Tensor]
"""`loss(output, target, keys)`, a scalar; output and target are both tensors or both lists."""

_AUTOCAST_TYPES = {
    "fp16": {"cuda": torch.float16},
    "bf16": {"cuda": torch.bfloat16, "cpu": torch.bfloat16},
    "off": {},
}


def forward_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for a forward pass and its loss.

    As stock nnU-Net, `fp16` is single precision on anything but CUDA; `bf16` also works on the CPU.

    Args:
        device: where the network is.
        precision: `fp16`, `bf16` or `off`.

    Raises:
        KeyError: another precision.
    """
    dtype = _AUTOCAST_TYPES[precision].get(device.type)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def backward(
    network: nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    *,
    device: torch.device,
    precision: str,
    scaler: torch.amp.GradScaler | None,
    channels_last: bool = False,
) -> torch.Tensor:
    """Add the gradient of the mean of the micro-batches' losses to the parameters' `grad`.

    It is the gradient of the big batch if the loss is a mean over samples and the micro-batches are of equal size.

    Args:
        network: the network, in a DDP wrapper or not; ranks average their gradients once, with the last micro-batch.
        loss: see `Loss`.
        batches: one or more micro-batches, see `Batch`.
        device: where the network is; data and targets are moved there.
        precision: see `forward_context`.
        scaler: multiplies the loss (and so the gradient), or None.
        channels_last: the data are moved in the memory format of `to_channels_last`.

    Returns:
        The mean loss, a scalar on the device, detached and not scaled.
    """
    losses = []
    for index, batch in enumerate(batches):
        data, target, keys = _on_device(batch, device, channels_last)
        with _ranks_average_with_the_last(network, index, len(batches)):
            with forward_context(device, precision):
                value = loss(network(data), target, keys)
            _scaled(value / len(batches), scaler).backward()
        losses.append(value.detach())
    return torch.stack(losses).mean()


def backward_as_one_batch(
    network: nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    *,
    device: torch.device,
    precision: str,
    scaler: torch.amp.GradScaler | None,
    channels_last: bool = False,
) -> torch.Tensor:
    """Add the gradient of the loss of all micro-batches together, whatever the loss, to the parameters' `grad`.

    Gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    arXiv 2101.06983): the outputs are computed without a graph, the loss of all outputs gives its gradient with respect
    to them, and each micro-batch is then computed again, with a graph and the same random numbers, to carry its share
    of that gradient back. Costs one more forward pass than `backward`, and the memory of all outputs. Exact, up to
    rounding, for batch Dice, an ignore label or top-k, which are no means over samples.

    Arguments and result are those of `backward`; micro-batches may differ in size.
    """
    moved = [_on_device(batch, device, channels_last) for batch in batches]
    states, outputs = [], []
    for data, _, _ in moved:
        states.append(torch_random_states(device))
        with torch.no_grad(), forward_context(device, precision):
            outputs.append(network(data))
    output = _joined(outputs)
    del outputs
    for level in _levels(output):
        level.requires_grad_()
    with forward_context(device, precision):
        value = loss(output, _joined([target for _, target, _ in moved]), [key for _, _, keys in moved for key in keys])
    gradients = torch.autograd.grad(_scaled(value, scaler), _levels(output), allow_unused=True)
    del output

    start = 0
    for index, ((data, _, _), state) in enumerate(zip(moved, states, strict=True)):
        with _ranks_average_with_the_last(network, index, len(moved)):
            with _random_numbers_from(state, device), forward_context(device, precision):
                levels = _levels(network(data))
            # a level that the loss does not look at (weight 0 in deep supervision) has no gradient
            pairs = [(level, g) for level, g in zip(levels, gradients, strict=True) if g is not None]
            shares = [g[start : start + len(data)] for _, g in pairs]
            torch.autograd.backward([level for level, _ in pairs], shares)
        start += len(data)
    return value.detach()


def take_step(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    parameters: Iterable[nn.Parameter],
    max_norm: float,
) -> None:
    """Un-scale the gradient, clip its norm, step; with a scaler, a gradient that is not finite skips the step.

    Args:
        optimizer: of the parameters that train.
        scaler: the one that the gradient was scaled with, or None.
        parameters: all whose gradients count for the norm (nnU-Net: all of the network's).
        max_norm: the gradient's norm is at most this.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def _on_device(batch: Batch, device: torch.device, channels_last: bool) -> tuple[torch.Tensor, Any, list[str]]:
    memory_format = torch.channels_last_3d if channels_last else torch.preserve_format
    data = batch["data"].to(device, non_blocking=True, memory_format=memory_format)
    target = batch["target"]
    if isinstance(target, torch.Tensor):
        target = target.to(device, non_blocking=True)
    else:
        target = [level.to(device, non_blocking=True) for level in target]
    return data, target, list(batch["keys"])


def _scaled(value: torch.Tensor, scaler: torch.amp.GradScaler | None) -> torch.Tensor:
    return value if scaler is None else scaler.scale(value)


def _levels(output: Any) -> list[torch.Tensor]:
    """The outputs of deep supervision; one if there is none."""
    return [output] if isinstance(output, torch.Tensor) else list(output)


def _joined(parts: Sequence[Any]) -> Any:
    """Tensors, or lists of tensors level by level, joined along the batch."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def _ranks_average_with_the_last(network: nn.Module, index: int, count: int) -> AbstractContextManager[Any]:
    if isinstance(network, DistributedDataParallel) and index < count - 1:
        return network.no_sync()
    return nullcontext()


@contextmanager
def _random_numbers_from(states: Mapping[str, torch.Tensor], device: torch.device) -> Iterator[None]:
    """Draw random numbers as from an earlier state (`torch.random.fork_rng` knows no MPS), then go on as before."""
    present = torch_random_states(device)
    set_torch_random_states(states, device)
    try:
        yield
    finally:
        set_torch_random_states(present, device)
