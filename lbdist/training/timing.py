"""What a training step takes and what it consists of, and what a collective call takes: measured, alone.

A step is timed in blocks, in turn as it is and with a stopwatch at the borders of its phases, so that what
the stopwatch itself costs is measured too. Nothing in the loop or the learner is changed for it.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lbdist import networks
from lbdist.analysis.step_time import PHASES
from lbdist.data.base import on_device
from lbdist.errors import require
from lbdist.remedies.base import Batch, make_remedy
from lbdist.results import Row
from lbdist.training.batches import Workers, batches
from lbdist.training.cell import Task
from lbdist.training.hardware import Meter, device_name, memory_of, peak_memory, wait
from lbdist.training.learner import Learner, make_learner
from lbdist.training.stopwatch import Stopwatch, WatchedLearner, WatchedWorkers


@dataclass
class _Blocks:
    """What blocks of steps took: seconds of a step of each, with and without a stopwatch; its phases."""

    plain: list[float] = field(default_factory=list)
    timed: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*PHASES, "gradient"), 0.0))
    joules: float = 0.0


@dataclass
class Timing:
    """A training step of a cell: its time, its phases, its memory.

    Attributes:
        seconds: What it is to take, after a warm-up of a tenth of it.
        block: Seconds of a block of steps, at least one step; each is timed as it is and with a stopwatch.
        least: Blocks that there are however long they take.
    """

    seconds: float = 5.0
    block: float = 0.1
    least: int = 5

    def __post_init__(self) -> None:
        require(0 < self.seconds <= 3000, "seconds", self.seconds, "above 0 and up to 3,000")
        require(
            0 < self.block <= self.seconds, "block", self.block, f"above 0 and up to seconds={self.seconds}"
        )
        require(1 <= self.least <= 1000, "least", self.least, "from 1 to 1,000")

    def __call__(self, task: Task) -> list[Row]:
        """Times steps of the cell on whole global batches.

        Returns:
            Final rows: `step_seconds`, the median over the blocks, and `block_seconds` of each block
            (`block`); `<phase>_seconds` of a step, the means over the workers, for each of `PHASES`, and
            `all_reduce_hidden_seconds`, by which the sum of the gradient takes longer alone than it is
            waited for; `disturbance`, by which share the stopwatch lengthens a step (median over the
            blocks); `samples_per_second`; `collective_calls` and `collective_bytes` of a step;
            `peak_memory` and `device_memory`, bytes of the largest worker; `utilisation`, and `joules` of
            a step, where they are known. A step that does not fit in the memory of one GPU has a row
            `out_of_memory` instead. All name the `device`.
        """
        began = time.perf_counter()
        try:
            rows = self._rows(task)
        except torch.OutOfMemoryError:
            if task.workers.size > 1:  # the others wait for this one
                raise
            torch.cuda.empty_cache()
            rows = [{"metric": "out_of_memory", "value": 1.0}]
        rows.append({"metric": "seconds", "value": time.perf_counter() - began})
        how = {**task.arithmetic.columns(), "device": device_name(task.device)}
        return [{**row, **how} for row in rows if not math.isnan(row["value"])]

    def _rows(self, task: Task) -> list[Row]:
        workers, watch = task.workers, Stopwatch(task.device)
        watched = WatchedWorkers(workers.rank, workers.size, watch)
        with task.arithmetic.applied(), peak_memory(task.device) as peak:
            learner, steps = self._learner(task, watched)
            count, repeats = self._plan(steps, workers, task.device)
            found = self._blocks(steps, watch, count, repeats, Meter(task.device))
            alone = self._alone(learner, workers, task.device)
        phases, done = found.phases, count * repeats
        means = _mean([*phases.values(), alone, found.joules, statistics.median(found.busy)], workers)
        *spent, alone, joules, utilisation = means
        phases = dict(zip(phases, spent, strict=True))
        waited = phases.pop("gradient")
        phases["all_reduce"] += waited
        step, pairs = statistics.median(found.plain), zip(found.timed, found.plain, strict=True)
        values = {
            "step_seconds": step,
            "samples_per_second": task.cell.global_batch_size / step,
            **{f"{name}_seconds": value for name, value in phases.items()},
            "all_reduce_hidden_seconds": max(0.0, alone - waited) if learner.buckets else 0.0,
            "disturbance": statistics.median(a / b for a, b in pairs) - 1,
            "collective_calls": len(watched.calls) / done,
            "collective_bytes": sum(watched.calls) / done,
            "peak_memory": _largest(peak(), workers),
            "device_memory": memory_of(task.device),
            "utilisation": utilisation,
            "joules": joules * workers.size,
            "steps_timed": float(done),
        }
        rows: list[Row] = [{"metric": name, "value": float(value)} for name, value in values.items()]
        return rows + [{"metric": "block_seconds", "block": k, "value": v} for k, v in enumerate(found.plain)]

    def _learner(self, task: Task, watched: WatchedWorkers) -> tuple[Learner, Callable[[int], float]]:
        """The cell's learner, and what takes so many of its steps and gives the seconds of one."""
        cell, device = task.cell, task.device
        network = networks.make(cell.network, cell.seed).to(device).float()
        learner = make_learner(cell, network, watched, task.arithmetic, kind=WatchedLearner)
        remedy, given = make_remedy(cell.remedies), self._batches(task)

        def steps(number: int) -> float:
            wait(device)
            begun = time.perf_counter()
            for _ in range(number):
                with watched.watch.phase("data"):
                    batch = remedy.transform(next(given))
                remedy.step(learner, batch, functools.partial(remedy.gradient, learner, batch))
            wait(device)
            return (time.perf_counter() - begun) / number

        return learner, steps

    def _blocks(
        self, steps: Callable[[int], float], watch: Stopwatch, count: int, repeats: int, meter: Meter
    ) -> _Blocks:
        """Blocks of so many steps, in turn with the stopwatch and without it."""
        found = _Blocks()
        for turn in range(repeats):
            for watching in (False, True) if turn % 2 else (True, False):
                watch.on = watching
                watch.seconds()
                before, energy = time.process_time(), meter.joules()
                taken = steps(count)
                if watching:
                    for name, seconds in watch.seconds().items():
                        found.phases[name] += seconds / (count * repeats)
                    found.timed.append(taken)
                else:
                    used = (time.process_time() - before) / (taken * count * torch.get_num_threads())
                    found.busy.append(meter.utilisation() if meter.gpu else used)
                    found.joules += (meter.joules() - energy) / (count * repeats)
                    found.plain.append(taken)
                watch.on = False
        return found

    def _batches(self, task: Task) -> Iterator[Batch]:
        """Whole global batches, epoch after epoch."""
        cell, samples = task.cell, on_device(task.data.train, task.device)
        for epoch in itertools.count():
            given = batches(
                *samples,
                global_batch_size=cell.global_batch_size,
                seed=cell.seed,
                epoch=epoch,
                workers=task.workers,
                ghost_batch_size=cell.ghost_batch_size,
                device=task.device,
            )
            yield from (batch for batch in given if batch.size == cell.global_batch_size)

    def _plan(self, steps: Callable[[int], float], workers: Workers, device: torch.device) -> tuple[int, int]:
        """Warms up; how many steps a block has, and how many blocks there are, the same on every worker."""
        steps(2)
        spent, step = 0.0, 0.0
        while spent < self.seconds / 10:
            (step,) = _mean([steps(2)], workers, device)
            spent += 2 * step
        count = max(1, round(self.block / step))
        return count, max(self.least, round(self.seconds / (2 * count * step)))

    def _alone(self, learner: Learner, workers: Workers, device: torch.device) -> float:
        """What the sum of the gradient takes by itself, with nothing to hide behind."""
        if workers.size == 1:
            return 0.0
        times = []
        for _ in range(2 + self.least):
            wait(device)
            begun = time.perf_counter()
            if learner.buckets is None:
                workers.sum(learner.g)
            else:
                learner.buckets.finish()
            wait(device)
            times.append(time.perf_counter() - begun)
        return statistics.median(times[2:])


