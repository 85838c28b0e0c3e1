"""Ray Train around the loop: one worker group trains a list of cells, one after the other."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util import state
from ray.util.placement_group import PlacementGroup, remove_placement_group

from lbdist import processes
from lbdist.capacity import Capacity
from lbdist.data.base import Dataset
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.training.cell import run_cell
from lbdist.training.precision import Arithmetic, in_which

REPORT_SECONDS = 1.0
"""Ray Train's report costs about 0.1 s, so short epochs share one."""


SWEEP_SECONDS = 5.0

_Filters = list[tuple[str, str, str | bool | int | float]]


class _Backend(_TorchBackend):
    """Ray Train's, whose gloo takes the network by which Ray reached the node.

    By itself gloo takes that of the host's name, which Debian and others resolve to the loopback: workers of
    different nodes would never meet.
    """

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_take_rays_network)
        super().on_start(worker_group, backend_config)


def _take_rays_network() -> None:
    mine = ray.util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if any(address.address == mine for address in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Config(TorchConfig):
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


class _Trainer(TorchTrainer):
    """Ray Train's, without two processes of which a group has no use and for which its workers would wait.

    One hands out Ray Data's data sets, of which there are none. The other gives the group's place free when
    the controller dies, which `_sweep` does.
    """

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [
            _NoData() if isinstance(c, DatasetsCallback) else c
            for c in found
            if not isinstance(c, PlacementGroupCleanerCallback)
        ]


class _NoData(WorkerGroupCallback):
    """What workers are told of data sets."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [None] * len(workers)}


def _worker(config: dict[str, Any]) -> None:
    """What each worker of the group runs."""
    torch.set_num_threads(1 if get_device().type == "cpu" else torch.get_num_threads())
    data: Dataset = ray.get(config["data"][0])
    latest = [time.monotonic()]

    def report(metrics: dict[str, float]) -> None:
        # every worker has to take part in a report, so worker 0's clock decides for all
        due = torch.tensor([float(time.monotonic() - latest[0] > REPORT_SECONDS)], device=get_device())
        dist.broadcast(due, 0)
        if due.item():
            ray.train.report(metrics)
            latest[0] = time.monotonic()

    final: dict[str, float] = {}
    began = config["began"]
    for cell in config["cells"]:
        how = in_which(config["arithmetic"], cell)
        final = run_cell(cell, data, config["store"], get_device(), report, how, began)
        began = time.time()
    ray.train.report(final)


def _sweep(over: threading.Event) -> None:
    """Gives free the places of this program's groups in which nothing lives any more.

    A controller that is killed, or whose trial is, while its workers start leaves their placement group to
    nobody, and the next group would wait for its CPUs for ever.
    """
    context = ray.get_runtime_context()
    job, where = context.get_job_id(), context.gcs_address  # there may be other Rays on this machine
    before: set[str] = set()
    while not over.wait(SWEEP_SECONDS):
        empty = set()
        with contextlib.suppress(Exception):  # the next look may get an answer
            mine: _Filters = [("creator_job_id", "=", job), ("state", "=", "CREATED")]
            for group in state.list_placement_groups(where, filters=mine, detail=True):
                if len(group.bundles or []) > 1:  # a worker group's; a trial has one
                    place: _Filters = [("placement_group_id", "=", group.placement_group_id)]
                    place.append(("state", "!=", "DEAD"))
                    if not state.list_actors(where, filters=place, detail=True):
                        empty.add(group.placement_group_id)
            for name in empty & before:
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
        before = empty


def fit(
    cells: Sequence[Cell],
    num_workers: int,
    data: ray.ObjectRef,
    store: Store,
    folder: Store,
    *,
    capacity: Capacity,
    retries: int,
    regroup_seconds: float,
    callbacks: Sequence[Any],
    arithmetic: Mapping[str, Arithmetic],
    began: float,
) -> None:
    """Trains cells in one worker group, and in one of fewer workers where the cluster has lost some for good.

    The global batch stays what it is, so that fewer workers take longer to the same end.

    Args:
        cells: Trained one after the other; finished ones are passed over.
        num_workers: Workers of the group, as long as the cluster has as many.
        data: Reference to the `Dataset`.
        store: The storage folder.
        folder: The store in which Ray Train keeps its own.
        capacity: What the cluster has: a worker takes a GPU of its own (NCCL), a share of one where there are
            not as many (gloo), or a CPU (gloo); as few nodes as hold them all.
        retries: Restarts of the group; each resumes from the last whole epoch.
        regroup_seconds: How long a restart waits for workers that were lost, which may come back.
        callbacks: Ray Train callbacks, such as Tune's.
        arithmetic: What each precision that cells ask for resolves to.
        began: When the group was asked for, in seconds since the epoch.

    Raises:
        ray.train.TrainingFailedError: The group failed more often than that.
    """
    work = {
        "cells": list(cells),
        "data": [data],
        "store": store,
        "arithmetic": dict(arithmetic),
        "began": began,
    }
    with processes.watching(_sweep):
        for tries in range(retries + 1):
            workers = _there(num_workers, capacity, regroup_seconds) if tries else num_workers
            try:
                _trainer(work, workers, capacity, folder, callbacks).fit()
                return
            except ray.train.TrainingFailedError:
                if tries == retries:
                    raise


def _trainer(
    work: dict[str, Any], workers: int, capacity: Capacity, folder: Store, callbacks: Sequence[Any]
) -> TorchTrainer:
    """A group that is to do some work; the arguments are `fit`'s."""
    return _Trainer(
        _worker,
        train_loop_config=work,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=capacity.gpus > 0,
            resources_per_worker=capacity.process(workers),
            placement_strategy="PACK",
        ),
        torch_config=_Config(backend="nccl" if capacity.gpus >= workers else "gloo"),
        run_config=ray.train.RunConfig(
            # a name of its own: a cell resumes from its own checkpoint, never from Ray Train's
            name=f"{work['cells'][0].id}-{uuid.uuid4().hex[:8]}",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            callbacks=list(callbacks),
        ),
    )


def _there(workers: int, capacity: Capacity, seconds: float) -> int:
    """The workers that the cluster has room for, of those that are asked for; it is given some time."""
    unit, least = next(iter(capacity.process(workers).items()))
    until = time.monotonic() + seconds
    while True:
        room = int(ray.cluster_resources().get(unit, 0.0) / least)
        if room >= workers or time.monotonic() >= until:
            return min(workers, max(1, room))
        time.sleep(0.5)
