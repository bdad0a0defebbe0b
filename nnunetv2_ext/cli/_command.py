"""What every command has in common: arguments, and errors in one line."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from nnunetv2_ext.errors import Stopped, UserError
from nnunetv2_ext.launching.stopping import EXIT_STOPPED

_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_DEAF_SECONDS = 5.0
"""After a signal: within them workers are ended and the line is printed. Later ones count, should that hang."""


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, with exit code 1 like every other error of the user's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """No abbreviations of flags with one dash either, which `allow_abbrev` does not cover: `-c` is not `-cm`."""
        return []

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and leave with exit code 1."""
        sys.stderr.write(f"{self.prog}: error: {message} (see {self.prog} --help)\n")
        raise SystemExit(1)


def run(
    parser: Parser, command: Callable[[argparse.Namespace], None], argv: Sequence[str] | None, *, interrupted: str
) -> None:
    """Parse, call, and turn a `UserError` into one line on stderr and exit code 1 (`--verbose`: with the traceback).

    So do a full disk and a forbidden folder. Ctrl-C ends with code 130 and what `interrupted` says of going on; where
    the command listens to signals itself, they end with code 75.
    Anything else is a bug and keeps its traceback.
    """
    args = parser.parse_args(argv)
    _quieten_libraries()
    try:
        _check_numbers()
        command(args)
    except UserError as error:
        _fail(parser, str(error), args)
    except BrokenPipeError:  # the reader of `| head` has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        _fail(parser, f"{error.strerror}: {error.filename or 'while writing'}", args)
    except Stopped as stop:
        _fail(parser, f"stopped by {stop.why}: {interrupted}", args, code=EXIT_STOPPED)
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        _fail(parser, f"interrupted: {interrupted}", args, code=128 + number)


class _Terminated(KeyboardInterrupt):
    """By SIGTERM, which means the same as Ctrl-C."""


@contextmanager
def one_signal_is_enough() -> Iterator[None]:
    """For `run`: SIGTERM ends the command as Ctrl-C does (code 143), and impatience does not cut off its leaving.

    Not for commands that listen to signals themselves, or start processes as copies of their own, which would inherit
    it. Does nothing outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deaf_until = 0.0

    def handle(received: int, _: FrameType | None) -> None:
        nonlocal deaf_until
        if time.monotonic() >= deaf_until:
            deaf_until = time.monotonic() + _DEAF_SECONDS
            raise _Terminated if received == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            # when one has come the program is leaving: Python takes off handlers then, but leaves what is ignored
            signal.signal(number, signal.SIG_IGN if deaf_until else handler)


def _check_numbers() -> None:
    """nnU-Net reads these while it is imported, and breaks on anything else."""
    for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        value = os.environ.get(name)
        if value is not None and not value.isdigit():
            raise UserError(f"the environment variable {name} is {value!r}, and must be a whole number")


def _quieten_libraries() -> None:
    """Leave out what others print and no user can act on: a torch deprecation in timm, the hub client's retries."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def _fail(parser: Parser, message: str, args: argparse.Namespace, code: int = 1) -> NoReturn:
    if getattr(args, "verbose", False):
        traceback.print_exc()
    sys.stderr.flush()
    sys.stdout.flush()
    sys.stderr.write(f"{parser.prog}: error: {message}\n")
    raise SystemExit(code)
