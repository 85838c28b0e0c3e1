"""Ray Tune over the cells of a study: a `Schedule` hands them out as trials of one Tune experiment."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch
from hydra.utils import instantiate
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher
from ray.tune.search.variant_generator import generate_variants

from lbdist import results
from lbdist.cluster import Capacity
from lbdist.data.base import Dataset
from lbdist.errors import InputError, one_line, require
from lbdist.nodes import check_code, code
from lbdist.plan import AUTO, Cell
from lbdist.storage import Damaged, Store
from lbdist.studies.base import Final, Study, cells_of
from lbdist.training import checkpoint, loop
from lbdist.training.precision import Arithmetic, in_which

REPORT_SECONDS = 2.0
"""A report costs the driver time: between the points of the test curve there is one this often."""


def settings(space: Mapping[str, Any] | None, samples: int, key: str) -> list[dict[str, Any]]:
    """The settings that a remedy's search space yields: grids whole, continuous spaces drawn.

    Args:
        space: A mapping from a hyperparameter to a list (a grid) or to a Tune domain, written as
            `{_target_: ray.tune.loguniform, lower: 1.0e-4, upper: 1.0}`.
        samples: Draws where there is a domain.
        key: Where the space stands in the configuration, for the complaint.

    Returns:
        The settings, the same at every call.

    Raises:
        InputError: A space that Tune does not accept.
    """
    require(space is None or isinstance(space, Mapping), f"{key}.search", space, "a mapping or null")
    try:
        spec = {
            name: tune.grid_search(list(values)) if isinstance(values, list) else instantiate(values)
            for name, values in (space or {}).items()
        }
        drawn = any(isinstance(value, tune.search.sample.Domain) for value in spec.values())
        random = np.random.RandomState(0)
        found = [
            dict(config)
            for _ in range(samples if drawn else 1)
            for _, config in generate_variants(spec, random_state=random)
        ]
    except Exception as error:
        raise InputError(f"{key}.search={space}: {one_line(error)}") from error
    return [{name: getattr(value, "item", lambda v=value: v)() for name, value in s.items()} for s in found]


@dataclass(frozen=True)
class Job:
    """What one trial runs: one cell, several of one worker group, or several at once in one process."""

    cells: tuple[Cell, ...]
    workers: int = 1

    @property
    def replicas(self) -> bool:
        """Whether its cells are trained at once."""
        return self.workers == 1 and len(self.cells) > 1

    @property
    def id(self) -> str:
        """The trial's name: a rerun gives the same."""
        return self.cells[0].id

    @property
    def label(self) -> str:
        """What people call the job."""
        seeds: dict[str, list[str]] = {}
        for cell in self.cells:
            seeds.setdefault(cell.label_without_seed, []).append(str(cell.seed))
        return "; ".join(f"{name} seed {', '.join(found)}" for name, found in seeds.items())

    def describe(self) -> dict[str, Any]:
        """The job as a trial's configuration, in plain values that Tune's tables show."""
        first = self.cells[0]
        return {
            "cell": self.id,
            "cells": " ".join(cell.id for cell in self.cells),
            "stage": first.stage,
            "method": first.method,
            "remedy": first.remedy,
            "setting": first.setting,
            "seeds": " ".join(str(cell.seed) for cell in self.cells),
            "global_batch_size": first.global_batch_size,
            "num_workers": self.workers,
            **first.hyperparameters(),
        }


