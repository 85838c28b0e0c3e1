"""One run of a cell, as every executor has it: its rows and models, written once, or read where they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lbdist import results
from lbdist.config.build import build
from lbdist.data.base import Dataset
from lbdist.losses import Loss
from lbdist.plan import Cell
from lbdist.results import Row, final_metrics
from lbdist.storage import Damaged, Store
from lbdist.training import checkpoint
from lbdist.training.batches import Workers
from lbdist.training.deadline import Deadline
from lbdist.training.loop import Report, train, unlimited
from lbdist.training.precision import EXACT, Arithmetic
from lbdist.training.seeds_at_once import SeedsAtOnce

PROCEDURE_SECONDS = 3600.0
"""What a procedure may take that runs instead of training."""


@dataclass(frozen=True)
class Task:
    """What a procedure is given, which runs instead of training.

    Attributes:
        cell: The network, the batch, the optimiser, the epochs.
        data: Training and test set.
        workers: This process's place in the group.
        device: Where.
        arithmetic: What lbdist has chosen.
        store: The storage folder.
    """

    cell: Cell
    data: Dataset
    workers: Workers
    device: torch.device
    arithmetic: Arithmetic
    store: Store

    @property
    def criterion(self) -> Loss:
        """What is learnt."""
        loss: Loss = build(self.cell.loss, "loss", kind=Loss)
        return loss


def run_cell(
    cell: Cell,
    data: Dataset,
    store: Store,
    device: torch.device | str = "cpu",
    report: Report = lambda metrics: None,
    arithmetic: Arithmetic = EXACT,
    began: float | None = None,
    together: SeedsAtOnce | None = None,
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
        together: The cells that are trained at the same time.
        limited: Whether a run that hangs ends its process, which somebody else is to start again.

    Returns:
        The final metrics.
    """
    rows: Sequence[Row] = finished_rows(store, cell)
    if rows:
        return final_metrics(rows)
    began = time.time() if began is None else began
    if cell.validation_fraction is not None:
        data = data.validation_split(cell.validation_fraction)
    task = Task(cell, data, Workers.current(), torch.device(device), arithmetic, store)

    def late(what: str) -> None:
        Store.of(store).write(results.late_file(cell.id), what.encode())

    with Deadline(late) as deadline:
        allow = deadline.allow if limited else unlimited
        if cell.procedure is None:
            rows, _ = train(
                cell,
                data,
                workers=task.workers,
                device=device,
                arithmetic=arithmetic,
                store=store,
                report=report,
                allow=allow,
                together=together,
            )
        else:
            allow(PROCEDURE_SECONDS, "it")
            rows = build(cell.procedure, "procedure")(task)
    if task.workers.rank == 0:
        rows = _write(task, rows, began, together.size if together else 1)
    return final_metrics(rows)


def _write(task: Task, rows: Sequence[Row], began: float, cells_at_once: int) -> list[Row]:
    """Writes the rows of a cell that has ended, with its overhead, and removes what it would resume from."""
    cell, store = task.cell, task.store
    spent = cells_at_once * sum(row["value"] for row in rows if row["metric"] == "seconds")
    found = [*rows, {"metric": "overhead_seconds", "value": time.time() - began - spent}]
    fixed = {"cell": cell.id, "num_workers": task.workers.size, "seeds_at_once": cells_at_once}
    fixed |= {name: rows[0].get(name) for name in ("precision", "memory_format")}
    results.write_rows(store, results.cell_file(cell.id), [{**fixed, **row} for row in found])
    store.remove(f"{results.cell_folder(cell.id)}/{checkpoint.RESUME}")
    store.remove(results.late_file(cell.id))
    return found


def run_cells(
    cells: Sequence[Cell],
    data: Dataset,
    store: Store,
    device: torch.device | str,
    report: Report,
    arithmetic: Arithmetic,
    began: float | None = None,
    limited: bool = True,
) -> dict[str, float]:
    """`run_cell`; of several cells of one kind, which are trained at once, what they all gave.

    Returns:
        The final metrics: the means over the cells.
    """
    if len(cells) == 1:
        return run_cell(cells[0], data, store, device, report, arithmetic, began, limited=limited)
    together = SeedsAtOnce()
    todo = [cell for cell in cells if not finished_rows(store, cell)]

    def training(cell: Cell) -> Callable[[Report], Any]:
        return lambda say: run_cell(cell, data, store, device, say, arithmetic, began, together, limited)

    together.run([training(cell) for cell in todo], report)
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
