"""Progress of a study: what runs, what is done, what it gave, and an estimate of the time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from lbdist.errors import short
from lbdist.output import Output
from lbdist.plan import Cell, Measurement, title
from lbdist.results import final_name

if TYPE_CHECKING:
    from lbdist.tuning.schedule import Job

LINE_SECONDS = 5.0
"""Without a terminal, what runs is said at most this often."""


class Progress:
    """Bars on a terminal, plain lines elsewhere.

    Args:
        cells: Gives the cells of the study, as far as they can be told, whenever it is asked.
        done: Those that were finished before.
        weight: How long a cell takes, in any unit.
        score: The metric that is shown of a finished cell.
        unit: Its unit.
        point: Of a sweep, what a cell is told apart by.
        out: Where to, without a terminal.
    """

    def __init__(
        self,
        cells: Callable[[], Iterable[Cell]],
        done: Sequence[Cell],
        weight: Callable[[Cell], float],
        score: str = "accuracy",
        unit: str = "%",
        point: Callable[[Cell], str] = lambda cell: "",
        out: Output | None = None,
    ) -> None:
        self.cells, self.weight, self.point, self.out = cells, weight, point, out or Output()
        self.score, self.unit = score, f" {unit}".rstrip()
        self._before = {cell.id for cell in done}
        self._ended = set(self._before)
        self._look()
        self._running: dict[str, tuple[Job, Mapping[str, Any]]] = {}
        self._place: dict[str, int] = {}  # which of its cells a job is at
        # time and weight left when jobs of as many workers first reported: groups have another pace
        self._first: tuple[float, float] | None = None
        self._workers = 0
        self._said = time.monotonic()
        self.plain = self.out.plain or not sys.stdout.isatty()
        columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
        self.bar = Bar(
            TextColumn("{task.description}"), *columns, console=Console(), disable=self.plain, transient=True
        )
        self.task = self.bar.add_task("cells", total=self.total, completed=self.counted, note="")
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.plain:  # rich before 14.3 ends the line even of a bar that it does not draw
            self.bar.stop()

    def note(self, line: str, event: str = "note", **values: Any) -> None:
        """Says a line of its own, and what scripts want of it."""
        self._said = time.monotonic()
        if self.plain:
            self.out.say(line, event, **values)
        else:
            self.bar.console.print(line, highlight=False, markup=False)

    def began(self, job: Job) -> None:
        """A job was handed out; one that was finished before is not shown."""
        if job.id in self._before:
            return
        self._running[job.id], self._place[job.id] = (job, {}), 0
        name = self._job(job) + (f", {job.workers} workers starting" if job.workers > 1 else "")
        self._tasks[job.id] = self.bar.add_task("  " + name, total=job.cells[0].epochs, note="")
        self._status()

    def ran(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """A job reported an epoch."""
        if job.id not in self._running or "epoch" not in metrics:
            return
        before = self._running[job.id][1].get("epoch", 0)
        if metrics["epoch"] < before and self._place[job.id] < len(job.cells) - 1 and not job.at_once:
            self._place[job.id] += 1  # the next cell of a group
        self._running[job.id] = job, metrics
        self._pace(job)
        note = f"loss {metrics['running_loss']:.3g}"
        task, name = self._tasks[job.id], "  " + self._label(job)
        self.bar.update(task, completed=metrics["epoch"], description=name, note=note)
        self._status()

    def ended(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """A job ended, with its final metrics or its `error`."""
        if self._running.pop(job.id, None) is None:
            return
        self.bar.remove_task(self._tasks.pop(job.id))
        self._ended |= {cell.id for cell in job.cells}
        self._look()
        self._pace(job)
        if "error" in metrics:
            said = "failed: " + short(str(metrics["error"]).strip().splitlines()[-1])
        elif metrics.get("diverged"):
            said = "diverged"
        else:
            split = job.cells[0].split
            names = final_name(self.score, split), "seconds"
            score, seconds = (metrics.get(key, math.nan) for key in names)
            said = "" if math.isnan(score) else f"{split} {self.score} {score:.4g}{self.unit}, "
            said += f"{seconds:.1f} s"
        left = self._time_left()
        line = f"[{self.counted}/{self.total}] {self._job(job)}: {said}"
        line += f", {left}" if self.plain and left else ""
        done = {"done": self.counted, "total": self.total}
        self.note(line, "cell", cells=[cell.id for cell in job.cells], **done, metrics=metrics)
        self.bar.update(self.task, completed=self.counted, total=self.total, note=left)

    def _look(self) -> None:
        """Asks for the cells anew, since what ends brings some up and rules others out."""
        known = {cell.id: cell for cell in self.cells()}
        self.counted, self.total = len(self._ended), len(known.keys() | self._ended)
        self._left = sum(self.weight(cell) for key, cell in known.items() if key not in self._ended)

    def _status(self) -> None:
        """Says what runs, unless something was said a moment ago."""
        left = self._time_left()
        self.bar.update(self.task, note=left)
        if not self.plain or time.monotonic() < self._said + LINE_SECONDS:
            return
        texts = []
        for job, metrics in self._running.values():
            cell = self._cell(job)
            if "epoch" in metrics:
                loss = f"loss {metrics['running_loss']:.3g}"
                texts.append(f"{self._label(job)}: epoch {metrics['epoch']} of {cell.epochs}, {loss}")
            else:
                texts.append(
                    f"{self._job(job)}: {f'{job.workers} workers ' if job.workers > 1 else ''}starting"
                )
        self.note("; ".join([*texts, *([left] if left else [])]))

    def _cell(self, job: Job) -> Cell:
        return job.cells[self._place[job.id]]

    def _label(self, job: Job) -> str:
        return self._job(job) if job.at_once else self._cell(job).label + self.point(self._cell(job))

    def _job(self, job: Job) -> str:
        return job.label + self.point(job.cells[0])

    def _pace(self, job: Job) -> None:
        """Takes the time from here where jobs of another number of workers begin to report."""
        if self._first is None or job.workers != self._workers:
            self._first, self._workers = (time.monotonic(), self._weight_left()), job.workers

    def _weight_left(self) -> float:
        """The weight of what has still to run, that of running cells less what they have done."""
        ran = 0.0
        for job, metrics in self._running.values():
            ran += sum(map(self.weight, job.cells[: self._place[job.id]]))
            now = job.cells if job.at_once else [self._cell(job)]
            ran += sum(map(self.weight, now)) * min(1.0, metrics.get("epoch", 0) / now[0].epochs)
        return self._left - ran

    def _time_left(self) -> str:
        """An estimate from the pace since the first report; empty before there is one."""
        left = self._weight_left()
        if self._first is None or left <= 0:
            return ""
        seconds, weight = time.monotonic() - self._first[0], self._first[1] - left
        if seconds < 2 or weight <= 0.02 * self._first[1]:
            return ""
        return _about(seconds / weight * left) + " of training left"

    def begin_measurements(
        self, missing: Sequence[Measurement], cost: Callable[[Measurement], float]
    ) -> None:
        """Turns to the measurements that have still to be made, and what each costs, in any unit."""
        if missing:
            self.note(f"{several(len(missing), 'measurement')} to make")
        self.counted, self.total = 0, len(missing)
        self._cost = {measurement.id: cost(measurement) for measurement in missing}
        self.bar.reset(self.task, total=self.total, description="measurements", note="")

    def measured(self, measurement: Measurement, rows: Sequence[Mapping[str, Any]]) -> None:
        """Books a measurement."""
        self.counted += 1
        self._cost.pop(measurement.id, None)
        now, to_do = time.monotonic(), sum(self._cost.values())
        if self.counted == 1:
            self._measuring = now, to_do  # the processes have started
        began, then = self._measuring
        left = ""
        if 0 < to_do < then and now > began:
            left = _about((now - began) / (then - to_do) * to_do) + " left"
        self.bar.update(self.task, completed=self.counted, note=left)
        if rows and rows[0].get("error"):
            self.note(f"{title(measurement.measure)} of {measurement.at[0].cell.label}: {rows[0]['error']}")
        elif self.plain and (time.monotonic() > self._said + LINE_SECONDS or self.counted == self.total):
            line = f"[{self.counted}/{self.total}] measurement" + "s" * (self.total != 1)
            done = {"done": self.counted, "total": self.total}
            self.note(line + (f", {left}" if left else ""), "measurements", **done)


def several(count: int, what: str) -> str:
    """A number of things.

    Example:
        >>> several(1, "cell"), several(1200, "cell")
        ('1 cell', '1,200 cells')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def _about(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"
