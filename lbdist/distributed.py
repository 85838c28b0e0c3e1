"""A study on a Ray cluster: Tune over its cells, Train in those that take a group, actors that measure."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import ray
import torch

from lbdist import arrange, cluster, code
from lbdist.arrange import Unmeasured
from lbdist.capacity import Capacity
from lbdist.errors import Failure, one_line, short
from lbdist.progress import Progress
from lbdist.session import Failed, Lost, Session
from lbdist.sharpness.measure import cost
from lbdist.sharpness.pool import measure_all
from lbdist.tuning.book import Book
from lbdist.tuning.schedule import Schedule

PASS_WORK = {"CPU": 2e10, "GPU": 4e12}
"""FLOPs of an evaluation under which to cut it does not pay: about 0.2 s, where the sum takes some 10 ms."""


class RaySession(Session):
    """`executor=ray`: on the user's cluster, or a local Ray that ends with it."""

    def devices(self) -> Capacity | None:
        """This machine's, where a local Ray is to be started."""
        if cluster.address():
            return None
        return Capacity(os.cpu_count() or 1, torch.cuda.device_count())

    def limit(self, capacity: Capacity) -> str:
        """The cluster's size."""
        return f"what the cluster has ({capacity})"

    def work(self, book: Book, progress: Progress, command: str) -> tuple[list[Failed], list[Lost]]:
        """Trains and measures what is not done."""
        try:
            return self._on_ray(book, progress, command)
        except ray.exceptions.RayError as error:  # at any `ray.get` of the driver's own
            raise Failure(f"Ray: {short(_cause(error))}") from error

    def _on_ray(self, book: Book, progress: Progress, command: str) -> tuple[list[Failed], list[Lost]]:
        from lbdist.tuning import trial  # Tune takes half a second to import: not where all is done

        config, say = self.config, progress.note
        targets = set(code.targets(dataclasses.asdict(config)))
        with cluster.connect(say, command, self.store, targets, config.max_concurrent) as capacity:
            data, gpu = ray.put(self.data), capacity.gpus > 0

            def ask(what: Callable[..., Any], first: object, *rest: object) -> Any:
                if not gpu and capacity.nodes == 1:
                    return what(first, self.data, *rest)
                there: Any = ray.remote(num_cpus=0 if gpu else 1, num_gpus=1 if gpu else 0)(what)
                try:
                    return ray.get(there.remote(first, data, *rest))
                except ray.exceptions.RayError as error:
                    raise Unmeasured(_cause(error)) from error

            cells = self.cells.values()
            arithmetic = arrange.arithmetic(cells, book, gpu, ask, say)
            most_at_once = arrange.seeds_at_once(cells, config.seeds_at_once, gpu, arithmetic, ask, say)
            if gpu and len(self.unfinished(book)) + len(self.missing(book)) > capacity.gpus:
                capacity = arrange.share(cells, capacity, most_at_once, ask, say)
            for line in self.within(capacity):
                say(line)
            self.check_workers(capacity)

            def run(schedule: Schedule) -> None:
                trial.run(
                    schedule,
                    data,
                    self.folder,
                    retries=config.retries,
                    regroup_seconds=config.regroup_seconds,
                    arithmetic=arithmetic,
                )

            failed = self.train(book, capacity, most_at_once, progress, run)
            missing = self.missing(book)
            slots = min(capacity.slots, config.max_concurrent or capacity.slots)
            progress.begin_measurements(missing, cost)
            lost = measure_all(
                missing,
                data,
                self.store,
                capacity=capacity,
                slots=slots,
                shards=self._shards(len(missing), slots, "GPU" if gpu else "CPU"),
                retries=config.retries,
                done=progress.measured,
            )
        return failed, lost

    def _shards(self, measurements: int, slots: int, device: str) -> int:
        """Actors that compute an f together: more than one where they would stand idle and it pays."""
        pays = self.flops * len(self.data.train) >= PASS_WORK[device]
        return max(1, slots // max(1, measurements)) if pays else 1


def _cause(error: ray.exceptions.RayError) -> str:
    """What went wrong in a task, without the traceback that Ray puts before it."""
    return one_line(getattr(error, "cause", None) or error)[:100]
