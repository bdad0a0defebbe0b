"""Several processes that train one network: torch's own elastic launcher, with exit codes and signals for job scripts.

torchrun ends with code 1 whatever its workers end with, does not know SIGUSR1, signals the data loaders' processes
together with the workers that need them to finish an iteration, and kills both after 30 s. Here its agent runs in a
thread, where it leaves signals alone; the main thread passes them on, to the workers only, and waits until they have
saved. Workers run in sessions of their own, so that Ctrl-C reaches them through the launcher only.
"""

from __future__ import annotations

import argparse
import atexit
import io
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.errors import Stopped, UserError
from nnunetv2_ext.launching.stopping import EXIT_STOPPED, NOTES_FOLDER
from nnunetv2_ext.launching.workers import Workers

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

TRAINING = "nnunetv2_ext.cli.train_pretrained"
SECONDS_TO_MEET = 600
"""A node that a queue starts late still joins; `--rdzv_conf join_timeout=` says otherwise."""
SECONDS_TO_STOP = 600
"""From a signal to SIGKILL: a big network on a slow disk has to be saved. `--shutdown_timeout` says otherwise."""

_CONTINUES = "the same command with --c continues from the last checkpoint"
_POLL = 0.1
"""Seconds between two looks at workers and signals."""
_AGENT_KILLS_AFTER = 30
"""Seconds that torch's agent leaves the other workers when one has failed (`PContext.close`)."""
_GRACE = 2
"""Seconds that torch is left to say itself that its time to meet is over."""
_LEVEL = "TORCH_CPP_LOG_LEVEL"


def launch_on_this_node(num_processes: int, command: Sequence[str]) -> int:
    """`nnUNetv2_train_pretrained` with the arguments `command`, on several processes of this machine; see `launch`."""
    return launch(["--standalone", "--nproc_per_node", str(num_processes), "-m", TRAINING, *command])


def launch(arguments: Sequence[str]) -> int:
    """Do what `torchrun ARGUMENTS` does, until all workers of this node have ended.

    Args:
        arguments: as torchrun takes them; with `--verbose` among them torch's own messages are shown.

    Returns:
        0: all have finished. 75: they were stopped and can be continued. 1: a worker has failed, and said why.

    Raises:
        UserError: the arguments are wrong, the nodes cannot meet, or a worker was killed.
        Stopped: a signal came before any worker could handle it; nothing is lost.
    """
    verbose = "--verbose" in arguments
    with (
        _environment_kept(),
        _torch_loaded(verbose),
        tempfile.TemporaryDirectory(prefix="nnunetv2_ext_", ignore_cleanup_errors=True) as folder,
    ):
        args = _parsed(arguments)
        nodes, processes = _shape(args)
        _fill_in(args, nodes, Path(folder))
        os.environ[NOTES_FOLDER] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
        agent, workers = _Agent(args), Workers(_seconds_to_stop(args))
        start = time.monotonic()
        to_meet = _seconds_to_meet(args) + _GRACE if nodes > 1 else math.inf  # torch's own take up to twice as long
        with workers.signalled(getattr(args, "signals_to_handle", "")):
            agent.start()
            while agent.is_alive() and not workers.never_came:
                agent.join(_POLL)
                workers.pass_signals_on()
                if not workers.seen and time.monotonic() - start > to_meet:
                    agent.abandon(exit_code=1)
                    raise UserError(_why_not_met(None, args, nodes))
        if agent.is_alive():
            agent.abandon(EXIT_STOPPED)
            raise Stopped(workers.signals[0].name)
        stopped = {int(note.name) for note in Path(folder).iterdir() if note.name.isdigit()}
        return _exit_code(agent.error, stopped, workers, args, (nodes, processes))


