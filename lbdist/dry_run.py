"""What a study would run, and about how long it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from lbdist.data.base import Dataset
from lbdist.output import Output
from lbdist.plan import Cell, Measurement
from lbdist.sharpness.measure import cost
from lbdist.storage import Store
from lbdist.studies.base import Study, at_point, cells_of, whole
from lbdist.training import rehearsal
from lbdist.tuning.book import Book

LONG_SECONDS = 3600.0
"""From which on a way to a first look is said."""


def show(
    study: Study,
    measurements: Sequence[Measurement],
    data: Dataset,
    store: Store,
    remarks: Sequence[str],
    out: Output,
) -> None:
    """Prints what would run, and what of it is done.

    Args:
        study: The study.
        measurements: All that it measures.
        data: Training and test set.
        store: The storage folder, in which nothing is written.
        remarks: What is said first.
        out: Where to.
    """
    book = Book(store)
    book.read_ahead(study)
    cells = cells_of(study, whole(study)).values()
    done = sum(book(cell) is not None for cell in cells_of(study, book).values())
    out.say(remarks[0], "plan", cells=len(cells), measurements=len(measurements), done=done)
    if not cells:
        for model in study.models().values():
            out.say(f"  {model['file']}")
    if done:
        out.say(f"{done} of the cells are done, in {store}")
    for line in remarks[1:]:
        out.say(line)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    timed = [cell for cell in cells if cell.procedure is None]
    seconds = rehearsal.estimate(timed, data, device)
    if cells:
        out.records(_records(study, cells, seconds), "cells", 130)
    training, measuring = sum(seconds.values()), _measuring(measurements, data, device)
    parts = [f"{_minutes(training)} of training by a step of each batch"] if timed else []
    if measurements:
        parts.append(f"{_minutes(measuring)} of measuring by an evaluation of f")
    if parts:
        where = "GPU" if device == "cuda" else "core"
        text = (
            f"about {' and '.join(parts)}, measured here, on one {where}, one after the other; patience, a "
            "target loss and a maximum found early end sooner"
        )
        out.say(text, "estimate", training_seconds=training, measuring_seconds=measuring)
    if training + measuring > LONG_SECONDS:
        less = "scale.samples=500 epochs=3 seeds=2 measure=[fit]"
        less += " study.equal_loss=null" if getattr(study, "equal_loss", None) else ""
        out.say(f"a first look takes less: {less}")


def _minutes(seconds: float) -> str:
    return f"{max(1, seconds / 60):,.0f} min"


def _measuring(measurements: Sequence[Measurement], data: Dataset, device: str) -> float:
    """About how many seconds all measurements take one after the other, by an f of each network."""
    costs: dict[str, float] = defaultdict(float)
    cells = {}
    for measurement in measurements:
        cell = measurement.at[0].cell
        key = repr(cell.network)
        cells[key] = cell
        costs[key] += cost(measurement)
    return sum(costs[key] * rehearsal.seconds_of_f(cell, data, device) for key, cell in cells.items())


def _records(study: Study, cells: Collection[Cell], seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The cells, one record for those that differ only in their seed, and how long they take."""
    records = []
    for (role, label, workers), alike in _groups(study, cells).items():
        cell = alike[0]
        share = -(-cell.global_batch_size // cell.asked_workers)
        lr = cell.optimizer.get("lr", "default")
        records.append(
            {
                "role": role,
                "cell": label,
                "seeds": len(alike),
                "epochs": cell.epochs,
                "global batch": cell.global_batch_size,
                "workers": workers,
                "per worker": share,
                "accumulation": -(-share // (cell.micro_batch_size or share)),
                "lr": f"{lr:.4g}" if isinstance(lr, float) else lr,
                "seconds": None if cell.procedure else round(seconds[cell.id]),
            }
        )
    return records


def _groups(study: Study, cells: Collection[Cell]) -> dict[tuple[str, str, int | str], list[Cell]]:
    """The cells that differ only in their seed, by role, label and workers."""
    known, told = cells_of(study, lambda cell: None), study.told(whole(study))
    groups: dict[tuple[str, str, int | str], list[Cell]] = {}
    for cell in cells:
        label = cell.label_without_seed + at_point(told, cell)
        if cell.setting and cell.id not in known:  # which setting it is, the search will say
            label = label.replace(cell.setting, "(the best)")
        groups.setdefault((cell.role, label, cell.num_workers), []).append(cell)
    return groups
