"""A pool of Ray actors that hold the data once and take measurements, of any measure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ray
import torch

from lbdist.capacity import Capacity
from lbdist.data.base import Dataset
from lbdist.errors import one_line
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

    passes: ClassVar[tuple[type[Exception], ...]] = (ray.exceptions.RayActorError,)  # a helper's death

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
    asks = capacity.process()
    remote: Any = ray.remote(num_cpus=asks.get("CPU", 0), num_gpus=asks.get("GPU", 0))(EvaluatorActor)
    waiting = deque((measurement, 0) for measurement in measurements)
    models: dict[Any, Sequence[Point]] = {}  # what each actor has loaded
    busy: dict[Any, tuple[Any, Measurement, int]] = {}
    starting: dict[Any, Any] = {}
    failed: list[tuple[Measurement, str]] = []
    idle: list[Any] = []

    helpers: dict[Any, list[Any]] = {}

    def start() -> None:
        arguments = data, store, "cuda" if capacity.gpus else "cpu", code()
        own = [remote.remote(*arguments) for _ in range(shards - 1)]
        actor = remote.remote(*arguments, own)
        helpers[actor] = own
        starting[actor.ready.remote()] = actor

    def end(actor: Any) -> None:
        for one in (actor, *helpers.pop(actor)):
            ray.kill(one)

    def fail(measurement: Measurement, why: str) -> None:
        # no row is written: a machine's trouble is no result, and the next run tries again
        failed.append((measurement, why))
        done(measurement, [{**measurement.columns(), "error": why}])

    def take(actor: Any) -> tuple[Measurement, int]:
        """The next measurement at the actor's models, else at models that no other has, else any."""
        others = [at for other, at in models.items() if other is not actor]
        chosen = next((job for job in waiting if job[0].at == models.get(actor)), None)
        chosen = chosen or next((job for job in waiting if job[0].at not in others), waiting[0])
        waiting.remove(chosen)
        models[actor] = chosen[0].at
        return chosen

    size = min(max(1, (slots or capacity.slots) // shards), len(measurements))
    tolerated = size * (retries + 1)  # deaths of actors before they could be asked anything
    for _ in range(size):
        start()
    while waiting or busy:
        while waiting and idle:
            actor = idle.pop()
            measurement, tries = take(actor)
            busy[actor.measure.remote(measurement)] = (actor, measurement, tries)
        (ready,), _ = ray.wait([*busy, *starting], num_returns=1)
        if ready in starting:
            actor = starting.pop(ready)
            try:
                ray.get(ready)
                idle.append(actor)
            except ray.exceptions.RayError as error:
                end(actor)
                tolerated -= 1
                if tolerated > 0:
                    start()
                elif not starting and not busy and not idle:
                    why = f"no process could be started: {one_line(error)[:300]}"
                    while waiting:
                        fail(waiting.popleft()[0], why)
            continue
        actor, measurement, tries = busy.pop(ready)
        try:
            rows = ray.get(ready)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if isinstance(cause, ray.exceptions.RayActorError):
                del models[actor]
                end(actor)
                start()
                if tries < retries:
                    waiting.appendleft((measurement, tries + 1))
                else:
                    fail(measurement, f"its process died {tries + 1} times: {cause.__class__.__name__}")
                continue
            assert isinstance(error, ray.exceptions.RayTaskError)
            idle.append(actor)
            if isinstance(error.cause, OSError) and error.cause.errno in FULL:
                raise error.cause from error  # every other one would fail as well
            fail(measurement, f"{type(error.cause).__name__}: {one_line(error.cause)}")
        else:
            idle.append(actor)
            done(measurement, rows)
    for actor in (*idle, *starting.values()):
        end(actor)
    return failed
