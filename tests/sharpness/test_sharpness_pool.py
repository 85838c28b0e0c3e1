from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from lbdist import networks, results
from lbdist.data.base import Dataset, Split
from lbdist.objective import Objective
from lbdist.plan import Cell
from lbdist.sharpness import box_sharpness, pool
from lbdist.storage import Store
from lbdist.training import checkpoint
from lbdist.training.loop import on_device, run_cell

COPIED = ("value", "converged", "evaluations", "start", "iterations", "fraction_at_bound")


def make_split(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.standard_normal((count, 40), np.float32), rng.integers(0, 10, count))


DATA = Dataset(make_split(400, 0), make_split(50, 1), 10)
CELL = Cell(
    experiment="tiny",
    network={
        "_target_": "lbdist.networks.dense.Dense",
        "name": "dense",
        "inputs": 40,
        "widths": [16],
        "classes": 10,
    },
    data={"_target_": "nowhere", "name": "random"},
    optimizer={"_target_": "torch.optim.Adam", "lr": 1e-2},
    method="SB",
    remedy_name="none",
    remedy={"_target_": "lbdist.remedies.none.NoRemedy"},
    global_batch_size=50,
    epochs=1,
    seed=0,
    stage="confirm",
    asked_workers=1,
    num_workers=1,
    ghost_batch_size=None,
    micro_batch_size=None,
    evaluations=1,
    validation_fraction=None,
)
CELLS = [CELL, replace(CELL, method="LB", global_batch_size=200, seed=1)]
MISSING = replace(CELL, seed=7)  # never trained


def jobs_of(cell: Cell) -> list[pool.Job]:
    shared = {"starts": 2, "batch_norm": "running", "micro_batch_size": 150}
    full = {"space": "full", "dimension": 0, "draw": 0}
    places = [full, *({"space": "subspace", "dimension": 5, "draw": draw} for draw in range(2))]
    settings = [{**shared, **p, "solver": s, "epsilon": 1e-3} for p in places for s in ("paper", "converged")]
    settings.append({**shared, **full, "solver": "converged", "epsilon": 5e-4, "batch_norm": "batch"})
    return [pool.Job(cell, setting) for setting in settings]


JOBS = [job for cell in CELLS for job in jobs_of(cell)]
# a second or two, so that its actor can be killed at work
LONG = pool.Job(CELL, {**JOBS[1].setting, "micro_batch_size": 2})


@pytest.fixture(scope="module")
def data() -> Iterator[ray.ObjectRef]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield ray.put(DATA.train)
    ray.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with the checkpoints of both cells."""
    folder = tmp_path_factory.mktemp("study")
    for cell in CELLS:
        run_cell(cell, DATA, Store(folder))
        assert (folder / "cells" / cell.id / "checkpoint.pt").exists()
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A folder of its own for a test's rows, with the same checkpoints."""
    (tmp_path / "cells").symlink_to(trained / "cells")
    return tmp_path


@pytest.fixture(scope="module")
def expected(trained: Path) -> dict[str, dict[str, Any]]:
    """Each job's row by the library alone, in this process."""
    rows = {}
    for job in (LONG, *JOBS):
        state = checkpoint.load(Store(trained / "cells" / job.cell.id))["learner"]
        network = networks.make(job.cell.network, seed=99)
        network.load_state_dict(state["buffers"], strict=False)
        torch.nn.utils.vector_to_parameters(state["x"], network.parameters())
        setting = job.setting
        f = Objective(
            network,
            on_device(DATA.train, "cpu"),
            batch_norm=setting["batch_norm"],
            micro_batch_size=setting["micro_batch_size"],
        )
        found = box_sharpness(
            f,
            f.x,
            epsilon=setting["epsilon"],
            subspace=setting["dimension"] or None,
            draw=setting["draw"],
            solver=setting["solver"],
        )
        named = {key: setting[key] for key in ("space", "epsilon", "solver", "draw", "batch_norm")}
        rows[job.id] = {
            **job.cell.columns(),
            **named,
            "metric": "sharpness",
            "split": "train",
            **{key: getattr(found, key) for key in COPIED},
        }
    assert len(rows) == 15 and all(row["value"] > 0 for row in rows.values() if row["solver"] == "converged")
    return rows


