from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import safetensors.torch
import torch

from lbdist import networks, results
from lbdist.capacity import Capacity
from lbdist.data.base import Dataset, Split, on_device
from lbdist.objective import Objective
from lbdist.plan import Cell, Measurement, Point
from lbdist.sharpness import Effort, box_sharpness, pool
from lbdist.sharpness.evaluator import Evaluator
from lbdist.sharpness.neighbourhood import Neighbourhood
from lbdist.storage import Store
from lbdist.training import checkpoint
from lbdist.training.cell import run_cell

COPIED = ("value", "converged", "evaluations", "start", "iterations", "fraction_at_bound")


def make_split(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.standard_normal((count, 40), np.float32), rng.integers(0, 10, count))


DATA = Dataset(make_split(400, 0), make_split(50, 1), 10)
CELL = Cell(
    network={
        "_target_": "lbdist.networks.dense.Dense",
        "name": "dense",
        "inputs": 40,
        "widths": [16],
        "classes": 10,
    },
    data={"_target_": "nowhere", "name": "random"},
    loss={"_target_": "lbdist.losses.CrossEntropy"},
    optimizer={"_target_": "torch.optim.Adam", "lr": 1e-2},
    remedies=(),
    method="SB",
    global_batch_size=50,
    epochs=2,
    seed=0,
    test_points=1,
    keep=frozenset({1}),
)
CELLS = [CELL, replace(CELL, method="LB", global_batch_size=200, seed=1)]
MISSING = replace(CELL, seed=7)  # never trained
NODE = {"_target_": "lbdist.sharpness.metric.BoxSharpness", "name": "sharpness", "epsilons": [1e-3],
        "micro_batch_size": 150, "starts": 2, "budget": 20}  # fmt: skip


def measurements_of(cell: Cell, epoch: int | None = None) -> list[Measurement]:
    full = {**NODE, "spaces": ["full"]}
    places = [full, *({**NODE, "spaces": ["subspace"], "subspace_dimension": 5, "draw": d} for d in range(2))]
    nodes = [{**place, "solvers": [s]} for place in places for s in ("paper", "converged")]
    nodes.append({**full, "solvers": ["converged"], "epsilons": [5e-4], "batch_norm": "batch"})
    return [Measurement(node, (Point(cell, epoch),)) for node in nodes]


JOBS = [job for cell in CELLS for job in measurements_of(cell)] + measurements_of(CELL, 1)[:2]
# a second or two, so that its actor can be killed at work
LONG = Measurement({**JOBS[1].measure, "micro_batch_size": 5}, JOBS[1].at)


@pytest.fixture(scope="module")
def data() -> Iterator[ray.ObjectRef]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield ray.put(DATA)
    ray.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with the models of both cells."""
    folder = tmp_path_factory.mktemp("study")
    for cell in CELLS:
        run_cell(cell, DATA, Store(folder))
        assert (folder / "cells" / cell.id / "model.safetensors").exists()
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A folder of its own for a test's rows, with the same models."""
    (tmp_path / "cells").symlink_to(trained / "cells")
    return tmp_path


@pytest.fixture(scope="module")
def expected(trained: Path) -> dict[str, dict[str, Any]]:
    """Each job's row by the library alone, in this process."""
    rows = {}
    for job in (LONG, *JOBS):
        (point,) = job.at
        network = networks.make(point.cell.network, seed=99)
        name = checkpoint.model_name(point.epoch)
        network.load_state_dict(safetensors.torch.load_file(trained / "cells" / point.cell.id / name))
        setting = job.measure
        mode = setting.get("batch_norm", "running")
        f = Objective(
            network,
            on_device(DATA.train, "cpu"),
            batch_norm=mode,
            micro_batch_size=setting["micro_batch_size"],
        )
        draw, (solver,), (space,) = setting.get("draw", 0), setting["solvers"], setting["spaces"]
        found = box_sharpness(
            f,
            f.x,
            epsilon=setting["epsilons"][0],
            subspace=setting.get("subspace_dimension"),
            draw=draw,
            solver=solver,
            effort=Effort(starts=2, budget=20, from_paper=False),  # each job has one solver
        )
        named = {"space": space, "epsilon": setting["epsilons"][0], "solver": solver, "draw": draw}
        rows[job.id] = {
            **job.columns(),
            **named,
            "batch_norm": mode,
            "metric": "sharpness",
            "split": "train",
            **{key: getattr(found, key) for key in COPIED},
        }
    assert len(rows) == 17 and all(row["value"] > 0 for row in rows.values() if row["solver"] == "converged")
    return rows


