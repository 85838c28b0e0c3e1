"""The training loop. It knows nothing of Ray: with a torch.distributed group it is data-parallel, without
one it is a plain loop, and the trajectory is the same to rounding.

    learner = Learner(...)
    for epoch in epochs:
        for batch in batches(seed, epoch):      # this worker's slice of each global batch
            batch = remedy.transform(batch)
            remedy.step(learner, batch, gradient)
        remedy.after_epoch(learner, batch)
        evaluate; report; checkpoint
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbdist import results
from lbdist.config.build import build
from lbdist.data.base import Dataset, Split
from lbdist.errors import InputError
from lbdist.losses import Loss
from lbdist.plan import Cell, Node
from lbdist.remedies.base import Combined, Remedy
from lbdist.storage import Damaged, Store
from lbdist.training import checkpoint
from lbdist.training.batches import Workers, batches
from lbdist.training.deadline import Deadline
from lbdist.training.learner import Learner, optimizer_factory
from lbdist.training.precision import EXACT, Arithmetic
from lbdist.training.replicas import Replicas
from lbdist.training.schedule import Schedule

Row = dict[str, Any]

IMPROVEMENT = 1e-3
"""By which share the running loss must fall below its lowest to count as improved."""

FIRST_STEP_SECONDS = 600.0
"""What the first step of a process may take, which compiles and warms up."""


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
        reached: Whether the training loss came down to the cell's `target_loss`.
    """

    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    epoch: int = 0
    diverged: bool = False
    lowest: float = math.inf
    since: int = 0
    reached: bool = False

    def ended(self, running: float) -> None:
        """Takes note of an epoch and its running loss."""
        self.epoch += 1
        self.diverged = not math.isfinite(running)
        improved = running < self.lowest * (1 - IMPROVEMENT)
        self.lowest, self.since = (running, 0) if improved else (self.lowest, self.since + 1)

    def over(self, cell: Cell) -> bool:
        """Whether this was the last epoch: of all, or as the loss is where it was to come to, or still."""
        still = cell.patience is not None and self.since >= cell.patience
        return self.epoch >= cell.epochs or self.diverged or still or self.reached

    def last(self) -> list[Row]:
        """What was evaluated after the last epoch, as rows of the run's end."""
        rows = [row for row in self.history if row["epoch"] == self.epoch and row["metric"] != "running_loss"]
        return [{key: row[key] for key in ("metric", "value", "split")} for row in rows]


PROCEDURE_SECONDS = 3600.0
"""What a procedure may take that runs instead of training."""


def _unlimited(seconds: float, what: str) -> None:
    """No limit of time."""


def _patience(seconds: float) -> float:
    """What is given to what took, or should take, so many seconds: beyond it, it never ends."""
    return 60.0 + 20.0 * seconds


def on_device(
    split: Split, device: torch.device | str, dtype: torch.dtype = torch.float32, room: float | None = None
) -> tuple[Tensor, Tensor]:
    """A split as tensors, which nobody may write to: uint8 stays uint8, floating point takes the precision.

    Args:
        split: The samples; those of other processes of a node are in memory that they share.
        device: Where they are to be, if they fit; else they stay, and batches are sent.
        dtype: The precision.
        room: Bytes that they may take on the device; None for half of what is free on a GPU.
    """
    device = torch.device(device)
    if room is None:
        room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        inputs, labels = torch.from_numpy(split.inputs), torch.from_numpy(split.labels)
    kind = dtype if inputs.is_floating_point() else inputs.dtype
    fits = inputs.numel() * kind.itemsize + labels.nbytes <= room
    where = device if fits else torch.device("cpu")
    return inputs.to(where, kind), labels.to(where)


def make_remedy(nodes: Sequence[Node]) -> Remedy:
    """The remedy of a cell: none, one, or several combined."""
    names = [str(node.get("name", f"{place}")) for place, node in enumerate(nodes)]
    made: list[Remedy] = [
        build(node, f"remedy.{name}", kind=Remedy) for name, node in zip(names, nodes, strict=True)
    ]
    if len(made) > 1:
        return Combined(dict(zip(names, made, strict=True)))
    return made[0] if made else Remedy()


