"""Ray Tune over a schedule: each job is a trial of one Tune experiment."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from lbdist.capacity import Capacity
from lbdist.data.base import Dataset
from lbdist.errors import one_line
from lbdist.machines import check_code, code
from lbdist.results import final_name
from lbdist.storage import Store
from lbdist.training.cell import finished_rows, mean_metrics, run_cells
from lbdist.training.precision import Arithmetic, in_which
from lbdist.tuning.book import read_cells
from lbdist.tuning.schedule import Schedule

if TYPE_CHECKING:
    import pandas as pd

REPORT_SECONDS = 2.0
"""A report costs the driver time: between the points of the test curve there is one this often."""


class Trials(Searcher):
    """A schedule as Tune asks for it.

    Args:
        schedule: Hands out the cells; those that were finished before report once more, last, so that Tune's
            folder is whole.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        schedule.again = [cell for cell in schedule.cells().values() if schedule.book(cell) is not None]

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Accepts what Tune says of the search space: the study has its own."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, None while none fits, and FINISHED at the end."""
        schedule = self.schedule
        job = schedule.next(trial_id)
        if job is None:
            return None if schedule.running or schedule.waiting() or schedule.again else Searcher.FINISHED
        return {**schedule.study.told(schedule.book).get(job.id, {}), **job.describe()}

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        """Tells the watch what a trial reported."""
        job, watch = self.schedule.running.get(trial_id), self.schedule.watch
        if job is not None and watch is not None:
            watch.ran(job, result)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Books a trial that ended."""
        if error or not result:
            result = {"error": "its process died more often than `retries` allows"}
        self.schedule.complete(trial_id, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: a rerun plans anew from the rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to take back: a rerun plans anew from the rows."""


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
    device, latest = "cuda" if capacity.gpus > 0 else "cpu", time.monotonic()

    def report(metrics: dict[str, float]) -> None:
        # a report costs the driver time: the points of the test curve do, and one every few seconds
        nonlocal latest
        point = not math.isnan(metrics[final_name("loss", cells[0].split)])
        if point or time.monotonic() > latest + REPORT_SECONDS:
            latest = time.monotonic()
            tune.report(metrics)

    try:
        check_code(driver)
        cells, began = read_cells(store, config["cells"])
        if config["num_workers"] > 1:
            if not all(finished_rows(store, cell) for cell in cells):
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
                    began=began,
                )
            final = mean_metrics(store, cells)
        else:
            if device == "cpu":
                torch.set_num_threads(1)
            dataset: Dataset = ray.get(data[0])
            how = in_which(arithmetic, cells[0])
            final = run_cells(cells, dataset, store, device, report, how, began)
    except ray.exceptions.RayActorError:
        raise  # a death in the group's own machinery, which a new group gets over
    except Exception as error:
        tune.report({"error": f"{type(error).__name__}: {one_line(error)}"})
    else:
        tune.report(final)


@dataclass(frozen=True)
class Trial:
    """What Tune kept of a trial.

    Attributes:
        config: Its configuration.
        metrics: What it reported last, its `error` among them where it failed.
        path: Its folder, with TensorBoard's events.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    path: str


class Grid(Sequence[Trial]):
    """The trials of a study, read from the JSON that Tune wrote: nothing is unpickled.

    `ray.tune.Tuner.restore` gives a `ResultGrid` of the same folder; it runs what is in it, so let it only
    have folders that you trust.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = list(trials)

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, place: Any) -> Any:
        return self.trials[place]

    @property
    def errors(self) -> list[str]:
        """What failed, and why."""
        return [trial.metrics["error"] for trial in self.trials if trial.metrics.get("error")]

    def get_dataframe(self) -> pd.DataFrame:
        """A row a trial: its metrics, and its configuration in columns `config/...`."""
        import pandas as pd

        rows = [
            {**trial.metrics, **{f"config/{key}": value for key, value in trial.config.items()}}
            for trial in self.trials
        ]
        return pd.DataFrame(rows)

    def get_best_result(self, metric: str, mode: str) -> Trial:
        """The trial with the highest (`max`) or lowest (`min`) value of a metric.

        Raises:
            ValueError: None has it.
        """
        known = [trial for trial in self.trials if not math.isnan(trial.metrics.get(metric, math.nan))]
        if not known:
            raise ValueError(f"no trial has the metric {metric}")
        return {"max": max, "min": min}[mode](known, key=lambda trial: trial.metrics[metric])


def grid(folder: str | Path) -> Grid:
    """Tune's results of a study, each trial with its configuration and its last metrics.

    Args:
        folder: The study's folder (`results/remedies`), or its URI.

    Raises:
        FileNotFoundError: There are no trials in it.
    """
    store, found = Store(folder) / "tune", []
    for name in store.names():
        if name.rpartition("/")[2] == "result.json":
            lines = store.read(name).decode().splitlines()
            metrics = json.loads(lines[-1]) if lines else {}
            config = metrics.pop("config", {})
            found.append(Trial(config, metrics, f"{store.path}/{name}".rpartition("/")[0]))
    if not found:
        raise FileNotFoundError(f"no trials under {store}")
    return Grid(found)


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
        arithmetic: What each precision that cells ask for resolves to.
    """
    capacity = schedule.capacity

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        # the driver of a worker group computes nothing; the group asks for its own CPUs or GPUs
        one = capacity.process() if config["num_workers"] == 1 else {"memory": 1.0}
        return tune.PlacementGroupFactory([one])

    # Ray writes what it hands on into its logs; a node has its keys in its own environment
    handed_on = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in handed_on if not name.startswith("AWS_")}
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
            search_alg=Trials(schedule),
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
