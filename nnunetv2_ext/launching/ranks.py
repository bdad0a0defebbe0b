"""The processes that train one network together: who they are, how they meet, and how they agree.

torchrun tells each by environment variables; a training that nothing of that kind started is one process alone. On GPUs
gradients go through NCCL, everything else (and everything on the CPU) through Gloo.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nnunetv2_ext.errors import Stopped, UserError
from nnunetv2_ext.launching.parent_watch import TORCHRUN
from nnunetv2_ext.launching.stopping import EXIT_STOPPED, requested_by
from nnunetv2_ext.planning.plan_files import first_difference

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets."""
_LEVEL = "TORCH_CPP_LOG_LEVEL"
"""Whoever sets it wants to see torch's own messages."""
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "socket", "store")
"""In messages of torch where another process has gone."""
_LAUNCHER_SPEAKS = 5.0
"""Seconds that a launcher is left to notice what has happened to its processes; it looks ten times a second."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: from 0; the first writes all files.
        size: how many there are, on all nodes.
        local_rank: on this node, from 0.
        local_size: on this node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there is anyone to talk to."""
        return self.size > 1

    def device(self, kind: str) -> torch.device:
        """The device of this process: its local rank's GPU, or `cpu`, `mps`."""
        return torch.device(kind, self.local_rank) if kind == "cuda" else torch.device(kind)

    def wait_for_all(self) -> None:
        """Go on when all are here."""
        if self.are_several:
            dist.barrier()

    def gathered(self, value: T) -> list[T]:
        """The value of every rank, in their order, on every rank."""
        if not self.are_several:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any_has(self, value: str | None) -> str | None:
        """The first value that is not None, on every rank: one number is exchanged unless there is one."""
        if not self.are_several:
            return value
        present = torch.tensor(int(value is not None), dtype=torch.int32)
        dist.all_reduce(present, op=dist.ReduceOp.MAX)
        return next((v for v in self.gathered(value) if v is not None), None) if present else None

    def from_first(self, compute: Callable[[], T]) -> T:
        """What the first rank computes, on every rank.

        Raises:
            UserError: on the first rank, if it did there; the others leave without a word.
        """
        if not self.are_several:
            return compute()
        result: list[Any] = [None, None]
        if self.is_first:
            try:
                result[0] = compute()
            except UserError as error:
                result[1] = str(error)
        dist.broadcast_object_list(result, src=0)
        if result[1] is not None:
            self._refuse(result[1])
        return result[0]

    def agreed(self, compute: Callable[[], T]) -> T:
        """What every rank computes for itself; the error of one is the error of all.

        Raises:
            UserError: on the first rank, naming the rank that it comes from; the others leave without a word.
        """
        if not self.are_several:
            return compute()
        result, problem = None, None
        try:
            result = compute()
        except UserError as error:
            problem = str(error)
        problems = self.gathered((problem, socket.gethostname()))
        for rank, (text, host) in enumerate(problems):
            if text is not None:
                everywhere = all(other == text for other, _ in problems)
                self._refuse(text if everywhere else f"rank {rank} on {host}: {text}")
        return result  # type: ignore[return-value]

    def compare(self, mine: Mapping[str, Any]) -> None:
        """Refuse to train together what differs: plans, package versions, settings.

        Args:
            mine: by name, what must be the same on all ranks.

        Raises:
            UserError: on the first rank, naming rank, host and the first difference; the others leave without a word.
        """
        everyone = self.gathered((dict(mine), socket.gethostname()))
        first, first_host = everyone[0]
        for rank, (theirs, host) in enumerate(everyone):
            for name in [*first, *(n for n in theirs if n not in first)]:
                if difference := first_difference({name: first.get(name)}, {name: theirs.get(name)}):
                    self._refuse(
                        f"rank 0 ({first_host}) and rank {rank} ({host}) differ in {difference}: all nodes need the "
                        "same package versions, the same plan and the same command"
                    )

    def _refuse(self, message: str) -> None:
        # the launcher ends those that are left as soon as one has gone: let the first say why
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.wait_for_all()
        if self.is_first:
            raise UserError(message)
        raise SystemExit(1)


ALONE = Ranks()
_present = [ALONE]