def agree(row: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal but for rounding: the actors run on one thread."""
    assert {key: row[key] for key in expected if key != "value"} == {
        k: v for k, v in expected.items() if k != "value"
    }
    assert row["value"] == pytest.approx(expected["value"], rel=1e-4, abs=1e-6)
    assert row.get("error") is None


def stored(folder: Path, job: pool.Job) -> dict[str, Any]:
    (row,) = results.job_rows(folder, job.id)
    return row


def same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal where both say something, NaN included."""
    return all(
        other.get(key) == value or (isinstance(value, float) and math.isnan(value) and math.isnan(other[key]))
        for key, value in row.items()
    )


def evaluators() -> dict[int, psutil.Process]:
    """The actors' processes, by pid."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if any(part.startswith("ray::Evaluator") for part in process.cmdline()):
                found[process.pid] = process
        except psutil.Error:
            continue
    return found


def kill_one(killed: list[int]) -> None:
    """Kills one actor with -9 the first time that it is called, one that is at work if any is."""
    if not killed:
        actors = evaluators()
        working = [pid for pid, p in actors.items() if any(".measure" in part for part in p.cmdline())]
        killed.append((working or list(actors))[0])
        os.kill(killed[0], signal.SIGKILL)


def test_rows_are_the_library_s_whatever_dies_or_is_missing(
    data: ray.ObjectRef, folder: Path, expected: dict[str, dict[str, Any]]
) -> None:
    lost = pool.Job(MISSING, JOBS[1].setting)
    finished: list[str] = []
    killed: list[int] = []

    def done(job: pool.Job, row: dict[str, Any]) -> None:
        assert same(row, stored(folder, job))  # on disk before anybody is told
        finished.append(job.id)
        kill_one(killed)

    pool.measure_all([LONG, JOBS[0], lost, *JOBS[1:]], data, Store(folder), actors=2, done=done)
    assert len(killed) == 1 and not psutil.pid_exists(killed[0])
    assert sorted(finished) == sorted([lost.id, *expected])  # each told once
    assert results.finished_jobs(folder) == set(finished)
    for job in (LONG, *JOBS):
        agree(stored(folder, job), expected[job.id])
    row = stored(folder, lost)
    assert math.isnan(row["value"]) and not row["converged"]
    assert row["error"].startswith("FileNotFoundError: ") and MISSING.id in row["error"]
    assert (row["cell"], row["metric"], row["solver"]) == (MISSING.id, "sharpness", "converged")
    frame = results.load(folder)
    assert len(frame) == 16 and frame["value"].isna().sum() == 1


def test_a_job_whose_actor_died_too_often_leaves_no_row(
    data: ray.ObjectRef, folder: Path, expected: dict[str, dict[str, Any]]
) -> None:
    killed: list[int] = []
    rows: list[dict[str, Any]] = []

    def done(job: pool.Job, row: dict[str, Any]) -> None:
        rows.append(row)
        kill_one(killed)

    lost = pool.measure_all(JOBS[:2], data, Store(folder), actors=1, retries=0, done=done)
    assert lost == [JOBS[1]] and len(killed) == 1 and len(rows) == 2
    assert rows[1]["error"].startswith("its process died 1 times: ")
    assert results.finished_jobs(folder) == {JOBS[0].id}
    assert pool.measure_all([JOBS[1]], data, Store(folder), actors=1) == []  # the next run's try
    for job in JOBS[:2]:
        agree(stored(folder, job), expected[job.id])


def test_no_jobs_start_no_actor(data: ray.ObjectRef, tmp_path: Path) -> None:
    before = set(evaluators())
    pool.measure_all([], data, Store(tmp_path), actors=2)
    assert set(evaluators()) <= before and list(tmp_path.iterdir()) == []


def test_job_ids_tell_every_setting_apart() -> None:
    ids = {job.id for job in JOBS}
    assert len(ids) == len(JOBS) and ids == {pool.Job(j.cell, dict(j.setting)).id for j in JOBS}
    assert pool.Job(MISSING, JOBS[0].setting).id not in ids