def make_learner(
    cell: Cell,
    network: torch.nn.Module,
    workers: Workers,
    arithmetic: Arithmetic = EXACT,
    replicas: Replicas | None = None,
    kind: type[Learner] = Learner,
) -> Learner:
    """A cell's learner, around its network; of a kind that times itself, if asked."""
    loss: Loss = build(cell.loss, "loss", kind=Loss)
    sizes = cell.ghost_batch_size, cell.micro_batch_size
    return kind(network, optimizer_factory(cell.optimizer), workers, *sizes, loss, arithmetic, replicas)


def train(
    cell: Cell,
    data: Dataset,
    *,
    workers: Workers | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    arithmetic: Arithmetic = EXACT,
    store: Store | None = None,
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
    allow: Callable[[float, str], None] = _unlimited,
    replicas: Replicas | None = None,
) -> tuple[list[Row], Tensor]:
    """Trains one cell from its resume file or its start to its last epoch.

    Args:
        cell: What to train.
        data: Training set, and the split on which the curve is measured (test or validation).
        workers: This process's place in the data-parallel group; None asks torch.distributed.
        device: Where to train.
        dtype: Of parameters and samples.
        arithmetic: Of forward and backward passes; a run that is resumed keeps the one that it had.
        store: The storage folder. Worker 0 writes the cell's resume file there after every epoch, and the
            models of the epochs that the cell keeps and of the last; None keeps nothing.
        report: Called by every worker after every epoch with the latest metrics.
        allow: Told, before each step that may take its time, how many seconds it has, and what it is.
        replicas: Other cells that are trained at the same time; each has its share of the seconds.

    Returns:
        The cell's rows (the same on every worker) and the final parameters, shape (n,).

    Raises:
        FileNotFoundError: The cell begins at a model that is not there.
    """
    workers = workers or Workers.current()
    own = store / results.cell_folder(cell.id) if store is not None else None
    writes = own if workers.rank == 0 else None

    def begin() -> tuple[Learner, Remedy]:
        network = checkpoint.starting_point(store, cell, device, dtype)
        return make_learner(cell, network, workers, arithmetic, replicas), make_remedy(cell.remedies)

    learner, remedy = begin()
    start = learner.x.clone()
    train_split, test_split = on_device(data.train, device, dtype), on_device(data.test, device, dtype)
    split = "test" if cell.validation_fraction is None else "validation"
    course = Course()
    state = _resume(own, device)
    if state is not None:
        try:
            learner.arithmetic = Arithmetic(**state["arithmetic"])
            learner.restore(state["learner"])
            remedy.restore(state["remedy"])
            course = Course(**state["course"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):  # other code wrote it
            (learner, remedy), course = begin(), Course()
    every, longest = max(1, cell.epochs // cell.evaluations), 0.0
    while not course.over(cell):
        epoch, began = course.epoch, time.perf_counter()
        if longest:
            allow(_patience(longest), f"epoch {epoch + 1}")
        else:
            allow(FIRST_STEP_SECONDS, f"the first step of epoch {epoch + 1}")
        with learner.arithmetic.applied():
            running = _epoch(cell, learner, remedy, train_split, epoch, None if longest else allow)
        point = {"epoch": epoch + 1, "step": learner.counts["steps"]}
        course.ended(running)
        course.history.append({**point, "metric": "running_loss", "value": running, "split": "train"})
        # NaN where there is no point of the test curve: Tune's CSV has the columns of the first report
        names = "loss", learner.criterion.score
        metrics = {"epoch": epoch + 1, "running_loss": running} | dict.fromkeys(names, math.nan)
        found: dict[str, tuple[float, float]] = {}
        if cell.target_loss is not None:
            found["train"] = learner.evaluate(train_split)
            course.reached = found["train"][0] <= cell.target_loss
        if course.over(cell) or (epoch + 1) % every == 0:
            if "train" not in found and (split == "test" or course.over(cell)):  # a search is not drawn
                found["train"] = learner.evaluate(train_split)
            found[split] = learner.evaluate(test_split)
            metrics |= zip(names, found[split], strict=True)
        course.history += [
            {**point, "metric": name, "value": value, "split": where}
            for where, values in found.items()
            for name, value in zip(names, values, strict=True)
        ]
        spent = time.perf_counter() - began
        longest = max(longest, spent)
        course.seconds += spent / (replicas.size if replicas else 1)
        if writes is not None:
            if epoch + 1 in cell.keep:
                checkpoint.save_model(writes, checkpoint.model_name(epoch + 1), learner.model())
            checkpoint.save(
                writes,
                {
                    "learner": learner.state(),
                    "remedy": remedy.state(),
                    "course": vars(course),
                    "arithmetic": vars(learner.arithmetic),
                },
            )
        report(metrics)
    if writes is not None:
        checkpoint.save_model(writes, checkpoint.model_name(), learner.model())
    totals = {
        **learner.counts,
        "seconds": course.seconds,
        "distance_from_start": float((learner.x - start).norm()),
        "diverged": float(course.diverged),
    }
    ends = [{"metric": metric, "value": float(value)} for metric, value in totals.items()]
    rows = course.history + course.last() + ends
    return [{**row, **learner.arithmetic.columns()} for row in rows], learner.x


def _epoch(
    cell: Cell,
    learner: Learner,
    remedy: Remedy,
    samples: tuple[Tensor, Tensor],
    epoch: int,
    allow: Callable[[float, str], None] | None,
) -> float:
    """One pass over the training set, allowed what its first step promises; the mean loss that steps saw."""
    began = time.perf_counter()
    learner.loss.zero_()
    learner.loss_samples = 0.0
    size = remedy.batch_size(cell.global_batch_size, epoch, cell.epochs)
    steps = math.ceil(len(samples[1]) / size)
    whole, schedule = None, Schedule(**cell.schedule) if cell.schedule is not None else None
    given = batches(
        *samples,
        global_batch_size=size,
        seed=cell.seed,
        epoch=epoch,
        workers=learner.workers,
        ghost_batch_size=cell.ghost_batch_size,
        dtype=learner.x.dtype,
        device=learner.x.device,
    )
    for step, batch in enumerate(given):
        if schedule is not None:
            learner.scale_rate(schedule.factor(step, steps, epoch, cell.epochs))
        batch = remedy.transform(batch)
        remedy.step(learner, batch, functools.partial(remedy.gradient, learner, batch))
        learner.counts["steps"] += 1
        if whole is None and allow is not None:
            allow(_patience(steps * (time.perf_counter() - began)), f"epoch {epoch + 1}")
        whole = batch if batch.size == size or whole is None else whole
    running = float(learner.workers.sum(learner.loss)) / learner.loss_samples
    learner.check()
    assert whole is not None
    remedy.after_epoch(learner, whole)
    return running


def _resume(store: Store | None, device: torch.device | str) -> dict[str, Any] | None:
    """The last whole checkpoint; a damaged one is as good as none."""
    if store is None:
        return None
    try:
        return checkpoint.load(store, device)
    except (FileNotFoundError, InputError):
        return None


def run_cell(
    cell: Cell,
    data: Dataset,
    store: Store,
    device: torch.device | str = "cpu",
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
    arithmetic: Arithmetic = EXACT,
    began: float | None = None,
    replicas: Replicas | None = None,
    limited: bool = True,
) -> dict[str, float]:
    """Trains a cell and writes its rows and models; a cell that has them is only read.

    Every worker of a group calls this; worker 0 writes.

    Args:
        cell: What to train.
        data: Training and test set.
        store: The storage folder.
        device: Where to train.
        report: Called by every worker after every epoch with the latest metrics.
        arithmetic: In which it is trained.
        began: When the cell was handed out, in seconds since the epoch; None for now.
        replicas: Other cells that are trained at the same time.
        limited: Whether a run that hangs ends its process, which somebody else is to start again.

    Returns:
        The final metrics.
    """
    rows: Sequence[Row] = finished_rows(store, cell)
    if not rows:
        began = time.time() if began is None else began
        workers = Workers.current()
        if cell.validation_fraction is not None:
            data = data.validation_split(cell.validation_fraction)

        def late(what: str) -> None:
            Store.of(store).write(results.late_file(cell.id), what.encode())

        with Deadline(late) as deadline:
            allow = deadline.allow if limited else _unlimited
            if cell.procedure is None:
                rows, _ = train(
                    cell,
                    data,
                    workers=workers,
                    device=device,
                    arithmetic=arithmetic,
                    store=store,
                    report=report,
                    allow=allow,
                    replicas=replicas,
                )
            else:
                from lbdist.training.procedures import Task  # which imports this module

                allow(PROCEDURE_SECONDS, "it")
                task = Task(cell, data, workers, torch.device(device), arithmetic, store)
                rows = build(cell.procedure, "procedure")(task)
        if workers.rank == 0:
            size = replicas.size if replicas else 1
            spent = size * sum(row["value"] for row in rows if row["metric"] == "seconds")
            rows = [*rows, {"metric": "overhead_seconds", "value": time.time() - began - spent}]
            fixed = {"cell": cell.id, "num_workers": workers.size, "replicas": size}
            fixed |= {name: rows[0].get(name) for name in ("precision", "memory_format")}
            results.write_rows(store, results.cell_file(cell.id), [{**fixed, **row} for row in rows])
            store.remove(f"{results.cell_folder(cell.id)}/{checkpoint.RESUME}")
            store.remove(results.late_file(cell.id))
    return final_metrics(rows)


def run_cells(
    cells: Sequence[Cell],
    data: Dataset,
    store: Store,
    device: torch.device | str,
    report: Callable[[dict[str, float]], None],
    arithmetic: Arithmetic,
    began: float | None = None,
    limited: bool = True,
) -> dict[str, float]:
    """`run_cell`; of several cells of one kind, which are trained at once, as replicas, what they all gave.

    Returns:
        The final metrics: the means over the cells.
    """
    if len(cells) == 1:
        return run_cell(cells[0], data, store, device, report, arithmetic, began, limited=limited)
    replicas = Replicas()
    todo = [cell for cell in cells if not finished_rows(store, cell)]

    def training(cell: Cell) -> Callable[[Callable[[dict[str, float]], None]], Any]:
        return lambda say: run_cell(cell, data, store, device, say, arithmetic, began, replicas, limited)

    replicas.run([training(cell) for cell in todo], report)
    return mean_metrics(store, cells)


def mean_metrics(store: Store, cells: Sequence[Cell]) -> dict[str, float]:
    """The final metrics of cells that are finished: the means over them, of those that all have."""
    finals = [final_metrics(finished_rows(store, cell)) for cell in cells]
    shared = [name for name in finals[0] if all(name in final for final in finals)]
    return {name: float(np.mean([final[name] for final in finals])) for name in shared}


def finished_rows(store: Store, cell: Cell) -> list[Row]:
    """The rows of a cell that is finished, with every model that it keeps; else none."""
    try:
        rows = results.read_rows(store, results.cell_file(cell.id))
    except Damaged:
        return []
    return rows if rows and has_models(store, cell, rows) else []


def has_models(store: Store, cell: Cell, rows: Sequence[Row]) -> bool:
    """Whether every model is there that a cell with these rows keeps."""
    # it may have ended early
    last = max((row["epoch"] for row in rows if row.get("epoch")), default=cell.epochs)
    kept = (epoch for epoch in cell.keep if epoch <= last)
    models = (f"{results.cell_folder(cell.id)}/{checkpoint.model_name(epoch)}" for epoch in kept)
    return all(map(Store.of(store).exists, models))


def labelled(cell: Cell, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as Tune's tables have them: the loss and the score say on which split they were measured.

    A search is measured on a validation split; its columns are none of a confirmed run's.
    """
    loss: Loss = build(cell.loss, "loss", kind=Loss)
    split = "test" if cell.validation_fraction is None else "validation"
    return {f"{split}_{key}" if key in ("loss", loss.score) else key: value for key, value in metrics.items()}


def unlabelled(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What `labelled` was given."""
    return {key.removeprefix("test_").removeprefix("validation_"): value for key, value in metrics.items()}


def final_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """The final values among a cell's rows, by name; those on the training set as `train_loss` and so on."""
    return {
        f"train_{row['metric']}" if row.get("split") == "train" else row["metric"]: row["value"]
        for row in rows
        if row.get("epoch") is None
    }
