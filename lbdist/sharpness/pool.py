"""A pool of Ray actors that hold the data once and take measurements, of any measure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
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


class Evaluator:
    """Measures in one process; the data stay on its device, the last models and their f in memory."""

    def __init__(self, data: Dataset, store: Store, device: str, driver: str) -> None:
        check_code(driver)
        torch.set_num_threads(1)
        self.store, self.device = store, device
        # the object store's arrays are read-only and are never written to here
        self.data = tuple(torch.tensor(a, device=device) for a in (data.train.inputs, data.train.labels))
        self._loaded: dict[str, Minimiser] = {}

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
            file = Path(point.file)
            model = checkpoint.load_model(Store(file.parent), file.name, self.device, own=False)
        network.load_state_dict(model)
        loss, made = build(cell.loss, "loss"), {}

        def objective(**options: Any) -> Objective:
            key = tuple(sorted(options.items()))
            if key not in made:
                made[key] = Objective(network, self.data, loss=loss, **options)  # type: ignore[arg-type]
            return made[key]

        return Minimiser(flatten(network), start, objective)

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
    retries: int = 2,
    done: Callable[[Measurement, list[Row]], None] = lambda measurement, rows: None,
) -> list[tuple[Measurement, str]]:
    """Makes every measurement on a pool of actors, as many as the cluster holds at any time.

    Args:
        measurements: What to measure; those at the same models go to the same actor, while others wait.
        data: Reference to training and test set, put once; f is over the training set.
        store: The storage folder, with the models; rows are written there.
        capacity: What the cluster has.
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

    def start() -> None:
        actor = remote.remote(data, store, "cuda" if capacity.gpus else "cpu", code())
        starting[actor.ready.remote()] = actor

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

    size = min(capacity.slots, len(measurements))
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
        except ray.exceptions.RayActorError as error:
            del models[actor]
            start()
            if tries < retries:
                waiting.appendleft((measurement, tries + 1))
            else:
                fail(measurement, f"its process died {tries + 1} times: {error.__class__.__name__}")
        except ray.exceptions.RayTaskError as error:
            idle.append(actor)
            if isinstance(error.cause, OSError) and error.cause.errno in FULL:
                raise error.cause from error  # every other one would fail as well
            fail(measurement, f"{type(error.cause).__name__}: {one_line(error.cause)}")
        else:
            idle.append(actor)
            done(measurement, rows)
    for actor in (*idle, *starting.values()):
        ray.kill(actor)
    return failed
