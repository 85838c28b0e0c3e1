"""The training loop. It knows nothing of Ray: with a torch.distributed group it is data-parallel, without
one it is a plain loop, and the trajectory is the same to rounding.

    learner = Learner(...)
    for epoch in epochs:
        for batch in batches(seed, epoch):      # this worker's slice of each global batch
            batch = remedy.transform(batch)
            remedy.step(learner, batch, gradient)
        remedy.after_epoch(learner, batch)
        evaluate; report; checkpoint (written aside)

Points of the test curve are evaluated in the precision of the run, which takes a share of the time; what is
reported of its end, in float32.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lbdist import results
from lbdist.data.base import Dataset, on_device
from lbdist.errors import InputError
from lbdist.plan import Cell
from lbdist.remedies.base import make_remedy
from lbdist.results import Row
from lbdist.storage import Store
from lbdist.training import checkpoint
from lbdist.training.aside import SHARE, Aside, copied
from lbdist.training.batches import Workers, batches
from lbdist.training.learner import Learner, make_learner
from lbdist.training.learning_rate import LearningRate
from lbdist.training.precision import EXACT, Arithmetic
from lbdist.training.seeds_at_once import SeedsAtOnce

IMPROVEMENT = 1e-3
"""By which share the running loss must fall below its lowest to count as improved."""

FIRST_STEP_SECONDS = 600.0
"""What the first step of a process may take, which compiles and warms up."""

Report = Callable[[dict[str, float]], None]
"""Called with the latest metrics after an epoch."""

Allow = Callable[[float, str], None]
"""Told, before what may take its time, how many seconds that has, and what it is."""


@dataclass
class Course:
    """How far a run has come.

    Attributes:
        history: Rows of its epochs.
        seconds: Training and its test curve, over all processes that it ran in.
        epoch: Epochs that are over.
        diverged: Whether the loss stopped being a number.
        lowest: The lowest running loss that counts as one, of `since` epochs ago.
        since: Epochs since the loss improved.
        reached: Whether the training loss reached the cell's `target_loss`.
        last: Rows of its end, once that is there.
    """

    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    epoch: int = 0
    diverged: bool = False
    lowest: float = math.inf
    since: int = 0
    reached: bool = False
    last: list[Row] = field(default_factory=list)

    def ended(self, running: float) -> None:
        """Takes note of an epoch and its running loss."""
        self.epoch += 1
        self.diverged = not math.isfinite(running)
        improved = running < self.lowest * (1 - IMPROVEMENT)
        self.lowest, self.since = (running, 0) if improved else (self.lowest, self.since + 1)

    def over(self, cell: Cell) -> bool:
        """Whether this was the last epoch, or the loss diverged, reached its target or no longer improves."""
        still = cell.patience is not None and self.since >= cell.patience
        return self.epoch >= cell.epochs or self.diverged or still or self.reached


def unlimited(seconds: float, what: str) -> None:
    """No limit of time."""


def _patience(seconds: float) -> float:
    """What is given to what took, or should take, so many seconds: beyond it, it never ends."""
    return 60.0 + 20.0 * seconds


class _Run:
    """A cell in training: its learner, its remedy and how far they have come; the arguments are `train`'s."""

    def __init__(
        self,
        cell: Cell,
        data: Dataset,
        make: Callable[[], Learner],
        store: Store | None,
        allow: Allow,
        cells_at_once: int,
    ) -> None:
        self.cell, self.make, self.allow, self.cells_at_once = cell, make, allow, cells_at_once
        self._begin()
        self.start = self.learner.x.clone()
        device, dtype = self.learner.x.device, self.learner.x.dtype
        self.train, self.test = on_device(data.train, device, dtype), on_device(data.test, device, dtype)
        self.store = store / results.cell_folder(cell.id) if store is not None else None
        self.longest = 0.0  # seconds of an epoch in this process
        self.aside = Aside(SHARE / cells_at_once)
        self._resume()

    def _begin(self) -> None:
        self.learner, self.remedy, self.course = self.make(), make_remedy(self.cell.remedies), Course()

    def _resume(self) -> None:
        """Goes on from the last whole checkpoint; a damaged one is as good as none."""
        if self.store is None:
            return
        try:
            state = checkpoint.load(self.store, self.learner.x.device)
        except (FileNotFoundError, InputError):
            return
        try:
            self.learner.arithmetic = Arithmetic(**state["arithmetic"])
            self.learner.restore(state["learner"])
            self.remedy.restore(state["remedy"])
            self.course = Course(**state["course"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):  # other code wrote it
            self._begin()

    def epoch(self) -> dict[str, float]:
        """Trains for an epoch, evaluates where the test curve has a point, and keeps what there is."""
        learner, course, began = self.learner, self.course, time.perf_counter()
        what = f"epoch {course.epoch + 1}"
        if self.longest:
            self.allow(_patience(self.longest), what)
        else:
            self.allow(FIRST_STEP_SECONDS, f"the first step of {what}")
        with learner.arithmetic.applied():
            running = self._pass()
        course.ended(running)
        point = {"epoch": course.epoch, "step": learner.counts["steps"]}
        course.history.append({**point, "metric": "running_loss", "value": running, "split": "train"})
        found = self._evaluate()
        course.history += [{**point, **row} for row in found]
        spent = time.perf_counter() - began
        self.longest = max(self.longest, spent)
        course.seconds += spent / self.cells_at_once
        self._keep()
        # NaN where there is no point of the test curve: Tune's CSV has the columns of the first report
        names = results.final_name("loss", self.cell.split), results.final_name(self._score, self.cell.split)
        shown = {results.final_name(row["metric"], row["split"]): row["value"] for row in found}
        latest = {name: shown.get(name, math.nan) for name in names}
        return {"epoch": course.epoch, "running_loss": running, **latest}

    @property
    def _score(self) -> str:
        return self.learner.criterion.score

    def _evaluate(self) -> list[Row]:
        """Loss and score on the splits on which they are asked for after this epoch, and of the run's end."""
        cell, course, learner = self.cell, self.course, self.learner
        points, ends = _Evaluated(learner, learner.arithmetic), _Evaluated(learner, EXACT)
        if learner.arithmetic.precision == EXACT.precision:
            ends = points
        if cell.target_loss is not None:
            # a claim of the run's end, so the first is not enough
            course.reached = all(on("train", self.train)[0] <= cell.target_loss for on in (points, ends))
        over = course.over(cell)
        if over or course.epoch % max(1, cell.epochs // cell.test_points) == 0:
            if cell.split == "test" or over:  # a search is not drawn
                points("train", self.train)
            points(cell.split, self.test)
        if over:
            for split, samples in (("train", self.train), (cell.split, self.test)):
                ends(split, samples)
            course.last = [{**row, "precision": EXACT.precision} for row in ends.rows()]
        return points.rows()

    def _pass(self) -> float:
        """One pass over the training set; the mean loss that its steps saw."""
        cell, learner, remedy, epoch = self.cell, self.learner, self.remedy, self.course.epoch
        began = time.perf_counter()
        learner.loss.zero_()
        learner.loss_samples = 0.0
        size = remedy.batch_size(cell.global_batch_size, epoch, cell.epochs)
        steps = math.ceil(len(self.train[1]) / size)
        whole, rate = None, LearningRate(**cell.schedule) if cell.schedule is not None else None
        given = batches(
            *self.train,
            global_batch_size=size,
            seed=cell.seed,
            epoch=epoch,
            workers=learner.workers,
            ghost_batch_size=cell.ghost_batch_size,
            dtype=learner.x.dtype,
            device=learner.x.device,
        )
        for step, batch in enumerate(given):
            if rate is not None:
                learner.scale_rate(rate.factor(step, steps, epoch, cell.epochs))
            batch = remedy.transform(batch)
            remedy.step(learner, batch, functools.partial(remedy.gradient, learner, batch))
            learner.counts["steps"] += 1
            if whole is None and not self.longest:  # allowed what the first step promises
                self.allow(_patience(steps * (time.perf_counter() - began)), f"epoch {epoch + 1}")
            whole = batch if batch.size == size or whole is None else whole
        running = float(learner.workers.sum(learner.loss)) / learner.loss_samples
        learner.check()
        assert whole is not None
        remedy.after_epoch(learner, whole)
        return running

    def _keep(self) -> None:
        """Writes the resume file, and the model of an epoch that the cell keeps."""
        store, learner, course = self.store, self.learner, self.course
        if store is None or learner.workers.rank:
            return
        if course.epoch in self.cell.keep:
            self._save_model(course.epoch)
        if course.over(self.cell):
            return  # there is nothing to go on with

        def state() -> dict[str, Any]:
            parts = {"learner": learner.state(), "remedy": self.remedy.state()}
            plain = {"course": {**vars(course), "history": list(course.history)}}
            return {**copied(parts), **plain, "arithmetic": vars(learner.arithmetic)}

        size = 3 * learner.x.nbytes  # with ADAM's
        self.aside.offer(size, state, lambda state: checkpoint.save(store, state))

    def _save_model(self, epoch: int | None = None) -> None:
        store, name = self.store, checkpoint.model_name(epoch)
        if store is None or self.learner.workers.rank:
            return
        model = self.learner.model()
        self.aside.write(lambda: checkpoint.save_model(store, name, model))

    def end(self) -> list[Row]:
        """Writes the last model; all rows of the run."""
        self._save_model()
        self.aside.finish()
        totals = {
            **self.learner.counts,
            "seconds": self.course.seconds,
            "distance_from_start": float((self.learner.model_x() - self.start).norm()),
            "diverged": float(self.course.diverged),
        }
        ends = [{"metric": metric, "value": float(value)} for metric, value in totals.items()]
        rows = self.course.history + self.course.last + ends
        return [{**self.learner.arithmetic.columns(), **row} for row in rows]


class _Evaluated:
    """A learner's loss and score, on each split that is asked for once.

    Args:
        learner: In training.
        arithmetic: In which they are computed.
    """

    def __init__(self, learner: Learner, arithmetic: Arithmetic) -> None:
        self.learner, self.arithmetic = learner, arithmetic
        self.found: dict[str, tuple[float, float]] = {}

    def __call__(self, split: str, samples: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Loss and score on a split."""
        if split not in self.found:
            self.found[split] = self.learner.evaluate(samples, arithmetic=self.arithmetic)
        return self.found[split]

    def rows(self) -> list[Row]:
        """What was asked for."""
        names = "loss", self.learner.criterion.score
        return [
            {"metric": metric, "value": value, "split": split}
            for split, values in self.found.items()
            for metric, value in zip(names, values, strict=True)
        ]


def train(
    cell: Cell,
    data: Dataset,
    *,
    workers: Workers | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    arithmetic: Arithmetic = EXACT,
    store: Store | None = None,
    report: Report = lambda metrics: None,
    allow: Allow = unlimited,
    together: SeedsAtOnce | None = None,
) -> tuple[list[Row], Tensor]:
    """Trains one cell from its resume file or its start to its last epoch.

    Args:
        cell: What to train.
        data: Training set, and the split on which the curve is measured (test or validation).
        workers: This process's place in the data-parallel group; None asks torch.distributed.
        device: Where to train.
        dtype: Of parameters and samples.
        arithmetic: Of forward and backward passes; a run that is resumed keeps the one that it had.
        store: The storage folder. Worker 0 writes the cell's resume file there, after epochs and no more
            often than takes `aside.SHARE` of the time, and the models of the epochs that the cell keeps and
            of the last; None keeps nothing.
        report: Called by every worker after every epoch with the latest metrics.
        allow: Told, before each step that may take its time, how many seconds it has, and what it is.
        together: The cells that are trained at the same time; each has its share of the seconds.

    Returns:
        The cell's rows (the same on every worker) and the final parameters, shape (n,).

    Raises:
        FileNotFoundError: The cell begins at a model that is not there.
    """
    group = workers or Workers.current()

    def make() -> Learner:
        network = checkpoint.starting_point(store, cell, device, dtype)
        return make_learner(cell, network, group, arithmetic, together.gradient if together else None)

    return _to_the_end(_Run(cell, data, make, store, allow, together.size if together else 1), report)


def train_as(
    cell: Cell, data: Dataset, make: Callable[[], Learner]
) -> tuple[list[Row], Mapping[str, Tensor]]:
    """Trains a learner as a cell says, whose network, loss and optimiser are the learner's own.

    Args:
        cell: Remedies, batch, epochs, seed, schedule.
        data: Training and test set.
        make: Makes the learner.

    Returns:
        The cell's rows, and the model as a state dict.
    """
    run = _Run(cell, data, make, None, unlimited, 1)
    rows, _ = _to_the_end(run, lambda metrics: None)
    return rows, run.learner.model()


def _to_the_end(run: _Run, report: Report) -> tuple[list[Row], Tensor]:
    with run.aside:
        while not run.course.over(run.cell):
            report(run.epoch())
        return run.end(), run.learner.model_x()
