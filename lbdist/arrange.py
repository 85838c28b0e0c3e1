"""How the cells of a study run on what there is: in which precision, how many at once in a process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from lbdist import results
from lbdist.capacity import Capacity, sharing
from lbdist.plan import AUTO, Cell
from lbdist.training import rehearsal
from lbdist.training.precision import GAIN, Arithmetic, choose, reason
from lbdist.tuning.book import Book

MOST_SEEDS = 8
"""Seeds that `seeds_at_once=auto` trains at once."""

Ask = Callable[..., Any]
"""Calls a function of `rehearsal` where the cells will run, with the data as its second argument."""

Say = Callable[[str], None]


class Unmeasured(Exception):
    """What was asked for could not be measured there; the message says why."""


def arithmetic(cells: Collection[Cell], book: Book, gpu: bool, ask: Ask, say: Say) -> dict[str, Arithmetic]:
    """What each precision that cells ask for resolves to; `auto` is one for all of a study's cells.

    Cells that are finished have decided it; else it is measured, where the cells will run.
    """
    asked, failed = {cell.precision for cell in cells}, ""
    if all(book(cell) is not None for cell in cells):
        return {}
    seconds: dict[Arithmetic, float] = {}
    native: set[str] = set()
    try:
        seconds, native = ask(rehearsal.speeds, list(cells), "cuda" if gpu else "cpu", None if gpu else 1)
    except Unmeasured as error:
        failed = f"since no step could be measured ({error})"
    files = (results.cell_file(cell.id) for cell in cells if cell.precision == AUTO and book(cell))
    before = Counter(row["precision"] for file in files for row in book.rows(file)[:1])
    found = {precision: choose(seconds, precision) for precision in asked}
    if AUTO in asked:
        known = next((str(precision) for precision, _ in before.most_common(1) if precision), AUTO)
        if known == AUTO:  # an emulated one was measured if other cells ask for it by name
            own = {how: taken for how, taken in seconds.items() if how.precision in native}
            found[AUTO] = choose(own, AUTO)
            why = failed or reason(own, found[AUTO])
        else:
            found[AUTO], why = choose(seconds, known), "as in the cells that are finished"
        say(f"precision=auto: {found[AUTO]}, {why}")
    elif failed:
        say(f"memory format: the usual one, {failed}")
    return found


def seeds_at_once(
    cells: Collection[Cell],
    asked: int | str,
    gpu: bool,
    arithmetic: Mapping[str, Arithmetic],
    ask: Ask,
    say: Say,
) -> Callable[[Cell], int]:
    """How many cells of its kind a process trains at once: as asked for, or as it pays on a GPU.

    On a CPU, `auto` is one: it does not pay there, and a run that is resumed beside other cells than before
    would no longer end with the same bits.

    Args:
        cells: Those of the study.
        asked: The most, or `auto`.
        gpu: Whether they run on GPUs.
        arithmetic: What each precision that cells ask for resolves to; empty where none is to run.
        ask: Measures where they will run.
        say: Told what was chosen.
    """
    seeds = Counter(cell.kind for cell in cells)
    several = {}
    for cell in cells:
        if cell.procedure is None and cell.asked_workers == 1 and seeds[cell.kind] > 1:
            several[_pass(cell)] = cell, min(seeds[cell.kind], MOST_SEEDS)
    most = dict.fromkeys(several, asked if isinstance(asked, int) else 1)
    if asked == AUTO and gpu and several and arithmetic:
        try:
            gains = ask(rehearsal.gain_at_once, list(several.values()), "cuda", dict(arithmetic))
        except Unmeasured as error:
            say(f"seeds_at_once=auto: could not be measured ({error})")
            gains = [0.0] * len(several)
        lines = []
        for (key, (cell, count)), gain in zip(several.items(), gains, strict=True):
            most[key] = count if GAIN * gain > 1 else 1
            what = f"{count} take {1 / gain:.2g} of their time" if gain else "gradients come one by one"
            lines.append(f"{most[key]} at batch {cell.global_batch_size:,} ({what})")
        say(f"seeds_at_once=auto: seeds at once: {', '.join(lines)}")
    return lambda cell: 1 if cell.procedure else most.get(_pass(cell), 1)


def share(
    cells: Collection[Cell], capacity: Capacity, at_once: Callable[[Cell], int], ask: Ask, say: Say
) -> Capacity:
    """The capacity, with as many processes on a GPU as its memory holds of what the study runs."""
    alike = {(cell.global_batch_size, cell.remedy): cell for cell in cells}
    try:
        need, memory = ask(rehearsal.memory, list(alike.values()))
    except Unmeasured as error:  # where a cell does not fit, its own run will say so
        say(f"one process per GPU: its memory could not be measured ({error})")
        return capacity
    need *= max(map(at_once, alike.values()))
    found = sharing(need, memory, capacity.cpus / capacity.gpus)
    say(f"{found} processes a GPU: each takes up to {need / 2**30:.1f} of its {memory / 2**30:.0f} GiB")
    return replace(capacity, share=found)


def _pass(cell: Cell) -> tuple[object, ...]:
    """What a forward and backward pass of a cell depends on, whatever its remedy makes of it."""
    return repr(cell.network), cell.global_batch_size, cell.ghost_batch_size, cell.micro_batch_size