class Watch(Protocol):
    """Who is told what the trials do."""

    def began(self, job: Job) -> None:
        """A job was handed out."""

    def ran(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """A job reported its latest metrics."""

    def ended(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """A job ended, with its final metrics or its `error`."""


class Book:
    """What is done: each cell is looked up in the storage folder once, and booked when it ends.

    A file that is damaged is set aside, with a line that says so, and counts as missing; a cell of which one
    is missing counts as never run.

    Args:
        store: The storage folder.
        say: Told of what is damaged; None leaves the folder as it is, for a dry run.
    """

    def __init__(self, store: Store, say: Callable[[str], None] | None = None) -> None:
        self.store, self.say = store, say
        self._found: dict[tuple[str, frozenset[int]], Final | None] = {}
        self._ended: dict[str, Final] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, cell: Cell) -> Final | None:
        """The final metrics of a cell that is finished with every model that it keeps, else None."""
        if cell.id in self._ended:
            return self._ended[cell.id]
        key = (cell.id, cell.keep)
        if key not in self._found:
            rows = self.rows(results.cell_file(cell.id))
            whole = bool(rows) and self._described(cell) and loop.has_models(self.store, cell, rows)
            self._found[key] = loop.final_metrics(rows) if whole else None
        return self._found[key]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a cell's or a measurement's file, read once; none where it is missing or damaged."""
        if name not in self._rows:
            found = self._sound(name, lambda: results.read_rows(self.store, name))
            if not found:
                return []
            self._rows[name] = found
        return self._rows[name]

    def _described(self, cell: Cell) -> bool:
        """Whether `cell.json` is there, with the code that the rows come from; if not, they are dropped."""
        name = f"{results.cell_folder(cell.id)}/cell.json"
        return self._needed(cell, name, lambda: results.read_cell(self.store, cell.id))

    def check(self, cells: Sequence[Cell], models: Iterable[tuple[Cell, int | None]]) -> None:
        """Looks through the files that are about to be read: resume files, and models.

        Args:
            cells: Cells that are going to run, from where they stopped.
            models: Cells that are finished, and the epoch (None: the last) of a model of each.
        """
        for cell in cells:
            name = f"{results.cell_folder(cell.id)}/{checkpoint.RESUME}"
            self._sound(name, functools.partial(checkpoint.check, self.store / results.cell_folder(cell.id)))
        for cell, epoch in {(cell.id, epoch): (cell, epoch) for cell, epoch in models}.values():
            if cell.id in self._ended:
                continue  # written just now
            folder, file = self.store / results.cell_folder(cell.id), checkpoint.model_name(epoch)
            name = f"{results.cell_folder(cell.id)}/{file}"
            self._needed(cell, name, functools.partial(checkpoint.load_model, folder, file))

    def _sound(self, name: str, read: Callable[[], Any], of: Cell | None = None) -> Any:
        """What a file holds; None where it is damaged, or missing, which is told if it is part of a cell."""
        say = self.say or (lambda line: None)
        again = f"{of.label} is to be trained again" if of else "to be computed again"
        try:
            return read()
        except FileNotFoundError:
            if of is not None:
                say(f"{self.store}/{name} is missing; {again}")
        except Damaged as error:
            aside = self.store.set_aside(name).rpartition("/")[2] if self.say else ""
            say(f"{error}; set aside as {aside}, {again}")
        return None

    def _needed(self, cell: Cell, name: str, read: Callable[[], Any]) -> bool:
        """Whether a part of a finished cell is sound; if not, the cell counts as one that never ran."""
        if self._sound(name, read, cell):
            return True
        if self.say is not None:
            self.store.remove(results.cell_file(cell.id))
        self._rows.pop(results.cell_file(cell.id), None)
        self._ended.pop(cell.id, None)
        for key in [key for key in self._found if key[0] == cell.id]:
            self._found[key] = None
        return False

    def end(self, cell: Cell, final: Final) -> None:
        """Books a cell that ended; an empty `final` is a failure."""
        self._ended[cell.id] = final


class Schedule(Searcher):
    """Hands out the cells of a study that are not done, and asks the study again after each that ends.

    Cells come before workers: while as many wait as slots are free, `auto` gives a cell one process, since
    two cells side by side beat one cell on two workers; it gives more only when slots would stand idle. The
    processes in use stay within the capacity, so a worker group never waits on trials that wait on it.

    Args:
        study: The study.
        book: What is done.
        capacity: What the cluster has.
        max_concurrent: Most trials at once; None for as many as fit.
        cost: How long a cell takes, in any unit; the longest go first.
        worthwhile: The most workers that a cell's work pays for.
        replicas: The most cells of its kind that a process trains at once.
        watch: Who is told.
    """

    def __init__(
        self,
        study: Study,
        book: Book,
        capacity: Capacity,
        *,
        max_concurrent: int | None = None,
        cost: Callable[[Cell], float] = lambda cell: 1.0,
        worthwhile: Callable[[Cell], float] = lambda cell: 1.0,
        replicas: Callable[[Cell], int] = lambda cell: 1,
        watch: Watch | None = None,
    ) -> None:
        super().__init__()
        self.study, self.book, self.capacity, self.watch = study, book, capacity, watch
        self.max_concurrent = max_concurrent or capacity.slots
        self.cost, self.worthwhile, self.replicas = cost, worthwhile, replicas
        self.running: dict[str, Job] = {}
        self.failed: list[tuple[Cell, str]] = []
        self._waiting: list[Cell] | None = None
        # finished before: they report once more, last, so that Tune's folder is whole
        self.again = [cell for cell in self.cells().values() if book(cell) is not None]

    def cells(self) -> dict[str, Cell]:
        """The study's cells as far as they are known, by id."""
        return cells_of(self.study, self.book)

    def waiting(self) -> list[Cell]:
        """The known cells that are neither done nor running: groups first, then what takes longest."""
        if self._waiting is None:
            handed = {cell.id for job in self.running.values() for cell in job.cells}
            found = [c for c in self.cells().values() if c.id not in handed and self.book(c) is None]
            self._waiting = sorted(found, key=lambda cell: (-cell.asked_workers, -self.cost(cell)))
        return self._waiting

    def next(self, name: str) -> Job | None:
        """The next job that fits beside those running, which it joins under a name."""
        width = self.capacity.width
        free = self.capacity.slots - sum(width(job.workers) for job in self.running.values())
        if len(self.running) >= self.max_concurrent or free < 1:
            return None
        waiting = self.waiting()
        if waiting:
            job = self._job(waiting, free)
        elif self.again:
            job = Job((self.again[0],), self.again[0].asked_workers)
        else:
            return None
        if width(job.workers) > free:
            return None  # a group waits for room rather than starve
        now = [cell for other in self.running.values() for cell in other.cells]
        if now and any(cell.alone for cell in (*job.cells, *now)):
            return None
        if waiting:
            taken = {cell.id for cell in job.cells}
            self._waiting = [cell for cell in waiting if cell.id not in taken]
        else:
            self.again.pop(0)
        self.running[name] = job
        return job

    def _job(self, waiting: Sequence[Cell], free: int) -> Job:
        """The first cell, with its replicas; what asks for a group of one size shares as few as fit."""
        first = waiting[0]
        kin = self._kin(first, waiting) if first.asked_workers == 1 else []
        if len(kin) > 1:
            return Job(tuple(kin))
        if first.num_workers == AUTO:
            share = 1 if len(waiting) >= free else free // len(waiting) // self.capacity.share
            return Job((first,), max(1, min(share, int(self.worthwhile(first)))))
        workers = first.asked_workers
        if workers == 1:
            return Job((first,))
        same = [cell for cell in waiting if cell.num_workers == workers]
        groups = max(1, free // self.capacity.width(workers))
        return Job(tuple(same[: math.ceil(len(same) / groups)]), workers)

    def _kin(self, first: Cell, waiting: Sequence[Cell]) -> list[Cell]:
        """A cell and those that are trained at once with it: spread over all slots, in as few rounds."""
        most, slots = self.replicas(first), min(self.capacity.slots, self.max_concurrent)
        if most == 1:
            return [first]
        kin = [cell for cell in waiting if cell.kind == first.kind]
        at_work = [cell for job in self.running.values() for cell in job.cells if cell.kind == first.kind]
        total = len(kin) + len(at_work)
        rounds = math.ceil(total / (most * slots))
        return kin[: math.ceil(total / (rounds * slots))]

    def complete(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Books a job that ended."""
        job = self.running.pop(name)
        for cell in job.cells:
            if self.book(cell) is not None:
                continue  # finished before, and only reported again
            if "error" not in metrics and len(job.cells) == 1:
                self.book.end(cell, metrics)
            else:  # of several, some may be finished
                rows = loop.finished_rows(self.book.store, cell)
                self.book.end(cell, loop.final_metrics(rows) if rows else {})
                self.failed += [] if rows else [(cell, self._why(cell, metrics))]
        self._waiting = None
        if self.watch is not None:
            self.watch.ended(job, metrics)

    def _why(self, cell: Cell, metrics: Mapping[str, Any]) -> str:
        """Why a cell has no rows: what a process that was late wrote of it, else what its job reported."""
        store, file = self.book.store, results.late_file(cell.id)
        late = store.read(file).decode() if store.exists(file) else ""
        return late or str(metrics.get("error", "its process ended before it did"))

    # Tune's side

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """The space is the study's own."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, None while none fits, and FINISHED at the end."""
        job = self.next(trial_id)
        if job is None:
            return None if self.running or self.waiting() or self.again else Searcher.FINISHED
        for cell in job.cells:
            if self.book(cell) is None:
                write_cell(self.book.store, cell)
        if self.watch is not None:
            self.watch.began(job)
        return {**job.describe(), "handed_out": time.time()}

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        """Tells who watches."""
        job = self.running.get(trial_id)
        if job is not None and self.watch is not None:
            self.watch.ran(job, loop.unlabelled(result))

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Books a trial that ended."""
        if error or not result:
            result = {"error": "its process died more often than `retries` allows"}
        self.complete(trial_id, loop.unlabelled(result))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: a rerun plans anew from the rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to take back: a rerun plans anew from the rows."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "watch": None, "cost": None, "worthwhile": None, "replicas": None}


def _mean_metrics(finals: Sequence[Final]) -> dict[str, float]:
    """The final metrics of a job: the means over its cells, of those that all have."""
    shared = [name for name in finals[0] if all(name in final for final in finals)]
    return {name: float(np.mean([final[name] for final in finals])) for name in shared}


def trial(
    config: dict[str, Any],
    data: list[ray.ObjectRef],
    store: Store,
    folder: Store,
    capacity: Capacity,
    retries: int,
    regroup_seconds: float,
    driver: str,
    arithmetic: Mapping[str, Arithmetic],
) -> None:
    """What a trial runs: cells in this process, or in a worker group of their own.

    A death of the process, or of the group's controller, is Tune's to retry, one in the group Ray Train's. An
    exception would come again: it is reported as the trial's `error`.
    """
    use_gpu = capacity.gpus > 0
    latest = time.monotonic()

    def report(metrics: dict[str, float]) -> None:
        # a report costs the driver time: the points of the test curve do, and one every few seconds
        nonlocal latest
        if not math.isnan(metrics["loss"]) or time.monotonic() > latest + REPORT_SECONDS:
            latest = time.monotonic()
            tune.report(loop.labelled(cells[0], metrics))

    try:
        check_code(driver)
        cells = [read_cell(store, name) for name in config["cells"].split()]
        if config["num_workers"] > 1:
            if not all(loop.finished_rows(store, cell) for cell in cells):
                from lbdist.training import ray_train  # slow to import, and few studies need it here

                ray_train.fit(
                    cells,
                    config["num_workers"],
                    data[0],
                    store,
                    folder,
                    capacity=capacity,
                    retries=retries,
                    regroup_seconds=regroup_seconds,
                    callbacks=[TuneReportCallback()],
                    arithmetic=arithmetic,
                    began=config["handed_out"],
                )
            final = _mean_metrics([loop.final_metrics(loop.finished_rows(store, cell)) for cell in cells])
        else:
            if not use_gpu:
                torch.set_num_threads(1)
            dataset: Dataset = ray.get(data[0])
            device = "cuda" if use_gpu else "cpu"
            how = in_which(arithmetic, cells[0])
            began = config["handed_out"]
            if len(cells) > 1:
                loop.run_cells(cells, dataset, store, device, report, how, began)
                final = _mean_metrics([loop.final_metrics(loop.finished_rows(store, cell)) for cell in cells])
            else:
                final = loop.run_cell(cells[0], dataset, store, device, report, how, began)
    except ray.exceptions.RayActorError:
        raise  # a death in the group's own machinery, which a new group gets over
    except Exception as error:
        tune.report({"error": f"{type(error).__name__}: {one_line(error)}"})
    else:
        tune.report(loop.labelled(cells[0], final))


def grid(folder: str | Path) -> tune.ResultGrid:
    """Tune's results of a study, each trial with its configuration, metrics and files.

    Args:
        folder: The study's folder (`results/remedies`), or its URI.
    """
    store = Store(folder) / "tune"
    tuner = tune.Tuner.restore(store.path, trainable=trial, storage_filesystem=store.filesystem)
    return tuner.get_results()


def read_cell(store: Store, name: str) -> Cell:
    """The cell whose configuration `cells/<id>/cell.json` holds."""
    return Cell.of_record(results.read_cell(store, name)["cell"])


def write_cell(store: Store, cell: Cell) -> None:
    """Writes a cell's configuration beside its rows, with the versions and the machine."""
    content = {"cell": cell.record(), "columns": cell.columns(), "provenance": results.provenance()}
    results.write_cell(store, cell.id, content)


def run(
    schedule: Schedule,
    data: ray.ObjectRef,
    folder: Store,
    *,
    retries: int,
    regroup_seconds: float,
    arithmetic: Mapping[str, Arithmetic],
) -> None:
    """Runs every cell of a study that is not done; the others only report theirs.

    Args:
        schedule: Hands out the cells.
        data: Reference to the `Dataset`.
        folder: The study's folder; Tune's own is `tune` in it.
        retries: Restarts of a trial that failed.
        regroup_seconds: How long a group waits for workers that it lost before it goes on with fewer.
        arithmetic: What each precision that cells ask for comes to.
    """
    capacity = schedule.capacity

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        # the driver of a worker group computes nothing; the group asks for its own CPUs or GPUs
        one = capacity.process() if config["num_workers"] == 1 else {"memory": 1.0}
        return tune.PlacementGroupFactory([one])

    folder.remove("tune")  # finished cells report again, so that it is whole
    trainable = tune.with_parameters(
        trial,
        data=[data],
        store=schedule.book.store,
        folder=folder / "train",
        capacity=capacity,
        retries=retries,
        regroup_seconds=regroup_seconds,
        driver=code(),
        arithmetic=arithmetic,
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=schedule,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda t: t.config["cell"],
            trial_dirname_creator=lambda t: t.config["cell"],
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            failure_config=tune.FailureConfig(max_failures=retries),
            verbose=0,
        ),
    )
    tuner.fit()