@dataclass
class Collectives:
    """What a sum over the workers takes, by its size: what an interconnect's latency and bandwidth come from.

    Attributes:
        sizes: Bytes of the tensors.
        repeats: Blocks of calls for each size.
        seconds: What a block is to take, at least one call.
    """

    sizes: list[int] = field(default_factory=lambda: [2**k for k in range(8, 25, 2)])
    repeats: int = 5
    seconds: float = 0.05

    def __post_init__(self) -> None:
        good = bool(self.sizes) and all(size >= 4 for size in self.sizes)
        require(good, "sizes", self.sizes, "one or more numbers of bytes, from 4")
        require(1 <= self.repeats <= 1000, "repeats", self.repeats, "from 1 to 1,000")
        require(0 < self.seconds <= 60, "seconds", self.seconds, "above 0 and up to 60")

    def __call__(self, task: Task) -> list[Row]:
        """Times `Workers.sum`.

        Returns:
            Final rows `collective_seconds`, one for each size (`bytes`) and `block`; and `seconds`.
        """
        began, workers, rows = time.perf_counter(), task.workers, []
        for size in self.sizes:
            tensor = torch.zeros(max(1, size // 4), device=task.device)

            def calls(number: int, tensor: Tensor = tensor) -> float:
                wait(task.device)
                begun = time.perf_counter()
                for _ in range(number):
                    workers.sum(tensor)
                wait(task.device)
                return (time.perf_counter() - begun) / number

            calls(3)
            (once,) = _mean([calls(3)], workers, task.device)
            count = max(1, min(1000, round(self.seconds / once)))
            for turn in range(self.repeats):
                (taken,) = _mean([calls(count)], workers, task.device)
                rows.append({"metric": "collective_seconds", "bytes": 4 * tensor.numel(), "block": turn,
                             "value": taken})  # fmt: skip
        rows.append({"metric": "seconds", "value": time.perf_counter() - began})
        return [{**row, **task.arithmetic.columns()} for row in rows]


def _mean(values: list[float], workers: Workers, device: torch.device | None = None) -> list[float]:
    """The means over the workers, the same bits on each."""
    if workers.size == 1:
        return values
    total = workers.sum(torch.tensor(values, dtype=torch.float64, device=device or _device()))
    return [float(value) / workers.size for value in total]


def _largest(value: float, workers: Workers) -> float:
    """The largest over the workers."""
    if workers.size == 1:
        return value
    return float(workers.gather(torch.tensor([value], dtype=torch.float64, device=_device())).max())


def _device() -> torch.device:
    """Where the group's collective calls take tensors from."""
    import torch.distributed as dist

    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
