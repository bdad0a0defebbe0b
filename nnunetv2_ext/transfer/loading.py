"""Write a transfer into a network, and see that the network then is what the report says."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import nn

from nnunetv2_ext.transfer.pretrained import Transfer
from nnunetv2_ext.transfer.report import FRESH


class TransferMismatchError(RuntimeError):
    """The network does not hold what the report says: a bug here or in a library, never the user's."""


def load_and_verify(network: nn.Module, transfer: Transfer, release: Callable[[], None] | None = None) -> None:
    """Write the transferred tensors into a network in place, and compare every tensor with the report.

    Copied tensors must equal the checkpoint's, adapted ones the rule applied again, and fresh ones must be as they were
    before. Values are computed one at a time: beside the network there is never more than one of them in memory.

    Args:
        network: the one that the transfer was planned for; on any device.
        transfer: from `plan_transfer`.
        release: called after each tensor; may give back memory that reading the checkpoint took.

    Raises:
        UserError: a tensor of the checkpoint holds NaN or inf.
        TransferMismatchError: a tensor is not what the report says.
    """
    own = network.state_dict(keep_vars=True)
    fresh = {r.name: _digest(own[r.name]) for r in transfer.report.records if r.action == FRESH}
    with torch.no_grad():
        for name, value in transfer.values():
            own[name].copy_(value)
            del value
            if release is not None:
                release()
    verify(network, transfer, fresh, release)


def verify(
    network: nn.Module, transfer: Transfer, fresh: Mapping[str, int], release: Callable[[], None] | None = None
) -> None:
    """Compare every tensor of a network with the report.

    Args:
        network: after loading.
        transfer: what was loaded.
        fresh: checksums of the fresh tensors before.
        release: as in `load_and_verify`.

    Raises:
        TransferMismatchError: names the tensors that differ.
    """
    own = network.state_dict(keep_vars=True)
    wrong = [name for name, digest in fresh.items() if _digest(own[name]) != digest]
    for step in transfer.steps:
        value = step.apply(transfer.weights)
        if not torch.equal(_words(own[step.name]), _words(value.to(own[step.name].dtype))):
            wrong.append(step.name)
        del value
        if release is not None:
            release()
    for record in transfer.report.records:
        wrong += [alias for alias in record.aliases if own[alias] is not own[record.name]]
    if wrong:
        count = f"{len(wrong)} tensors are" if len(wrong) > 1 else "a tensor is"
        raise TransferMismatchError(f"after loading, {count} not what the report says: {', '.join(wrong[:5])}")


def _digest(tensor: torch.Tensor) -> int:
    """A checksum, not a cryptographic hash: it is to notice mistakes, twice as fast."""
    return zlib.crc32(_words(tensor).numpy().data)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes as whole numbers of 64 bits on the CPU, which are compared faster than its own numbers."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if values.numel() % 8 or values.storage_offset() % 8:
        values = torch.nn.functional.pad(values, (0, -values.numel() % 8))
    return values.view(torch.int64)
