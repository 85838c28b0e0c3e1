"""A pool of Ray actors that hold the data once and take (checkpoint, space, epsilon, draw) jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from lbdist import networks, results
from lbdist.data.base import Split
from lbdist.networks.flat import buffers, views
from lbdist.objective import Objective
from lbdist.plan import Cell, digest
from lbdist.sharpness.metric import box_sharpness
from lbdist.sharpness.subspace import Subspace
from lbdist.storage import Store
from lbdist.training import checkpoint


@dataclass(frozen=True)
class Job:
    """One sharpness value to measure at the end of one cell.

    Attributes:
        cell: The trained cell.
        setting: What to measure: space, epsilon, solver, draw, dimension, starts, batch_norm,
            micro_batch_size.
    """

    cell: Cell
    setting: dict[str, Any]

    @property
    def id(self) -> str:
        """The job's content address."""
        return digest([self.cell.id, self.setting])

    def row(self) -> dict[str, Any]:
        """The columns that the job fixes."""
        named = {key: self.setting[key] for key in ("space", "epsilon", "solver", "draw", "batch_norm")}
        return {**self.cell.columns(), **named, "metric": "sharpness", "split": "train"}


class Evaluator:
    """Measures jobs in one process; the data stay on its device, the last network and subspace in memory."""

    def __init__(self, train: Split, store: Store, device: str) -> None:
        torch.set_num_threads(1)
        self.store, self.device = store, device
        # the object store's arrays are read-only and are never written to here
        self.data = tuple(torch.tensor(a, device=device) for a in (train.inputs, train.labels))
        self._objective: tuple[Any, Objective | None] = (None, None)
        self._subspace: tuple[Any, Subspace | None] = (None, None)

    def objective(self, job: Job) -> Objective:
        """f at the job's cell."""
        key = (job.cell.id, job.setting["batch_norm"], job.setting["micro_batch_size"])
        if self._objective[0] != key:
            state = checkpoint.load(self.store / f"cells/{job.cell.id}", self.device)["learner"]
            network = networks.make(job.cell.network, job.cell.seed).to(self.device)
            own = {**dict(network.named_parameters()), **dict(buffers(network))}
            with torch.no_grad():
                for name, value in {**views(network, state["x"]), **state["buffers"]}.items():
                    own[name].copy_(value)
            self._objective = key, Objective(network, self.data, batch_norm=key[1], micro_batch_size=key[2])  # type: ignore[arg-type]
        assert self._objective[1] is not None
        return self._objective[1]

    def measure(self, job: Job) -> dict[str, Any]:
        """Measures a job, writes its row, and returns it; what cannot be measured is a row with its error."""
        row = job.row()
        try:
            f, setting = self.objective(job), job.setting
            x = f.x
            space = None
            if setting["space"] == "subspace":
                key = (len(x), setting["dimension"], setting["draw"])
                if self._subspace[0] != key:
                    self._subspace = key, Subspace(key[0], key[1], draw=key[2], like=x)
                space = self._subspace[1]
            options = {"starts": setting["starts"]} if setting["solver"] == "converged" else {}
            found = box_sharpness(
                f,
                x,
                epsilon=setting["epsilon"],
                subspace=space,
                solver=setting["solver"],
                draw=setting["draw"],
                **options,
            )
            row |= {
                key: getattr(found, key)
                for key in ("value", "converged", "evaluations", "start", "iterations", "fraction_at_bound")
            }
        except Exception as error:
            row |= {"value": float("nan"), "converged": False, "error": f"{type(error).__name__}: {error}"}
        results.write_rows(self.store, job.id, [row])
        return row


def measure_all(
    jobs: Sequence[Job],
    data: ray.ObjectRef,
    store: Store,
    *,
    actors: int,
    gpus_per_actor: float = 0.0,
    retries: int = 2,
    done: Callable[[Job, dict[str, Any]], None] = lambda job, row: None,
) -> list[Job]:
    """Measures every job on a pool of actors.

    Args:
        jobs: What to measure; jobs of one cell should follow each other.
        data: Reference to the training split, put once.
        store: The study's folder, with the checkpoints; rows are written there.
        actors: Size of the pool.
        gpus_per_actor: Share of a GPU that an actor takes; 0 measures on the CPU.
        retries: Restarts of a job whose actor died.
        done: Called on the driver with each job that ended and its row.

    Returns:
        The jobs whose actor died more often than that; they have no row.
    """
    device = "cuda" if gpus_per_actor else "cpu"
    remote = ray.remote(num_cpus=1, num_gpus=gpus_per_actor)(Evaluator)

    def start() -> Any:
        return remote.remote(data, store, device)

    waiting = deque((job, 0) for job in jobs)
    busy: dict[Any, tuple[Any, Job, int]] = {}
    failed: list[Job] = []
    idle = [start() for _ in range(min(actors, len(jobs)))]
    while waiting or busy:
        while waiting and idle:
            actor, (job, tries) = idle.pop(), waiting.popleft()
            busy[actor.measure.remote(job)] = (actor, job, tries)
        (ready,), _ = ray.wait(list(busy), num_returns=1)
        actor, job, tries = busy.pop(ready)
        try:
            row = ray.get(ready)
        except ray.exceptions.RayActorError as error:
            idle.append(start())
            if tries < retries:
                waiting.appendleft((job, tries + 1))
                continue
            # no row: a machine's trouble is no result, and the next run tries again
            row = {**job.row(), "error": f"its process died {tries + 1} times: {error.__class__.__name__}"}
            failed.append(job)
        else:
            idle.append(actor)
        done(job, row)
    for actor in idle:
        ray.kill(actor)
    return failed
