"""A limit of time for what may never end: a forward pass that loops, a collective call that nobody joins."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType


class Deadline:
    """Ends the process, from a thread of its own, when what it watches does not end in time.

    Nothing gentler ends a thread that is inside a library's call. Where the process belongs to a trial or a
    worker group, its death is retried, from the last whole epoch.

    Args:
        late: Told what did not end, just before the process does.
        status: The exit status.
    """

    def __init__(self, late: Callable[[str], None], status: int = 1) -> None:
        self._late, self._status = late, status
        self._until, self._what = float("inf"), ""
        self._changed = threading.Condition()
        self._open = True

    def allow(self, seconds: float, what: str) -> None:
        """Gives what comes next this many seconds from now."""
        with self._changed:
            self._until, self._what = time.monotonic() + seconds, f"{what} did not end within {seconds:.0f} s"
            self._changed.notify()

    def __enter__(self) -> Deadline:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._open:
                left = self._until - time.monotonic()
                if left <= 0:
                    try:
                        self._late(self._what)
                    finally:
                        os._exit(self._status)
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
