"""A pool of Ray actors that hold the data once and take measurements, of any measure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ray
import torch

from lbdist.capacity import Capacity
from lbdist.data.base import Dataset
from lbdist.errors import one_line, short
from lbdist.losses import Loss
from lbdist.machines import check_code, code
from lbdist.objective import Objective
from lbdist.plan import Measurement, Point, digest
from lbdist.results import Row
from lbdist.sharpness.evaluator import Evaluator
from lbdist.storage import FULL, Store


class Sharded(Objective):
    """f of which other actors compute parts at the same time: runs of micro-batches, summed in float64.

    Args:
        ask: Begins a part on each of the other actors, given x, v and the number of parts.
        others: How many there are.
        arguments: As of `Objective`.
        options: As of `Objective`.
    """

    def __init__(self, ask: Callable[..., list[ray.ObjectRef]], others: int, *arguments: Any, **options: Any):
        self.ask, self.others = ask, others
        super().__init__(*arguments, **options)

    def _another(self) -> Objective:
        """In this process alone: the other actors know of no other samples, labels or loss."""
        other = super()._another()
        assert isinstance(other, Sharded)
        other.others = 0
        return other

    def sums(
        self, x: torch.Tensor, v: torch.Tensor | None = None, part: int = 0, parts: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective.sums`; all of f is asked of the others, a part is this process's own."""
        if parts > 1 or not self.others:
            return super().sums(x, v, part, parts)
        self._ready()
        parts = self.others + 1
        asked = self.ask(x, v, parts)
        total, second = super().sums(x, v, 0, parts)
        for one, other in ray.get(asked):
            total, second = total + one.to(total), second + other.to(second)
        return total, second


