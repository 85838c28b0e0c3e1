"""The schedule, handed out by hand without a cluster."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbdist import results
from lbdist.capacity import Capacity
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.studies.base import cells_of, whole
from lbdist.training import checkpoint
from lbdist.tuning.book import Book, read_cells, write_cell
from lbdist.tuning.schedule import Job, Schedule
from lbdist.tuning.trial import Trials
from tests.support.plans import make_study, quality


def make_schedule(
    folder: Path, *overrides: str, slots: int, capacity: Capacity | None = None, **options: Any
) -> Schedule:
    return Schedule(make_study(*overrides), Book(Store(folder)), capacity or Capacity(slots, 0), **options)


def write_cell_rows(folder: Path, cell: Cell, accuracy: float) -> None:
    """The files of a finished cell."""
    row = {"cell": cell.id, "num_workers": 1, "metric": "accuracy", "value": accuracy, "split": cell.split}
    results.write_rows(folder, results.cell_file(cell.id), [row])
    write_cell(Store(folder), cell)
    for epoch in cell.keep:
        (folder / "cells" / cell.id / checkpoint.model_name(epoch)).write_bytes(b"")


def drive(
    schedule: Schedule, folder: Path, accuracy: Callable[[Cell], float | None], seed: int = 0
) -> list[tuple[str, Job]]:
    """Takes every job that fits, ends a random one, and so on; None for an accuracy is a failure."""
    chance, order, trials = random.Random(seed), [], Trials(schedule)
    while True:
        while trials.suggest(f"trial {len(order)}") not in (None, trials.FINISHED):
            job = schedule.running[f"trial {len(order)}"]
            order.append((f"trial {len(order)}", job))
            used = sum(schedule.capacity.width(job.workers) for job in schedule.running.values())
            assert used <= schedule.capacity.slots and len(schedule.running) <= schedule.max_concurrent
        if not schedule.running:
            assert trials.suggest("one more") == trials.FINISHED
            return order
        name = chance.choice(list(schedule.running))
        values = [accuracy(cell) for cell in schedule.running[name].cells]
        for cell, value in zip(schedule.running[name].cells, values, strict=True):
            if value is not None:
                write_cell_rows(folder, cell, value)
        if any(value is None for value in values):
            schedule.complete(name, {"error": "OutOfMemoryError: no"})
        else:
            split = schedule.running[name].cells[0].split
            schedule.complete(name, {f"{split}_accuracy": sum(filter(None, values)) / len(values)})


@pytest.mark.parametrize("slots", [2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_everything_is_handed_out_once_and_a_second_run_has_nothing_to_do(
    slots: int, seed: int, tmp_path: Path
) -> None:
    overrides = ["remedy=[none,growth,robust]", "search.seeds=2", "combinations=[[growth,robust]]"]
    schedule = make_schedule(tmp_path, *overrides, slots=slots)
    order = drive(schedule, tmp_path, quality, seed)
    handed = [cell.id for _, job in order for cell in job.cells]
    assert len(set(handed)) == len(handed) and set(handed) == set(schedule.cells())
    assert len(handed) == len(cells_of(schedule.study, whole(schedule.study)))
    assert schedule.failed == []
    # the check on two workers goes first, while the machine is empty
    assert [job.workers for _, job in order] == [2] + [1] * (len(order) - 1)
    again = make_schedule(tmp_path, *overrides, slots=slots)
    assert again.waiting() == []
    order = drive(again, tmp_path, lambda cell: 0.0, seed)  # they report again
    assert {job.id for _, job in order} == set(handed) and again.failed == []
    assert again.cells().keys() == schedule.cells().keys()


@pytest.mark.parametrize("slots", [2, 5, 8])
@pytest.mark.parametrize("seed", range(3))
def test_a_study_of_scaling_pays_for_each_size_of_group_once(slots: int, seed: int, tmp_path: Path) -> None:
    """Although what is timed of a remedy is known only once its search has ended."""
    study = make_study("experiment=scaling", "seeds=1").within(slots)
    schedule = Schedule(study, Book(Store(tmp_path)), Capacity(slots, 0))
    order = drive(schedule, tmp_path, quality, seed)
    sizes = [job.workers for _, job in order if job.workers > 1]
    assert sizes == [size for size in (8, 4, 2) if size <= slots]
    assert {cell.role for _, job in order for cell in job.cells} > {
        "search",
        "timing",
        "collectives",
        "branch",
    }
    alone = [any(cell.alone for cell in job.cells) for _, job in order]
    assert alone == sorted(alone)  # last, so that the slots fall free once


def test_groups_wait_for_their_kind_no_longer_than_there_is_something_else_to_do(tmp_path: Path) -> None:
    overrides = ["remedy=[none,robust]", "study.check_workers=null", "study.check_precision=null"]
    schedule = make_schedule(tmp_path, *overrides, "num_workers=2", "seeds=2", slots=2)
    order = drive(schedule, tmp_path, quality)
    assert [len(job.cells) for _, job in order] == [6, 2]  # SB, LB and the search; what it chose


def test_a_run_goes_on_where_the_rows_end(tmp_path: Path) -> None:
    first = make_schedule(tmp_path, "remedy=[none,robust]", slots=2)
    ran = []
    for number in range(4):
        first.next(f"trial {number}")
        (cell,) = first.running[f"trial {number}"].cells
        write_cell_rows(tmp_path, cell, quality(cell))
        first.complete(f"trial {number}", {f"{cell.split}_accuracy": quality(cell)})
        ran.append(cell.id)
    second = make_schedule(tmp_path, "remedy=[none,robust]", slots=2)
    order = drive(second, tmp_path, quality)
    handed = [job.id for _, job in order]
    assert sorted(handed) == sorted(second.cells())  # each once: those that were finished report again
    assert not set(handed[: len(handed) - len(ran)][:2]) & set(ran)


def test_a_finished_cell_of_which_a_model_is_asked_for_runs_again(tmp_path: Path) -> None:
    gap = make_schedule(tmp_path, "experiment=gap", "study.equal_loss=null", "seeds=1", slots=2)
    drive(gap, tmp_path, quality)
    warm = make_schedule(tmp_path, "experiment=warm_start", "study.epochs=[2]", "seeds=1", slots=2)
    assert [cell.method for cell in warm.waiting()] == ["SB"]
    assert [cell.method for cell in Trials(warm).schedule.again] == ["LB"]


@pytest.mark.parametrize(
    ("slots", "waiting", "work", "workers"),
    [(2, 4, 9.0, 1), (4, 4, 9.0, 1), (4, 2, 9.0, 2), (8, 2, 9.0, 4), (8, 2, 3.9, 3), (8, 2, 0.1, 1)],
)
def test_cells_before_workers(slots: int, waiting: int, work: float, workers: int, tmp_path: Path) -> None:
    overrides = ["experiment=gap", "study.equal_loss=null", f"seeds={waiting // 2}"]
    schedule = make_schedule(tmp_path, *overrides, slots=slots, worthwhile=lambda cell: work)
    job = schedule.next("a")
    assert job is not None and job.workers == workers


def test_auto_takes_a_group_only_once_slots_would_stand_idle(tmp_path: Path) -> None:
    schedule = make_schedule(
        tmp_path, "experiment=gap", "study.equal_loss=null", "seeds=3", slots=4, worthwhile=lambda cell: 9.0
    )
    order = drive(schedule, tmp_path, quality)
    assert [job.workers for _, job in order][:4] == [1] * 4  # six cells wait for four slots


def test_the_longest_go_first(tmp_path: Path) -> None:
    schedule = make_schedule(
        tmp_path,
        "experiment=gap",
        "study.equal_loss=null",
        "seeds=2",
        slots=1,
        cost=lambda cell: 1 / cell.global_batch_size,
    )
    order = drive(schedule, tmp_path, quality)
    assert [job.cells[0].method for _, job in order] == ["SB", "SB", "LB", "LB"]


def test_searches_go_before_what_does_not_wait_for_them(tmp_path: Path) -> None:
    fields = ["experiment=remedies", "remedy=[robust]", "study.check_workers=null"]
    schedule = make_schedule(tmp_path, *fields, slots=1, cost=lambda cell: 1 / cell.global_batch_size)
    roles = [job.cells[0].role for _, job in drive(schedule, tmp_path, quality)]
    searches = roles.count("search")
    assert searches > 1 and roles[:searches] == ["search"] * searches and "confirm" in roles[searches:]


def test_cells_of_a_group_share_it_where_they_cannot_run_at_once(tmp_path: Path) -> None:
    schedule = make_schedule(
        tmp_path, "experiment=gap", "study.equal_loss=null", "num_workers=2", "seeds=3", slots=4
    )
    order = drive(schedule, tmp_path, quality)
    assert [(len(job.cells), job.workers) for _, job in order] == [(3, 2), (3, 2)]
    assert order[0][1].label.startswith("SB seed 0")


@pytest.mark.parametrize(
    ("slots", "most", "sizes"),
    [(1, 4, [3, 2, 3, 2]), (1, 8, [5, 5]), (2, 8, [3, 2, 3, 1, 1]), (2, 1, [1] * 10), (16, 8, [1] * 10)],
)
def test_seeds_of_a_kind_share_a_process(slots: int, most: int, sizes: list[int], tmp_path: Path) -> None:
    """As many as are said to pay, but every slot gets something first."""
    schedule = make_schedule(
        tmp_path,
        "experiment=gap",
        "study.equal_loss=null",
        "seeds=5",
        slots=slots,
        most_at_once=lambda cell: most,
    )
    order = drive(schedule, tmp_path, quality)
    assert [len(job.cells) for _, job in order] == sizes
    assert all(len({cell.kind for cell in job.cells}) == 1 and job.workers == 1 for _, job in order)
    assert sorted(cell.id for _, job in order for cell in job.cells) == sorted(schedule.cells())
    assert {job.at_once for _, job in order if len(job.cells) > 1} <= {True}
    assert schedule.failed == []


def test_what_is_finished_of_a_group_that_fails_is_kept(tmp_path: Path) -> None:
    schedule = make_schedule(
        tmp_path, "experiment=gap", "study.equal_loss=null", "num_workers=2", "seeds=2", slots=2
    )
    drive(schedule, tmp_path, lambda cell: None if cell.seed else 50.0)
    assert {cell.seed for cell, _ in schedule.failed} == {1} and len(schedule.failed) == 2


def test_small_cells_share_a_gpu_and_groups_take_whole_ones(tmp_path: Path) -> None:
    """Two GPUs of four processes each: eight cells at once, a group on both, one of four on shares."""
    two = Capacity(16, 2, share=4)
    overrides = ["experiment=gap", "study.equal_loss=null", "seeds=8", "study.check_workers=2"]
    schedule = make_schedule(tmp_path, *overrides, slots=0, capacity=two, worthwhile=lambda cell: 9.0)
    order = drive(schedule, tmp_path, quality)
    assert [job.workers for _, job in order] == [2] + [
        1
    ] * 16  # the check takes both GPUs, then eight at once
    few = make_schedule(
        tmp_path / "few",
        "experiment=gap",
        "study.equal_loss=null",
        "seeds=1",
        slots=0,
        capacity=two,
        worthwhile=lambda cell: 9.0,
    )
    job = few.next("a")
    assert job is not None and job.workers == 1  # two cells, a GPU each: no group
    wide = make_schedule(
        tmp_path / "wide", "experiment=gap", "study.equal_loss=null", "num_workers=4", slots=0, capacity=two
    )
    job = wide.next("a")
    assert job is not None and job.workers == 4 and wide.next("b") is not None and wide.next("c") is None


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_each_process_asks_for_fits(workers: int) -> None:
    for gpus, share in [(0, 1), (1, 1), (2, 3), (2, 7), (8, 16)]:
        capacity = Capacity(64, gpus, share=share)
        asked = capacity.process(workers)
        assert set(asked) == ({"GPU"} if gpus else {"CPU"})
        if gpus:
            at_once = capacity.slots // capacity.width(workers)
            assert at_once * workers * asked["GPU"] <= gpus
            assert asked["GPU"] == 1 or workers == 1 or workers > gpus


def test_max_concurrent(tmp_path: Path) -> None:
    schedule = make_schedule(
        tmp_path, "remedy=[none,robust]", "study.check_workers=null", slots=8, max_concurrent=2
    )
    assert schedule.next("a") and schedule.next("b") and schedule.next("c") is None
    assert Trials(schedule).suggest("c") is None  # not the end
    schedule.complete("a", {"test_accuracy": 1.0})
    assert schedule.next("c")


def test_cells_are_written_before_they_are_handed_out(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, "experiment=gap", "study.equal_loss=null", "seeds=1", slots=4)
    trials = Trials(schedule)
    told = trials.suggest("trial")
    assert read_cells(Store(tmp_path), [told["cell"]])[0][0] == schedule.running["trial"].cells[0]
    content = results.read_cell(tmp_path, told["cell"])
    assert content["provenance"]["lbdist"] and content["columns"]["method"] == told["method"]
    trials.on_trial_complete("trial", {"test_accuracy": 1.0})
    assert schedule.failed == []
    trials.suggest("second")
    trials.on_trial_complete("second", error=True)
    assert len(schedule.failed) == 1 and trials.suggest("third") == trials.FINISHED
