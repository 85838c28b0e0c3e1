"""What comes next of a study's cells, whoever runs them."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lbdist import results
from lbdist.capacity import Capacity
from lbdist.errors import short
from lbdist.plan import AUTO, Cell
from lbdist.studies.base import Study, cells_of, whole
from lbdist.training.cell import finished_rows
from lbdist.tuning.book import Book, write_cell


@dataclass(frozen=True)
class Job:
    """What one trial runs: one cell, several of one worker group, or several at once in one process."""

    cells: tuple[Cell, ...]
    workers: int = 1

    @property
    def at_once(self) -> bool:
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
            "cells": [cell.id for cell in self.cells],
            "role": first.role,
            "rule": first.rule,
            "method": first.method,
            "remedy": first.remedy,
            "setting": first.setting,
            "seeds": [cell.seed for cell in self.cells],
            "global_batch_size": first.global_batch_size,
            "num_workers": self.workers,
            **first.hyperparameters(),
        }


class Watch(Protocol):
    """An observer of the jobs."""

    def began(self, job: Job) -> None:
        """A job was handed out."""

    def ran(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """A job reported its latest metrics."""

    def ended(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """A job ended, with its final metrics or its `error`."""


class Schedule:
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
        most_at_once: The most cells of its kind that a process trains at once.
        watch: An observer, or None.

    Attributes:
        running: The jobs that are handed out, by the name under which they were.
        failed: The cells that ended without rows, and why.
        again: Cells that were finished before and are to be handed out once more, last.
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
        most_at_once: Callable[[Cell], int] = lambda cell: 1,
        watch: Watch | None = None,
    ) -> None:
        self.study, self.book, self.capacity, self.watch = study, book, capacity, watch
        self.max_concurrent = max_concurrent or capacity.slots
        self.cost, self.worthwhile, self.most_at_once = cost, worthwhile, most_at_once
        self.running: dict[str, Job] = {}
        self.failed: list[tuple[Cell, str]] = []
        self._waiting: list[Cell] | None = None
        self.again: list[Cell] = []

    def cells(self) -> dict[str, Cell]:
        """The study's cells as far as they are known, by id."""
        return cells_of(self.study, self.book)

    def waiting(self) -> list[Cell]:
        """The known cells that are neither done nor running, in the order in which they are handed out.

        Groups first, then searches, since confirmed runs wait for them, then what takes longest. But a group
        of which more cells may come waits for them as long as there is something else to do, since each group
        takes long to start; and what must run alone goes last, since all slots have to fall free for it.
        """
        if self._waiting is None:
            known = self.cells().values()
            handed = {cell.id for job in self.running.values() for cell in job.cells}
            found = [cell for cell in known if cell.id not in handed and self.book(cell) is None]
            more = self._planned - Counter(cell.asked_workers for cell in known)

            def order(cell: Cell) -> tuple[float, ...]:
                size = cell.asked_workers
                waits = size > 1 and more[size] > 0
                return waits, cell.alone, -size, cell.role != "search", -self.cost(cell)

            self._waiting = sorted(found, key=order)
        return self._waiting

    @functools.cached_property
    def _planned(self) -> Counter[int]:
        """How many cells of the whole study ask for a group of each size, as far as can be told."""
        return Counter(cell.asked_workers for cell in cells_of(self.study, whole(self.study)).values())

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
        for cell in job.cells:
            if self.book(cell) is None:
                write_cell(self.book.store, cell)
        if self.watch is not None:
            self.watch.began(job)
        return job

    def _job(self, waiting: Sequence[Cell], free: int) -> Job:
        """The first cell and seeds of its kind; what asks for a group of one size shares as few as fit."""
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
        same = [cell for cell in waiting if cell.num_workers == workers and cell.alone == first.alone]
        groups = 1 if first.alone else max(1, free // self.capacity.width(workers))
        return Job(tuple(same[: math.ceil(len(same) / groups)]), workers)

    def _kin(self, first: Cell, waiting: Sequence[Cell]) -> list[Cell]:
        """A cell and those that are trained at once with it: spread over all slots, in as few rounds."""
        most, slots = self.most_at_once(first), min(self.capacity.slots, self.max_concurrent)
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
                rows = finished_rows(self.book.store, cell)
                self.book.end(cell, results.final_metrics(rows) if rows else {})
                self.failed += [] if rows else [(cell, self._why(cell, metrics))]
        self._waiting = None
        if self.watch is not None:
            self.watch.ended(job, metrics)

    def _why(self, cell: Cell, metrics: Mapping[str, Any]) -> str:
        """Why a cell has no rows: what a process that was late wrote of it, else what its job reported."""
        store, file = self.book.store, results.late_file(cell.id)
        late = store.read(file).decode() if store.exists(file) else ""
        return short(late or str(metrics.get("error", "its process ended before it did")))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "watch": None, "cost": None, "worthwhile": None, "most_at_once": None}
