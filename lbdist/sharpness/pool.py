"""A pool of Ray actors that hold the data once and take measurements, of any measure."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch

from lbdist import results
from lbdist.cluster import Capacity
from lbdist.config.build import build
from lbdist.data.base import Dataset
from lbdist.errors import one_line
from lbdist.networks.flat import flatten
from lbdist.nodes import check_code, code
from lbdist.objective import Objective
from lbdist.plan import Measurement, Point, digest, title
from lbdist.sharpness.measure import Measure, Minimiser, Row
from lbdist.storage import FULL, Store
from lbdist.training import checkpoint
from lbdist.training.loop import on_device


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

    def _alone(self, samples: int, part: tuple[int, int]) -> bool:
        """Whether this process computes it: a part, or a few samples, or f where there is no other actor."""
        return part != (0, 1) or not self.others or samples < len(self.labels)

    def _together(self, x: torch.Tensor, v: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        parts = self.others + 1
        asked = self.ask(x, v, parts)
        total, second = self.sums(x, v, 0, parts)
        for one, other in ray.get(asked):
            total, second = total + one.to(total), second + other.to(second)
        return total, second

    def _sums(
        self, x: torch.Tensor, samples: int, part: tuple[int, int] = (0, 1)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._alone(samples, part):
            return super()._sums(x, samples, part)
        return self._together(x, None)

    def _curvature_sums(
        self, x: torch.Tensor, v: torch.Tensor, samples: int, part: tuple[int, int] = (0, 1)
    ) -> torch.Tensor:
        if self._alone(samples, part):
            return super()._curvature_sums(x, v, samples, part)
        return self._together(x, v)[1]


class Evaluator:
    """Measures in one process; the data stay on its device, the last models and their f in memory.

    Args:
        data: Training and test set.
        store: The storage folder.
        device: Where to compute.
        driver: The driver's code, which must be this process's.
        helpers: Actors of this kind that compute parts of f.
    """

    def __init__(
        self, data: Dataset, store: Store, device: str, driver: str, helpers: Sequence[Any] = ()
    ) -> None:
        check_code(driver)
        torch.set_num_threads(1)
        self.store, self.device = store, device
        self._splits = {"train": data.train, "test": data.test}
        self._loaded: dict[str, Minimiser] = {}
        self.helpers = helpers

    @functools.cache  # noqa: B019
    def _data(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A split on the device, put there when it is first asked for: few measures need the test set."""
        return on_device(self._splits[split], self.device)

    def ready(self) -> None:
        """Returns once the process has started."""

    def minimisers(self, points: Sequence[Point]) -> list[Minimiser]:
        """The models at these points; those of the call before stay loaded."""
        keys = [digest(point.key) for point in points]
        found = zip(keys, points, strict=True)
        self._loaded = {key: self._loaded.get(key) or self._load(point) for key, point in found}
        return [self._loaded[key] for key in keys]

    def _load(self, point: Point) -> Minimiser:
        cell = point.cell
        network = checkpoint.starting_point(self.store, cell, self.device)
        start = flatten(network)
        if point.file is None:
            folder = self.store / results.cell_folder(cell.id)
            model = checkpoint.load_model(folder, checkpoint.model_name(point.epoch), self.device)
        else:
            model = checkpoint.load_file(network, point.file)
        network.load_state_dict(model)
        loss, made = build(cell.loss, "loss"), {}

        def objective(split: str = "train", **options: Any) -> Objective:
            key = split, *sorted(options.items())
            if key not in made:

                def ask(x: torch.Tensor, v: torch.Tensor | None, parts: int) -> list[ray.ObjectRef]:
                    there = ray.put((x.cpu(), None if v is None else v.cpu()))
                    return [
                        helper.sums.remote(point, split, options, there, part, parts)
                        for part, helper in enumerate(self.helpers, 1)
                    ]

                made[key] = Sharded(ask, len(self.helpers), network, self._data(split), loss=loss, **options)
            return made[key]

        return Minimiser(flatten(network), start, objective)

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

    def measure(self, measurement: Measurement) -> list[Row]:
        """Measures, writes the rows and returns them; what cannot be measured is a row with its error.

        Raises:
            Exception: A model could not be read, or the rows not be written: that is no result, and the next
                run tries again.
        """
        name, file = f"measure.{title(measurement.measure)}", results.measurement_file(measurement.id)
        failed: Row = {"metric": title(measurement.measure)}
        at = self.minimisers(measurement.at)
        try:
            measure: Measure = build(measurement.measure, name, kind=Measure)
            failed = measure.failed()
            rows = [{**measurement.columns(), **row} for row in measure(at)]
            table = results.as_table(rows)
        except ray.exceptions.RayActorError:
            raise  # a helper's death is no result
        except Exception as error:
            text = f"{type(error).__name__}: {one_line(error)}"
            failed |= {"value": float("nan"), "converged": False, "error": text}
            rows = [{**measurement.columns(), **failed}]
            table = results.as_table(rows)
        results.write_rows(self.store, file, table)
        return rows


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
    remote: Any = ray.remote(num_cpus=asks.get("CPU", 0), num_gpus=asks.get("GPU", 0))(Evaluator)
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
