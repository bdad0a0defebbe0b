"""The one error type that the commands turn into a single line."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: says what is wrong and what to do, in one line.

    The commands print its message to stderr without a traceback and exit with code 1. Anything else that is raised is
    a bug of ours and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Stopped(BaseException):
    """A signal asked a training to stop; nothing is lost, and the same command goes on from there.

    No `Exception`: what catches those to carry on must not carry on. The commands exit with code 75.

    Attributes:
        why: the signal's name, and what is kept, in one line.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