def agree(row: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal but for rounding: the actors run on one thread."""
    assert {key: row[key] for key in expected if key != "value"} == {
        k: v for k, v in expected.items() if k != "value"
    }
    assert row["value"] == pytest.approx(expected["value"], rel=1e-4, abs=1e-6)
    assert row.get("error") is None


def test_all_boxes_and_solvers_of_a_space_are_one_measurement(data: ray.ObjectRef, folder: Path) -> None:
    """Each row is what a neighbourhood gives in this process."""
    node = {**NODE, "epsilons": [1e-3, 5e-4], "spaces": ["full"], "solvers": ["paper", "converged"]}
    jobs = [Measurement(node, (Point(cell),)) for cell in CELLS]
    found: dict[str, list[dict[str, Any]]] = {}

    def done(job: Measurement, rows: list[dict[str, Any]]) -> None:
        found[job.id] = rows

    pool.measure_all(jobs, data, Store(folder), capacity=Capacity(2, 0), done=done)
    for job in jobs:
        (point,) = job.at
        network = networks.make(point.cell.network)
        model = folder / "cells" / point.cell.id / "model.safetensors"
        network.load_state_dict(safetensors.torch.load_file(model))
        f = Objective(network, on_device(DATA.train, "cpu"), micro_batch_size=150)
        near = Neighbourhood(f, f.x)
        for row in found[job.id]:
            result = near.sharpness(row["epsilon"], row["solver"], effort=Effort(starts=2, budget=20))
            assert row["value"] == pytest.approx(result.value, rel=1e-4)
            assert row["evaluations"] == result.evaluations
        assert [row["solver"] for row in found[job.id]] == ["paper"] * 2 + ["converged"] * 2


def stored(folder: Path, job: Measurement) -> dict[str, Any]:
    (row,) = results.read_rows(folder, results.measurement_file(job.id))
    return row


def finished(folder: Path) -> set[str]:
    return set(results.finished(folder, results.MEASUREMENTS))


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
    lost = Measurement(JOBS[1].measure, (Point(MISSING),))
    told: list[str] = []
    killed: list[int] = []

    def done(job: Measurement, found: list[dict[str, Any]]) -> None:
        (row,) = found
        assert job is lost or same(row, stored(folder, job))  # on disk before anybody is told
        told.append(job.id)
        kill_one(killed)

    ((failed, why),) = pool.measure_all(
        [LONG, JOBS[0], lost, *JOBS[1:]], data, Store(folder), capacity=Capacity(2, 0), done=done
    )
    assert len(killed) == 1 and not psutil.pid_exists(killed[0])
    assert sorted(told) == sorted([lost.id, *expected])  # each told once
    assert finished(folder) == set(expected)  # a model that is not there is no result: the next run tries
    for job in (LONG, *JOBS):
        agree(stored(folder, job), expected[job.id])
    assert failed is lost and why.startswith("FileNotFoundError: ") and MISSING.id in why
    columns = {cell.id: cell.columns() for cell in [*CELLS, MISSING]}
    frame = results.gather(folder, columns, dict.fromkeys(finished(folder), "")).query(
        "metric == 'sharpness'"
    )
    assert len(frame) == 17 and frame["value"].notna().all() and set(frame["seed"]) == {0, 1}
    assert frame["epoch"].notna().sum() == 2


def test_a_job_whose_actor_died_too_often_leaves_no_row(
    data: ray.ObjectRef, folder: Path, expected: dict[str, dict[str, Any]]
) -> None:
    killed: list[int] = []
    rows: list[dict[str, Any]] = []

    def done(job: Measurement, found: list[dict[str, Any]]) -> None:
        rows.extend(found)
        kill_one(killed)

    lost = pool.measure_all(JOBS[:2], data, Store(folder), capacity=Capacity(1, 0), retries=0, done=done)
    assert [job for job, _ in lost] == [JOBS[1]] and len(killed) == 1 and len(rows) == 2
    assert rows[1]["error"].startswith("its process died 1 times: ")
    assert finished(folder) == {JOBS[0].id}
    assert (
        pool.measure_all([JOBS[1]], data, Store(folder), capacity=Capacity(1, 0)) == []
    )  # the next run's try
    for job in JOBS[:2]:
        agree(stored(folder, job), expected[job.id])


def test_f_that_is_cut_is_proven_on_few_samples_in_one_process() -> None:
    """Where there are no more samples than the proof takes, the proof asks no others, nor itself."""
    data = on_device(make_split(100, 0), "cpu")
    network = networks.make(CELL.network)
    asked: list[int] = []

    def ask(x: torch.Tensor, v: torch.Tensor | None, parts: int) -> list[ray.ObjectRef]:
        asked.append(parts)
        other = Objective(network, data, micro_batch_size=10)
        other._proven = True
        return [ray.put(other.sums(x, v, part, parts)) for part in range(1, parts)]

    f = pool.Sharded(ask, 1, network, data, micro_batch_size=10)
    alone = Objective(network, data, micro_batch_size=10)
    (value, gradient), (expected, own) = f(f.x), alone(alone.x)
    assert value == pytest.approx(expected, rel=1e-12) and torch.allclose(gradient, own, atol=1e-7)
    assert torch.allclose(f.curvature(f.x, own), alone.curvature(f.x, own), atol=1e-6)
    assert asked == [2, 2]  # the gradient, the product: not the proofs


def test_no_jobs_start_no_actor(data: ray.ObjectRef, tmp_path: Path) -> None:
    before = set(evaluators())
    pool.measure_all([], data, Store(tmp_path), capacity=Capacity(2, 0))
    assert set(evaluators()) <= before and list(tmp_path.iterdir()) == []


def test_any_measure_runs_at_files_and_at_epochs(
    data: ray.ObjectRef, folder: Path, s3: str, tmp_path: Path
) -> None:
    """In one process, where no more may be taken, with what is trained and what is measured on S3."""
    psutil.wait_procs(list(evaluators().values()), timeout=30)  # of the tests before
    model = folder / "cells" / CELL.id / "model-1.safetensors"
    torch.save(safetensors.torch.load_file(model), tmp_path / "mine.pt")
    store = Store(s3.format("measured"))
    store.write(f"cells/{CELL.id}/{model.name}", model.read_bytes())
    points = [Point(CELL, 1), Point(CELL, file=str(tmp_path / "mine.pt")), Point(CELL, file=str(model))]
    found: dict[str, list[float]] = {}
    nodes = [{"_target_": "lbdist.sharpness.distance.Distance", "name": "distance"},
             {"_target_": "lbdist.sharpness.spectrum.LambdaMax", "name": "lambda_max"}]  # fmt: skip

    def done(job: Measurement, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            assert row.get("error") is None
            found.setdefault(row["metric"], []).append(row["value"])
        assert len(evaluators()) == 1

    jobs = [Measurement(node, (point,)) for node in nodes for point in points]
    assert len({job.id for job in jobs[:3]}) == 3
    assert pool.measure_all(jobs, data, store, capacity=Capacity(2, 0), slots=1, done=done) == []
    assert len(store.names("measurements")) == len(jobs)
    assert set(found) == {"distance_from_start", "relative_distance", "lambda_max"}
    for values in found.values():
        assert len(values) == 3 and values == pytest.approx([values[0]] * 3) and values[0] > 0


def test_actors_that_share_an_evaluation_give_the_rows_of_one(
    data: ray.ObjectRef, folder: Path, expected: dict[str, dict[str, Any]]
) -> None:
    """Two actors, three micro-batches; a killed helper costs a retry and nothing else."""
    chosen = [job for job in JOBS if job.at == (Point(CELLS[0]),)][:4]
    nodes = [{"_target_": "lbdist.sharpness.spectrum.LambdaMax", "name": "lambda_max"},
             {"_target_": "lbdist.sharpness.adaptive.AdaptiveSharpness", "name": "adaptive",
              "normalise_logits": True}]  # fmt: skip
    others = [Measurement({**node, "micro_batch_size": 150}, chosen[0].at) for node in nodes]
    found: dict[str, list[dict[str, Any]]] = {}
    killed: list[int] = []

    def done(job: Measurement, rows: list[dict[str, Any]]) -> None:
        found[job.id] = rows
        if not killed and job.id != LONG.id:
            helpers = [
                pid for pid, p in evaluators().items() if not any(".measure" in c for c in p.cmdline())
            ]
            killed.append(helpers[0])
            os.kill(helpers[0], signal.SIGKILL)

    one = Evaluator(DATA, Store(folder), "cpu")
    alone = {job.id: one.measure(job) for job in others}
    jobs = [*chosen, *others]
    lost = pool.measure_all(jobs, data, Store(folder), capacity=Capacity(2, 0), shards=2, done=done)
    assert lost == [] and len(killed) == 1
    for job in chosen:
        (row,) = found[job.id]
        assert row["value"] == pytest.approx(expected[job.id]["value"], rel=1e-4)
        assert row["evaluations"] == expected[job.id]["evaluations"] and row.get("error") is None
    for job in others:  # of which some are of another loss, on normalised logits
        values = [row["value"] for row in found[job.id]]
        assert values == pytest.approx([row["value"] for row in alone[job.id]], rel=1e-4) and min(values) > 0


def test_actors_that_are_killed_at_random_times_cost_a_retry_and_nothing_else(
    data: ray.ObjectRef, folder: Path, expected: dict[str, dict[str, Any]]
) -> None:
    """A thread shoots at whatever evaluates; all rows come out as if nobody had."""
    random, over, shot = np.random.default_rng(0), threading.Event(), 0

    def shoot() -> None:
        nonlocal shot
        while not over.wait(float(random.uniform(0.3, 1.5))) and shot < 2:
            for pid in list(evaluators())[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    shot += 1

    thread = threading.Thread(target=shoot)
    thread.start()
    try:
        jobs = [LONG, *JOBS]
        lost = pool.measure_all(jobs, data, Store(folder), capacity=Capacity(2, 0), retries=10)
    finally:
        over.set()
        thread.join()
    assert lost == [] and shot >= 1
    for job in jobs:
        agree(stored(folder, job), expected[job.id])
