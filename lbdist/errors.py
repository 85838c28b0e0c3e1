"""How lbdist refuses an input: one line that names the field, the value and what is allowed."""

from __future__ import annotations

import sys
from typing import Any


class InputError(ValueError):
    """A wrong input: one line that names the field, the value and what is allowed."""


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises the `InputError` of a field unless its condition holds.

    Example:
        >>> require(0 > 1, "epochs", 0, "at least 1")
        Traceback (most recent call last):
        lbdist.errors.InputError: epochs=0: must be at least 1
    """
    if not condition:
        raise InputError(f"{field}={value}: must be {allowed}")


def warn(line: str) -> None:
    """Says on one line of the standard error what a user should know and the run goes on without."""
    print(f"lbdist: {line}", file=sys.stderr, flush=True)


class Failure(RuntimeError):
    """What a machine did not do: one line, and status 1, since the same command may go on."""


MOST_LETTERS = 300
"""Of a message that another program made."""


def short(text: str) -> str:
    """A message of another program's on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]} ..."


def one_line(error: BaseException) -> str:
    """An error's message on one line; its kind where it has none.

    Example:
        >>> one_line(ValueError("no\\n  such thing"))
        'no such thing'
    """
    return " ".join(str(error).split()) or type(error).__name__