def _exit_code(
    error: BaseException | None,
    stopped: Set[int],
    workers: Workers,
    args: argparse.Namespace,
    shape: tuple[int, int],
) -> int:
    """What the agent's end means.

    Args:
        error: what it has raised.
        stopped: the ranks that have left a note; torch's agent forgets them when another node goes first.
        workers: those of this node.
        args: torchrun's.
        shape: nodes, and processes on each.

    Raises:
        UserError, Stopped: as `launch`.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    if error is None:
        return 0
    if isinstance(error, ChildFailedError):
        return _code_of_failures(error.failures, stopped, workers, shape[0] * shape[1])
    is_of_the_net = isinstance(error, (RendezvousError, DistError, OSError))
    if workers.seen or stopped:
        if len(stopped) == shape[1]:
            return EXIT_STOPPED
        if is_of_the_net:
            raise UserError(
                f"the connection to {_endpoint(args)}, where the nodes meet, was lost: has the launcher there ended, "
                f"or its machine failed? {_CONTINUES}"
            ) from error
    elif is_of_the_net:
        raise UserError(_why_not_met(error, args, shape[0])) from error
    elif isinstance(error, (ValueError, AssertionError)):
        raise UserError(f"wrong arguments of torchrun: {error}") from error
    raise error


def _code_of_failures(failures: Mapping[int, ProcessFailure], stopped: Set[int], workers: Workers, size: int) -> int:
    codes = {rank: EXIT_STOPPED if rank in stopped else failure.exitcode for rank, failure in failures.items()}
    passed_on = {-number for number in workers.passed_on}
    first = min(failure.timestamp for failure in failures.values())
    by_agent = {
        rank
        for rank, code in codes.items()
        if (code == -signal.SIGTERM and set(codes.values()) != {-signal.SIGTERM})
        or (code == -signal.SIGKILL and failures[rank].timestamp - first >= _AGENT_KILLS_AFTER - 1)
    }
    for rank in sorted(set(codes) - by_agent):
        if codes[rank] < 0 and codes[rank] not in passed_on:
            name = failures[rank].signal_name()
            if workers.were_killed:
                raise UserError(
                    f"process {rank} of {size} did not end within {workers.patience:.0f} s of "
                    f"{workers.signals[0].name} and was killed: {_CONTINUES}"
                )
            hint = " (is the memory full? then start fewer processes on a node)" if name == "SIGKILL" else ""
            raise UserError(f"process {rank} of {size} was ended by {name}{hint}: {_CONTINUES}")
    if EXIT_STOPPED in codes.values() and all(code < 0 or code == EXIT_STOPPED for code in codes.values()):
        return EXIT_STOPPED
    if any(code in passed_on for code in codes.values()):  # before it listened; the others missed it, if they met
        if all(code < 0 for code in codes.values()):
            raise Stopped(workers.signals[0].name)
        return EXIT_STOPPED
    return 1


def _why_not_met(error: BaseException | None, args: argparse.Namespace, nodes: int) -> str:
    from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

    where = _endpoint(args)
    if "EADDRINUSE" in (cause := str(error and (error.__cause__ or error))) or "already in use" in cause:
        return f"the port of {where} is taken on this machine: choose another (--rdzv_endpoint HOST:PORT)"
    if nodes == 1:
        return f"the processes of this machine could not meet at {where}: {cause.splitlines()[0]}"
    within = f"within {_seconds_to_meet(args)} s (--rdzv_conf join_timeout=)"
    if isinstance(error, RendezvousTimeoutError):
        return (
            f"fewer than {nodes} nodes came to {where} {within}: start the same command on each, with the same "
            "--rdzv_endpoint and --rdzv_id"
        )
    return (
        f"{where}, where {nodes} nodes were to meet, could not be reached {within}: is it the first node's address, is "
        "the port open to the others, and has the command started on all?"
    )


def _endpoint(args: argparse.Namespace) -> str:
    return args.rdzv_endpoint or f"{args.master_addr}:{args.master_port or 29500}"


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    from torch.distributed.run import get_args_parser

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return get_args_parser().parse_args(list(arguments))
    except SystemExit as left:
        if not left.code:  # --help
            raise
        what = said.getvalue().rpartition("error: ")[2]
        raise UserError(f"wrong arguments of torchrun: {what} (torchrun --help lists them)") from None


def _shape(args: argparse.Namespace) -> tuple[int, int]:
    """Nodes, at most, and processes on each."""
    from torch.distributed.run import determine_local_world_size, parse_min_max_nnodes

    try:
        shape = parse_min_max_nnodes(args.nnodes)[1], determine_local_world_size(args.nproc_per_node)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"wrong arguments of torchrun: {error}") from error
    if min(shape) < 1:
        raise UserError(f"wrong arguments of torchrun: --nnodes {shape[0]} --nproc_per_node {shape[1]}")
    return shape


def _fill_in(args: argparse.Namespace, nodes: int, folder: Path) -> None:
    """What the user has left open: where torch puts its files, and how long the nodes wait for each other."""
    args.log_dir = args.log_dir or str(folder / "logs")
    if getattr(args, "shutdown_timeout", 0) is None:
        args.shutdown_timeout = _seconds_to_stop(args)
    if nodes > 1:
        seconds, given = _seconds_to_meet(args), _rendezvous_settings(args)
        # until all have come; until the first is there; both, for the static backend
        more = [f"{name}={seconds}" for name in ("join_timeout", "read_timeout", "timeout") if name not in given]
        args.rdzv_conf = ",".join([*filter(None, [args.rdzv_conf.strip()]), *more])


def _rendezvous_settings(args: argparse.Namespace) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in args.rdzv_conf.split(",") if pair.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _seconds_to_meet(args: argparse.Namespace) -> int:
    given = _rendezvous_settings(args)
    text = given.get("join_timeout", given.get("timeout", str(SECONDS_TO_MEET)))
    if not text.isdigit() or text == "0":
        raise UserError(f"wrong arguments of torchrun: --rdzv_conf join_timeout={text} must be a number of seconds")
    return int(text)


def _seconds_to_stop(args: argparse.Namespace) -> int:
    given = getattr(args, "shutdown_timeout", None)
    return int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_STOP)) if given is None else given


@contextmanager
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _torch_loaded(verbose: bool) -> Iterator[None]:
    """Load torch's launcher, and let nothing that it logs in this process reach stderr: failures are told in a line."""
    own_level = verbose or _LEVEL in os.environ
    if not own_level:
        os.environ[_LEVEL] = "FATAL"  # of the messages of C++; read when torch is loaded
    import torch.distributed.run  # noqa: F401

    if not own_level:
        os.environ[_LEVEL] = "ERROR"  # for the workers
    logger = logging.getLogger("torch.distributed")
    before = logger.handlers, logger.propagate
    if not verbose:
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


class _Agent(threading.Thread):
    """torch's launcher; `error` is what it has raised."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(name="elastic agent", daemon=True)
        self.args = args
        self.error: BaseException | None = None

    def run(self) -> None:
        from torch.distributed.run import run

        try:
            run(self.args)
        except BaseException as error:
            self.error = error

    def abandon(self, exit_code: int) -> None:
        """Let this process end although the thread waits in C++, where Python's end would crash it."""
        atexit.register(self._leave, exit_code)

    def _leave(self, exit_code: int) -> None:
        if self.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_code)
