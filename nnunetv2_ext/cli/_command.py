"""What every command has in common: arguments, and errors in one line."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nnunetv2_ext.errors import Stopped, UserError
from nnunetv2_ext.launching.stopping import EXIT_STOPPED

_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


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
    except KeyboardInterrupt:
        _fail(parser, f"interrupted: {interrupted}", args, code=130)


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
