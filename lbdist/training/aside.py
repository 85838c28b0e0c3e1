"""What training keeps, written aside while it goes on, and no more often than it may cost."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

SHARE = 0.02
"""Of a run's time, what its resume files may take."""

GUESS_SECONDS, GUESS_BYTES_PER_SECOND = 2e-3, 2e8
"""What a file is taken to cost before one was written."""


class Aside:
    """Writes one file at a time in a thread of its own, which has ended when its context has.

    Args:
        share: Of the time since it was made, what `offer` may take: on this thread, to copy what is written,
            and on the other, to write it. Infinity has all that is offered written.

    Example:
        >>> aside, written = Aside(share=math.inf), []
        >>> aside.write(lambda: written.append("a model"))
        >>> aside.finish()
        >>> aside.offer(0, lambda: "a state", written.append)
        >>> aside.finish()
        >>> written
        ['a model', 'a state']
    """

    def __init__(self, share: float = SHARE) -> None:
        self.share, self._began = share, time.monotonic()
        self._spent = 0.0
        self._last: float | None = None  # what a file has taken
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def write(self, do: Callable[[], None]) -> None:
        """Writes something that has to be written, after what is being written.

        Raises:
            Exception: What came of a write before.
        """
        self.finish()
        self._thread = threading.Thread(target=self._run, args=(do,), daemon=True)
        self._thread.start()

    def offer(self, size: int, take: Callable[[], Any], write: Callable[[Any], None]) -> None:
        """Writes something if its time has come, and nothing is being written.

        Args:
            size: Of it, in bytes.
            take: Gives a copy, which training leaves alone.
            write: Writes that.

        Raises:
            Exception: What came of a write before.
        """
        if self._thread is not None and self._thread.is_alive() and self.share < math.inf:
            return
        self.finish()
        begun = time.monotonic()
        cost = GUESS_SECONDS + size / GUESS_BYTES_PER_SECOND if self._last is None else self._last
        if self.share < math.inf and self._spent + cost > self.share * (begun - self._began):
            return
        content = take()
        seconds = time.monotonic() - begun

        def timed() -> None:
            begun = time.monotonic()
            write(content)
            self._last = seconds + time.monotonic() - begun
            self._spent += self._last

        self.write(timed)

    def _run(self, do: Callable[[], None]) -> None:
        try:
            do()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Returns once nothing is being written.

        Raises:
            Exception: What came of it.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


def copied(state: Any) -> Any:
    """A state of tensors and plain values as it is now, in memory that nobody else writes to.

    Example:
        >>> x = torch.zeros(2)
        >>> state = copied({"x": x, "steps": [1]})
        >>> x += 1
        >>> state
        {'x': tensor([0., 0.]), 'steps': [1]}
    """
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copied(value) for value in state]
    if isinstance(state, tuple):
        return tuple(copied(value) for value in state)
    return state
