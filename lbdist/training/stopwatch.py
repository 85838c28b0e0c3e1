"""A stopwatch for the phases of a training step, and workers and a learner that it watches."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lbdist.remedies.base import Batch
from lbdist.training.batches import Workers
from lbdist.training.learner import Learner


class Stopwatch:
    """Adds up the time of phases; a phase within another is taken from the outer one.

    On a GPU it puts events into the stream and waits for nothing, so that it does not disturb what it times.

    Args:
        device: Of which the time is taken.

    Attributes:
        on: Whether it runs; else a phase costs next to nothing.

    Example:
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> watch.on = True
        >>> with watch.phase("backward"):
        ...     with watch.phase("all_reduce"):
        ...         pass
        >>> sorted(watch.seconds())
        ['all_reduce', 'backward', 'other']
    """

    def __init__(self, device: torch.device) -> None:
        self.on, self._gpu = False, device.type == "cuda"
        self._now = ["other"]
        self._marks: list[tuple[str, Any]] = []

    def _mark(self) -> None:
        moment: Any = time.perf_counter()
        if self._gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((self._now[-1], moment))

    def phase(self, name: str) -> contextlib.AbstractContextManager[object]:
        """Counts what is done in the context as a phase of this name."""
        return _Phase(self, name) if self.on else _NOTHING

    def begin(self, name: str) -> None:
        """A phase begins within the present one."""
        self._now.append(name)
        self._mark()

    def end(self) -> None:
        """The present phase ends."""
        self._now.pop()
        self._mark()

    def seconds(self) -> dict[str, float]:
        """The time of each phase since it was last asked; of a GPU, once it has got that far."""
        self._mark()
        if self._gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (name, begun), (_, ended) in itertools.pairwise(self._marks):
            taken = begun.elapsed_time(ended) / 1000 if self._gpu else ended - begun
            found[name] = found.get(name, 0.0) + taken
        self._marks.clear()
        return found


class _Phase:
    """What `contextlib.contextmanager` would make, in a third of the time."""

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self.watch, self.name = watch, name

    def __enter__(self) -> None:
        self.watch.begin(self.name)

    def __exit__(self, *_: object) -> None:
        self.watch.end()


_NOTHING: contextlib.AbstractContextManager[object] = contextlib.nullcontext()


@dataclass(frozen=True)
class WatchedWorkers(Workers):
    """Workers whose collective calls are timed and counted.

    Attributes:
        watch: The stopwatch.
        calls: While it runs, the bytes of each call.
    """

    watch: Stopwatch = field(default_factory=lambda: Stopwatch(torch.device("cpu")))
    calls: list[int] = field(default_factory=list)

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Workers.sum`."""
        return self._counted(tensor, lambda: Workers.sum(self, tensor))

    def gather(self, tensor: Tensor) -> Tensor:
        """See `Workers.gather`."""
        return self._counted(tensor, lambda: Workers.gather(self, tensor))

    def _counted(self, tensor: Tensor, call: Callable[[], Tensor]) -> Tensor:
        if self.size == 1 or not self.watch.on:
            return call()
        known = len(self.calls)
        with self.watch.phase("all_reduce"):
            found = call()
        self.calls[known:] = [tensor.nbytes]  # a small sum gathers: one call
        return found


class WatchedLearner(Learner):
    """A learner whose phases are timed by the stopwatch of its `WatchedWorkers`."""

    workers: WatchedWorkers

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.buckets is not None:
            finish = self.buckets.finish

            def finished() -> None:
                with self.workers.watch.phase("gradient"):  # of which a part hides
                    finish()
                if self.workers.watch.on:
                    self.workers.calls.extend(self.buckets.sizes if self.buckets else [])

            self.buckets.finish = finished  # type: ignore[method-assign]

    def backward(self, batch: Batch, weight: float, statistics: bool) -> None:
        """The phase `backward`, of which the forward pass within it is no part."""
        with self.workers.watch.phase("backward"):
            super().backward(batch, weight, statistics)

    def input_gradient(self, batch: Batch) -> Tensor:
        """The phase `backward`, likewise."""
        with self.workers.watch.phase("backward"):
            return super().input_gradient(batch)

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with self.workers.watch.phase("forward"):
            return super()._loss(inputs, labels)

    def update(self) -> None:
        """One step of the optimiser."""
        with self.workers.watch.phase("optimizer"):
            super().update()