def present_ranks() -> Ranks:
    """This process among those that train together at present."""
    return _present[-1]


def launched() -> Ranks | None:
    """What torchrun has told this process, or None if nothing of that kind has started it.

    Raises:
        UserError: only some of the variables are set, or they contradict each other.
    """
    values = {name: os.environ.get(name) for name in _VARIABLES}
    if values["RANK"] is None and values["WORLD_SIZE"] is None:
        return None
    missing = [name for name, value in values.items() if value is None]
    if missing:
        there = " and ".join(name for name in ("WORLD_SIZE", "RANK") if values[name] is not None)
        raise UserError(
            f"the environment has {there}, but not {', '.join(missing)}: start the processes with torchrun, which sets "
            "them all, or unset them to train in one process"
        )
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        text = values[name] or ""
        if not text.isdigit():
            raise UserError(f"the environment's {name} is {text!r}, and must be a whole number")
        numbers[name] = int(text)
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        raise UserError(f"the environment's RANK is {numbers['RANK']} of WORLD_SIZE {numbers['WORLD_SIZE']}")
    local_size = os.environ.get("LOCAL_WORLD_SIZE", "")
    return Ranks(
        rank=numbers["RANK"],
        size=numbers["WORLD_SIZE"],
        local_rank=numbers["LOCAL_RANK"],
        local_size=int(local_size) if local_size.isdigit() else 1,
    )


@contextmanager
def joined(ranks: Ranks | None, device: str, timeout: float) -> Iterator[Ranks]:
    """Meet the other processes, and part from them at the end.

    Args:
        ranks: from `launched`.
        device: `cuda` or `cpu`.
        timeout: seconds that a process waits for the others, at the start and in the training.

    Raises:
        UserError: the others cannot be reached, one of them has gone, or the device is not there.
    """
    if ranks is None or not ranks.are_several:
        yield ALONE
        return
    _check_device(ranks, device)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    start = time.monotonic()
    try:
        with _without_messages_of_cpp():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=timedelta(seconds=timeout),
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"rank {ranks.rank} of {ranks.size} could not meet the others at {where} within "
            f"{time.monotonic() - start:.0f} s (-ddp_timeout {timeout:g}): is that the first node's address, is the "
            f"port open, and have all nodes started? ({str(error).splitlines()[0][:120]})"
        ) from error
    if device == "cuda":
        torch.cuda.set_device(ranks.local_rank)
    _present.append(ranks)
    try:
        yield ranks
        if device == "cuda":  # not after an error: NCCL may wait for those that have gone
            dist.destroy_process_group()
    except Stopped as stop:
        if not ranks.is_first:  # one line is enough
            raise SystemExit(EXIT_STOPPED) from stop
        raise
    except RuntimeError as error:
        if not is_of_a_lost_process(error):
            raise
        if not ranks.is_first:
            raise SystemExit(1) from error
        if requested_by() and TORCHRUN in os.environ:  # the launcher ends this process, too, and says why
            raise SystemExit(EXIT_STOPPED) from error
        # a launcher that has lost a process of this node says which, and ends this one
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_LAUNCHER_SPEAKS)
        raise UserError(
            "another process of this training has ended or cannot be reached any more: the same command with --c "
            f"continues from the last checkpoint ({str(error).splitlines()[0][:120]})"
        ) from error
    finally:
        _present.pop()
        if device != "cuda":
            dist.destroy_process_group()


@contextmanager
def _without_messages_of_cpp() -> Iterator[None]:
    """torch writes a stack trace for each attempt to connect, past Python; what it raises in the end says as much."""
    if _LEVEL in os.environ:
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_device(ranks: Ranks, device: str) -> None:
    if device == "mps":
        raise UserError("-device mps trains in one process: use -device cuda or -device cpu with torchrun")
    if device == "cuda" and ranks.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK {ranks.local_rank}, but torch sees {torch.cuda.device_count()} GPUs on "
            f"{socket.gethostname()}: start at most that many processes on it (--nproc_per_node)"
        )


def is_of_a_lost_process(error: BaseException) -> bool:
    """Whether torch raises this when another process cannot be reached any more."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _LOST)
