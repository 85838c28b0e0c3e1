"""Cells that are trained at once end where each ends alone, whatever each of them does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbdist import results
from lbdist.data.base import Dataset
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.training import checkpoint, rehearsal
from lbdist.training.cell import finished_rows, run_cell, run_cells
from lbdist.training.loop import train
from lbdist.training.precision import EXACT, Arithmetic, tf32
from lbdist.training.seeds_at_once import SeedsAtOnce
from tests.support.cells import SGD, make_cell
from tests.support.every import CASES, live
from tests.support.samples import signals


class Forked(nn.Linear):
    """Takes another way where a value says so, which no pass over several can."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(self.weight.detach().sum()) > 0 else 2 * x)


class Frozen(nn.Sequential):
    """Its first layer is not trained, and another one for each seed."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self[0].requires_grad_(False)


class Failing(torch.optim.SGD):
    """Fails in its fifth step."""

    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        if self.steps == 5:
            raise RuntimeError("no step")
        super().step()


def at_once(cells: list[Cell], data: Dataset, **options: Any) -> tuple[SeedsAtOnce, list[Any]]:
    found, reported = SeedsAtOnce(), []  # type: ignore[var-annotated]
    work = [lambda say, c=cell: train(c, data, together=found, report=say, **options) for cell in cells]
    ends = found.run(work, reported.append)
    epochs = sum(row["metric"] == "running_loss" for rows, _ in ends for row in rows)
    assert len(reported) == epochs or "store" in options
    return found, ends


def seeds(cell: Cell, count: int) -> list[Cell]:
    return [dataclasses.replace(cell, seed=cell.seed + number) for number in range(count)]


def joined(label: str) -> bool:
    """Not: parts of a batch; activation checkpointing; a mean over all batches, whose weight is a number."""
    counted = "'momentum': None" in label and "'track': True" in label
    return not (counted or "ghost" in label or "checkpoint" in label)


# of every remedy one of its forms, of networks and optimisers those that differ in kind
SOME = [label for label in CASES if "images" in label or label in ("combination", "ghost", "schedule")]
SOME += ["patience", "tiny-last-batch", "c1", "f1", "sgd", "adam", "lamb"]
SOME += [label for label in CASES if label.startswith("normed") and ("drop" in label or "check" in label)]
SOME += [f"normed {kind}" for kind in ({"momentum": 0.1, "affine": False, "track": False},
                                       {"momentum": None, "affine": True, "track": True})]  # fmt: skip


@pytest.mark.parametrize("label", SOME)
def test_every_cell_ends_where_it_ends_alone(label: str) -> None:
    """All remedies, optimisers, networks and kinds of batch norm of the test of workers."""
    cell, data = CASES[label]
    cells = seeds(cell, 2)
    found, ends = at_once(cells, data, dtype=torch.float64)
    assert found.works is joined(label)
    kept = live(cell)
    for one, (rows, x) in zip(cells, ends, strict=True):
        expected, alone = train(one, data, dtype=torch.float64)
        assert (x - alone)[kept].norm() <= 1e-9 * alone[kept].norm()
        for row, other in zip(rows, expected, strict=True):
            assert row.keys() == other.keys() and row["metric"] == other["metric"]
            if row["metric"] in ("running_loss", "steps", "samples", "gradient_evaluations"):
                assert row["value"] == pytest.approx(other["value"], rel=1e-9)


@pytest.mark.parametrize(
    ("network", "works"),
    [({"_target_": "tests.training.test_seeds_at_once.Forked", "in_features": 12, "out_features": 4}, False),
     ({"_target_": "tests.training.test_seeds_at_once.Frozen", "init": "keep"}, True)],
)  # fmt: skip
def test_what_cannot_be_computed_together_is_computed_alone(network: dict, works: bool) -> None:
    cells = seeds(make_cell(network=network, optimizer=SGD), 3)
    found, ends = at_once(cells, signals(), dtype=torch.float64)
    assert found.works is works
    for cell, (_, x) in zip(cells, ends, strict=True):
        assert (x - train(cell, signals(), dtype=torch.float64)[1]).norm() < 1e-10


@pytest.mark.usefixtures("every_epoch")
def test_cells_may_end_at_different_times(tmp_path: Path) -> None:
    """By their patience, by other numbers of epochs, and one that is resumed beside one that begins."""
    data, store = signals(), Store(tmp_path)
    first, second, third = seeds(make_cell(optimizer=SGD, epochs=12), 3)
    cells = [first, dataclasses.replace(second, epochs=5), dataclasses.replace(third, patience=1, epochs=40)]
    train(dataclasses.replace(first, epochs=7), data, dtype=torch.float64, store=store)
    began = checkpoint.load(store / f"cells/{dataclasses.replace(first, epochs=7).id}")
    checkpoint.save(store / f"cells/{first.id}", began)
    _, ends = at_once(cells, data, dtype=torch.float64, store=store)
    for cell, (rows, x) in zip(cells, ends, strict=True):
        expected, alone = train(cell, data, dtype=torch.float64)
        assert (x - alone).norm() <= 1e-9 * alone.norm() and len(rows) == len(expected)


def test_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    data, store = signals(), Store(tmp_path)
    good = make_cell(optimizer=SGD)
    bad = make_cell(optimizer={"_target_": "tests.training.test_seeds_at_once.Failing", "lr": 0.05}, seed=1)
    said: list[dict[str, float]] = []
    with pytest.raises(RuntimeError, match="no step"):
        run_cells([bad, good], data, store, "cpu", said.append, EXACT, 0.0)
    assert finished_rows(store, good) and not finished_rows(store, bad)
    assert len(said) == 2 + 1  # an epoch is three steps


def test_each_has_rows_of_its_own_and_its_share_of_the_time(tmp_path: Path) -> None:
    data, cells = signals(), seeds(make_cell(), 4)
    run_cell(cells[3], data, Store(tmp_path))
    run_cells(cells, data, Store(tmp_path), "cpu", lambda metrics: None, EXACT, 0.0)
    for cell in cells:
        rows = results.read_rows(tmp_path, results.cell_file(cell.id))
        assert {row["seeds_at_once"] for row in rows} == {1 if cell is cells[3] else 3}
        assert not (tmp_path / f"cells/{cell.id}" / checkpoint.RESUME).exists()
    shares = [
        row["value"]
        for cell in cells[:3]
        for row in results.read_rows(tmp_path, results.cell_file(cell.id))
        if row["metric"] == "seconds"
    ]
    assert max(shares) < 2 * min(shares)  # of one time


def test_tf32_is_allowed_where_a_cell_trains_and_nowhere_else() -> None:
    seen: set[tuple[bool, bool]] = set()

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.add((self.training, *tf32()))  # type: ignore[arg-type]
            return super().forward(x)

    globals()["Watched"] = Watched
    network = {"_target_": "tests.training.test_seeds_at_once.Watched", "in_features": 12, "out_features": 4}
    before = tf32()
    at_once(seeds(make_cell(network=network), 2), signals(), arithmetic=Arithmetic("tf32"))
    # points of the curve are evaluated in the run's precision, its end in float32
    assert seen == {(True, True, True), (False, True, True), (False, False, False)} and tf32() == before


def test_bfloat16_too() -> None:
    found, ends = at_once(
        cells := seeds(make_cell(optimizer=SGD), 3), signals(), arithmetic=Arithmetic("bfloat16")
    )
    assert found.works
    for cell, (_, x) in zip(cells, ends, strict=True):
        alone = train(cell, signals(), arithmetic=Arithmetic("bfloat16"))[1]
        assert (x - alone).norm() < 0.02 * alone.norm()


def test_what_pays_is_measured() -> None:
    cell, other = make_cell(), make_cell(ghost_batch_size=8)
    gain, none = rehearsal.gain_at_once([(cell, 3), (other, 3)], signals(), "cpu", {})
    assert 0.2 < gain < 5 and none == 0.0
    assert cell.kind == dataclasses.replace(cell, seed=5).kind != other.kind
