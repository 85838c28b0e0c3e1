"""Ray Tune over the cells of a study: search, then confirmation, as trials of one Tune experiment."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from hydra.utils import instantiate
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher
from ray.tune.search.variant_generator import generate_variants

from lbdist import results
from lbdist.data.base import Dataset
from lbdist.errors import InputError, require
from lbdist.plan import Cell, Plan, name_setting
from lbdist.storage import Store
from lbdist.training import loop


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
        raise InputError(f"{key}.search={space}: {' '.join(str(error).split())}") from error
    return [{name: getattr(value, "item", lambda v=value: v)() for name, value in s.items()} for s in found]


@dataclass(frozen=True)
class Capacity:
    """What the cluster has: CPUs, GPUs."""

    cpus: int
    gpus: int

    @classmethod
    def of_cluster(cls) -> Capacity:
        """The connected cluster's resources."""
        have = ray.cluster_resources()
        return cls(int(have.get("CPU", 0)), int(have.get("GPU", 0)))

    @property
    def slots(self) -> int:
        """Training processes that run at once: a GPU each where there are GPUs, else a CPU each."""
        return self.gpus or self.cpus


@dataclass(frozen=True)
class Job:
    """What one trial runs: one cell, or several of one worker group."""

    cells: tuple[Cell, ...]

    @property
    def id(self) -> str:
        """The trial's name: a rerun gives the same."""
        return self.cells[0].id

    @property
    def workers(self) -> int:
        """Training processes."""
        return self.cells[0].num_workers

    def describe(self) -> dict[str, Any]:
        """The job as a trial's configuration, in plain values that Tune's tables show."""
        first = self.cells[0]
        return {
            "cell": self.id,
            "cells": " ".join(cell.id for cell in self.cells),
            "stage": first.stage,
            "method": first.method,
            "remedy": first.remedy_name,
            "setting": first.setting,
            "seeds": " ".join(str(cell.seed) for cell in self.cells),
            "global_batch_size": first.global_batch_size,
            "num_workers": first.num_workers,
        }


