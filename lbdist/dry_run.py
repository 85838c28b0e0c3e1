"""What a study would run, and about how long it takes."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

import torch
from rich.console import Console
from rich.table import Table

from lbdist.data.base import Dataset
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.studies.base import Study, cells_of
from lbdist.training import rehearsal
from lbdist.tuning.book import Book


def show(study: Study, cells: Collection[Cell], data: Dataset, store: Store, remarks: Sequence[str]) -> None:
    """Prints what would run, and what of it is done.

    Args:
        study: The study.
        cells: All its cells.
        data: Training and test set.
        store: The storage folder, in which nothing is written.
        remarks: What is said first.
    """
    book = Book(store)
    book.read_ahead(study)
    done = sum(book(cell) is not None for cell in cells_of(study, book).values())
    print(remarks[0])
    if not cells:
        for model in study.models().values():
            print(f"  {model['file']}")
        return
    if done:
        print(f"{done} of the cells are done, in {store}")
    for line in remarks[1:]:
        print(line)
    _table(study, cells, data)


def _table(study: Study, cells: Collection[Cell], data: Dataset) -> None:
    """The cells, one record for those that differ only in their seed, and how long they take."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    timed = [cell for cell in cells if cell.procedure is None]
    seconds = rehearsal.estimate(timed, data, device)
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
                "seconds": "–" if cell.procedure else f"{seconds[cell.id]:,.0f}",
            }
        )
    table = Table(*records[0], box=None, pad_edge=False)
    for record in records:
        table.add_row(*(str(value) for value in record.values()))
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if timed:
        total, where = sum(seconds.values()), "GPU" if device == "cuda" else "core"
        print(
            f"about {max(1, total / 60):,.0f} min of training on one {where}, one run after the other, "
            "by a step of each batch measured here; patience and a target loss end runs sooner, and "
            "measurements are not included"
        )


def _groups(study: Study, cells: Collection[Cell]) -> dict[tuple[str, str, int | str], list[Cell]]:
    """The cells that differ only in their seed, by role, label and workers."""
    known = cells_of(study, lambda cell: None)
    groups: dict[tuple[str, str, int | str], list[Cell]] = {}
    for cell in cells:
        label = cell.label_without_seed
        if cell.setting and cell.id not in known:  # which setting it is, the search will say
            label = label.replace(cell.setting, "(the best)")
        groups.setdefault((cell.role, label, cell.num_workers), []).append(cell)
    return groups