class EvaluatorActor(Evaluator):
    """An evaluator that is an actor of the pool.

    Args:
        data: Training and test set.
        store: The storage folder.
        device: Where to compute.
        driver: The driver's code, which must be this process's.
        helpers: Actors of this kind that compute parts of f.
    """

    passes: ClassVar[tuple[type[Exception], ...]] = (
        ray.exceptions.RayActorError,  # a helper's death
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
        ray.exceptions.ObjectStoreFullError,
    )

    def __init__(
        self, data: Dataset, store: Store, device: str, driver: str, helpers: Sequence[Any] = ()
    ) -> None:
        check_code(driver)
        torch.set_num_threads(1)
        super().__init__(data, store, device)
        self.helpers = helpers

    def ready(self) -> None:
        """Returns once the process has started."""

    def _objective(
        self, point: Point, split: str, network: torch.nn.Module, loss: Loss, options: dict[str, Any]
    ) -> Objective:
        def ask(x: torch.Tensor, v: torch.Tensor | None, parts: int) -> list[ray.ObjectRef]:
            there = ray.put((x.cpu(), None if v is None else v.cpu()))
            return [
                helper.sums.remote(point, split, options, there, part, parts)
                for part, helper in enumerate(self.helpers, 1)
            ]

        return Sharded(ask, len(self.helpers), network, self._data(split), loss=loss, **options)

    def sums(
        self,
        point: Point,
        split: str,
        options: dict[str, Any],
        there: tuple[torch.Tensor, torch.Tensor | None],
        part: int,
        parts: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A part of f at a model's parameters or others of its network; see `Objective.sums`."""
        key = digest(point.key)
        if key not in self._loaded:
            self._loaded = {key: self._load(point)}
        x, v = there[0].to(self.device), there[1]
        v = None if v is None else v.to(self.device)
        total, second = self._loaded[key].objective(split, **options).sums(x, v, part, parts)
        return total.cpu(), second.cpu()


def measure_all(
    measurements: Sequence[Measurement],
    data: ray.ObjectRef,
    store: Store,
    *,
    capacity: Capacity,
    slots: int | None = None,
    shards: int = 1,
    retries: int = 2,
    done: Callable[[Measurement, list[Row]], None] = lambda measurement, rows: None,
) -> list[tuple[Measurement, str]]:
    """Makes every measurement on a pool of actors, as many as the cluster holds at any time.

    Args:
        measurements: What to measure; those at the same models go to the same actor, while others wait.
        data: Reference to training and test set, put once; f is over the training set.
        store: The storage folder, with the models; rows are written there.
        capacity: What the cluster has.
        slots: Processes that may be taken of it; None for all.
        shards: Actors that compute each f together.
        retries: Restarts of a measurement whose actor died.
        done: Called on the driver with each measurement that ended and its rows.

    Returns:
        The measurements that have no rows, and why: their actor died more often than that, a model could not
        be read, or no actor could be started.
    """
    pool = _Pool(measurements, data, store, capacity, shards, retries, done)
    pool.run(min(max(1, (slots or capacity.slots) // shards), len(measurements)))
    return pool.failed


class _Pool:
    """The actors of one call of `measure_all`, whose arguments these are, and what they do."""

    def __init__(
        self,
        measurements: Sequence[Measurement],
        data: ray.ObjectRef,
        store: Store,
        capacity: Capacity,
        shards: int,
        retries: int,
        done: Callable[[Measurement, list[Row]], None],
    ) -> None:
        self.arguments = data, store, "cuda" if capacity.gpus else "cpu", code()
        self.shards, self.retries, self.done = shards, retries, done
        asks = capacity.process()
        self.remote: Any = ray.remote(num_cpus=asks.get("CPU", 0), num_gpus=asks.get("GPU", 0))(
            EvaluatorActor
        )
        self.waiting = deque((measurement, 0) for measurement in measurements)
        self.models: dict[Any, Sequence[Point]] = {}  # what each actor has loaded
        self.helpers: dict[Any, list[Any]] = {}
        self.starting: dict[Any, Any] = {}
        self.busy: dict[Any, tuple[Any, Measurement, int]] = {}
        self.idle: list[Any] = []
        self.failed: list[tuple[Measurement, str]] = []
        self.tolerated = 0

    def run(self, size: int) -> None:
        """Takes every measurement on so many actors."""
        self.tolerated = size * (self.retries + 1)  # deaths of actors before they could be asked anything
        for _ in range(size):
            self._start()
        while self.waiting or self.busy:
            while self.waiting and self.idle:
                actor = self.idle.pop()
                measurement, tries = self._next(actor)
                self.busy[actor.measure.remote(measurement)] = (actor, measurement, tries)
            (ready,), _ = ray.wait([*self.busy, *self.starting], num_returns=1)
            if ready in self.starting:
                self._started(ready)
            else:
                self._measured(ready)
        for actor in (*self.idle, *self.starting.values()):
            self._end(actor)

    def _start(self) -> None:
        own = [self.remote.remote(*self.arguments) for _ in range(self.shards - 1)]
        actor = self.remote.remote(*self.arguments, own)
        self.helpers[actor] = own
        self.starting[actor.ready.remote()] = actor

    def _end(self, actor: Any) -> None:
        for one in (actor, *self.helpers.pop(actor)):
            ray.kill(one)

    def _fail(self, measurement: Measurement, why: str) -> None:
        # no row is written: a machine's trouble is no result, and the next run tries again
        self.failed.append((measurement, why))
        self.done(measurement, [{**measurement.columns(), "error": why}])

    def _next(self, actor: Any) -> tuple[Measurement, int]:
        """The next measurement at the actor's models, else at models that no other has, else any."""
        others = [at for other, at in self.models.items() if other is not actor]
        chosen = next((job for job in self.waiting if job[0].at == self.models.get(actor)), None)
        chosen = chosen or next((job for job in self.waiting if job[0].at not in others), self.waiting[0])
        self.waiting.remove(chosen)
        self.models[actor] = chosen[0].at
        return chosen

    def _started(self, ready: Any) -> None:
        """An actor has started, or died before."""
        actor = self.starting.pop(ready)
        try:
            ray.get(ready)
            self.idle.append(actor)
        except ray.exceptions.RayError as error:
            self._end(actor)
            self.tolerated -= 1
            if self.tolerated > 0:
                self._start()
            elif not self.starting and not self.busy and not self.idle:
                why = f"no process could be started: {one_line(error)[:300]}"
                while self.waiting:
                    self._fail(self.waiting.popleft()[0], why)

    def _measured(self, ready: Any) -> None:
        """A measurement has ended, or its actor died."""
        actor, measurement, tries = self.busy.pop(ready)
        try:
            rows = ray.get(ready)
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if isinstance(cause, ray.exceptions.RayError):  # a death, or memory that ran out
                self._died(actor, measurement, tries, cause)
                return
            self.idle.append(actor)
            if isinstance(cause, OSError) and cause.errno in FULL:
                raise cause from error  # every other one would fail as well
            self._fail(measurement, f"{type(cause).__name__}: {short(str(cause))}")
        else:
            self.idle.append(actor)
            self.done(measurement, rows)

    def _died(self, actor: Any, measurement: Measurement, tries: int, cause: Exception) -> None:
        """Starts another actor, which takes what this one was at."""
        del self.models[actor]
        self._end(actor)
        self._start()
        if tries < self.retries:
            self.waiting.appendleft((measurement, tries + 1))
        else:
            why = f"its process died {tries + 1} times: {type(cause).__name__}"
            if not isinstance(cause, ray.exceptions.RayActorError):  # which says no more
                why += f" ({short(str(cause))})"
            self._fail(measurement, why)