class Study(Searcher):
    """Hands out the jobs of a study: the baselines and the search, then what the search has chosen.

    Ray Tune asks it for trials. It keeps the processes in use within the capacity, so that a worker group
    never waits on trials that wait on it.

    Args:
        plan: The study's cells.
        capacity: Slots for training processes.
        store: The study's folder.
        max_concurrent: Most trials at once; None for as many as fit.
        finished: Called with each job and its final metrics, or its `error`.
    """

    def __init__(
        self,
        plan: Plan,
        capacity: Capacity,
        store: Store,
        max_concurrent: int | None = None,
        finished: Callable[[Job, Mapping[str, Any]], None] = lambda job, metrics: None,
    ) -> None:
        super().__init__()
        self.plan, self.capacity, self.store, self.finished = plan, capacity, store, finished
        self.max_concurrent = max_concurrent or capacity.slots
        self.cells: dict[str, Cell] = {}
        self.waiting: list[Job] = []
        self.running: dict[str, Job] = {}
        self.failed: list[Job] = []
        self.scores: dict[str, dict[str, list[float]]] = {name: {} for name in plan.searched()}
        self.unscored = Counter(cell.remedy_name for cell in plan.search())
        self._add(plan.baselines() + plan.search())
        for remedy in plan.remedies():
            if remedy not in self.scores:
                self._add(plan.confirm(remedy, plan.candidates[remedy].settings[0]))

    def _add(self, cells: Sequence[Cell]) -> None:
        """Queues cells: one a job, but the seeds of a multi-worker cell share as few groups as fit."""
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            self.cells[cell.id] = cell
            alone = cell.num_workers == 1
            groups.setdefault(cell.id if alone else f"{cell.stage} {cell.label_without_seed}", []).append(
                cell
            )
        for members in groups.values():
            size = math.ceil(len(members) / max(1, self.capacity.slots // members[0].num_workers))
            self.waiting += [Job(tuple(members[i : i + size])) for i in range(0, len(members), size)]
        # groups first, while the machine is empty; then what takes longest
        self.waiting.sort(key=lambda job: (-job.workers, job.cells[0].method != "SB"))

    def next(self, name: str) -> Job | None:
        """The next job that fits beside those running, which it joins under a name."""
        used = sum(job.workers for job in self.running.values())
        if not self.waiting or len(self.running) >= self.max_concurrent:
            return None
        if used + self.waiting[0].workers > self.capacity.slots:
            return None  # a group waits for room rather than starve
        self.running[name] = self.waiting.pop(0)
        return self.running[name]

    def complete(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Books a job that ended; the last search run of a remedy settles its setting."""
        job = self.running.pop(name)
        if "error" in metrics:
            self.failed.append(job)
        for cell in job.cells:
            if cell.stage == "search":
                self._score(cell, metrics.get("accuracy", math.nan))
        self.finished(job, metrics)

    def _score(self, cell: Cell, accuracy: float) -> None:
        remedy = cell.remedy_name
        self.scores[remedy].setdefault(cell.setting, []).append(accuracy)
        self.unscored[remedy] -= 1
        means = {name: float(np.mean(values)) for name, values in self.scores[remedy].items()}
        usable = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        if self.unscored[remedy] == 0 and usable:  # a remedy whose every search run failed goes unconfirmed
            best = max(usable, key=lambda name: usable[name])
            (setting,) = (s for s in self.plan.candidates[remedy].settings if name_setting(s) == best)
            self._add(self.plan.confirm(remedy, setting))

    # Tune's side

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """The space is the plan's own."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, None while none fits, and FINISHED at the end."""
        job = self.next(trial_id)
        if job is None:
            return None if self.running or self.waiting else Searcher.FINISHED
        for cell in job.cells:
            write_cell(self.store, cell)
        return job.describe()

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Books a trial that ended."""
        if error or not result:
            result = {"error": "its process died more often than `retries` allows"}
        self.complete(trial_id, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: a rerun plans anew from the rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to take back: a rerun plans anew from the rows."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "finished": None}


def _mean_metrics(rows: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """The final metrics of a job: the means over its cells, whose rows these are."""
    finals = [loop.final_metrics(some) for some in rows]
    return {name: float(np.mean([final[name] for final in finals])) for name in finals[0]}


def replay(plan: Plan, store: Store) -> Study:
    """A study as far as the rows on disk go; `waiting` holds what has still to run."""
    study = Study(plan, Capacity(cpus=plan.slots, gpus=0), store)
    missing: list[Job] = []
    while study.waiting:
        job = study.waiting.pop(0)
        rows = [results.job_rows(store, cell.id) for cell in job.cells]
        if all(rows):
            study.running[job.id] = job
            study.complete(job.id, _mean_metrics(rows))
        else:
            missing.append(job)
    study.waiting = missing
    return study


def trial(
    config: dict[str, Any],
    data: list[ray.ObjectRef],
    store: Store,
    use_gpu: bool,
    retries: int,
) -> None:
    """What a trial runs: a cell in this process, or several in a worker group of their own.

    A death of the process is Tune's to retry, one in the group Ray Train's. An exception would come again:
    it is reported as the trial's `error`.
    """

    def report(metrics: dict[str, float]) -> None:
        if "accuracy" in metrics:  # a report costs the driver time: the points of the test curve do
            tune.report(metrics)

    cells = [read_cell(store, name) for name in config["cells"].split()]
    try:
        if config["num_workers"] > 1:
            from lbdist.training import ray_train  # slow to import, and few studies need it here

            ray_train.fit(
                cells,
                data[0],
                store,
                use_gpu=use_gpu,
                retries=retries,
                callbacks=[TuneReportCallback()],
            )
            final = _mean_metrics([results.job_rows(store, cell.id) for cell in cells])
        else:
            if not use_gpu:
                torch.set_num_threads(1)
            dataset: Dataset = ray.get(data[0])
            final = loop.run_cell(cells[0], dataset, store, "cuda" if use_gpu else "cpu", report)
    except Exception as error:
        tune.report({"error": f"{type(error).__name__}: {error}"})
    else:
        tune.report(final)


def read_cell(store: Store, name: str) -> Cell:
    """The cell whose configuration `cells/<id>/cell.json` holds."""
    return Cell(**json.loads(store.read(f"cells/{name}/cell.json"))["cell"])


def write_cell(store: Store, cell: Cell) -> None:
    """Writes a cell's configuration beside its rows, with the versions and the machine."""
    name = f"cells/{cell.id}/cell.json"
    if not store.exists(name):
        content = {"cell": dataclasses.asdict(cell), "provenance": results.provenance()}
        results.write_json(store, name, content)


def run(
    plan: Plan,
    data: ray.ObjectRef,
    store: Store,
    *,
    retries: int,
    max_concurrent: int | None,
    finished: Callable[[Job, Mapping[str, Any]], None],
) -> Study:
    """Runs every cell of a study that has no rows yet; the others only report theirs.

    Args:
        plan: The study's cells.
        data: Reference to the `Dataset`.
        store: The study's folder; Tune's own is `tune` in it.
        retries: Restarts of a trial that failed.
        max_concurrent: Most trials at once.
        finished: Called on the driver with each job and its final metrics, or its `error`.

    Returns:
        The study: its cells, and the jobs that failed.

    Raises:
        InputError: A cell needs more workers than the cluster has.
    """
    capacity = Capacity.of_cluster()
    study = Study(plan, capacity, store, max_concurrent, finished)
    plan.check_workers(capacity.slots)
    use_gpu = capacity.gpus > 0
    one = {"GPU": 1.0} if use_gpu else {"CPU": 1.0}

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        # the driver of a worker group computes nothing; the group asks for its own CPUs or GPUs
        return tune.PlacementGroupFactory([one if config["num_workers"] == 1 else {"memory": 1.0}])

    store.remove("tune")  # finished cells report again, so that it is whole
    trainable = tune.with_parameters(
        trial,
        data=[data],
        store=store,
        use_gpu=use_gpu,
        retries=retries,
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=study,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda t: t.config["cell"],
            trial_dirname_creator=lambda t: t.config["cell"],
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=store.path,
            storage_filesystem=store.filesystem,
            failure_config=tune.FailureConfig(max_failures=retries),
            verbose=0,
        ),
    )
    tuner.fit()
    return study
