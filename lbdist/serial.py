"""A study in this process, one cell after the other, without Ray: for a debugger, a notebook, one GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lbdist import arrange
from lbdist.capacity import Capacity
from lbdist.errors import one_line
from lbdist.progress import Progress
from lbdist.session import Failed, Lost, Session
from lbdist.sharpness.evaluator import Evaluator
from lbdist.sharpness.measure import cost
from lbdist.storage import FULL
from lbdist.training.cell import run_cells
from lbdist.training.hardware import using
from lbdist.training.precision import in_which
from lbdist.tuning.book import Book
from lbdist.tuning.schedule import Schedule


class SerialSession(Session):
    """`executor=serial`: the rows are those of the same study through Ray."""

    def devices(self) -> Capacity:
        """One process, on the first GPU if there is one."""
        return Capacity(1, min(1, torch.cuda.device_count()))

    def limit(self, capacity: Capacity) -> str:
        """Why a cell has no group of workers here."""
        return "since executor=serial runs in this process alone (a worker group takes executor=ray)"

    def work(self, book: Book, progress: Progress, command: str) -> tuple[list[Failed], list[Lost]]:
        """Trains and measures what is not done."""
        capacity = self.devices()
        gpu = capacity.gpus > 0
        device = "cuda" if gpu else "cpu"

        def ask(what: Callable[..., Any], first: object, *rest: object) -> Any:
            return what(first, self.data, *rest)

        with using(torch.get_num_threads() if gpu else 1):  # a process of Ray's has one, and so the same bits
            cells, say = self.cells.values(), progress.note
            arithmetic = arrange.arithmetic(cells, book, gpu, ask, say)
            most_at_once = arrange.seeds_at_once(cells, self.config.seeds_at_once, gpu, arithmetic, ask, say)

            def run(schedule: Schedule) -> None:
                while (job := schedule.next("this process")) is not None:
                    how, watch = in_which(arithmetic, job.cells[0]), lambda m, job=job: progress.ran(job, m)
                    try:
                        final: Any = run_cells(
                            job.cells, self.data, self.store, device, watch, how, limited=False
                        )
                    except Exception as error:
                        final = {"error": f"{type(error).__name__}: {one_line(error)}"}
                    schedule.complete("this process", final)

            failed = self.train(book, capacity, most_at_once, progress, run)
            missing, lost = self.missing(book), []
            progress.begin_measurements(missing, cost)
            evaluator = Evaluator(self.data, self.store, device)
            for measurement in missing:
                try:
                    rows = evaluator.measure(measurement)
                except Exception as error:
                    if isinstance(error, OSError) and error.errno in FULL:
                        raise  # every other one would fail as well
                    lost.append((measurement, f"{type(error).__name__}: {one_line(error)}"))
                    rows = [{**measurement.columns(), "error": lost[-1][1]}]
                progress.measured(measurement, rows)
        return failed, lost
