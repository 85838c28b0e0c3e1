"""A step, timed: its phases add up, it is the cell's own step, and groups count their calls."""

from __future__ import annotations

import time

import pytest
import torch

from lbdist.analysis.step_time import PHASES
from lbdist.errors import InputError
from lbdist.networks import make
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.training.batches import Workers
from lbdist.training.cell import run_cell
from lbdist.training.hardware import device_name
from lbdist.training.learner import make_learner
from lbdist.training.stopwatch import Stopwatch, WatchedLearner, WatchedWorkers
from lbdist.training.timing import Collectives, Timing
from tests.support.cells import CONVOLUTIONAL, make_cell, train_in_group
from tests.support.samples import images, signals

SHORT = {
    "_target_": "lbdist.training.timing.Timing",
    "name": "timing",
    "seconds": 0.1,
    "block": 0.01,
    "least": 2,
}
CALLS = {"_target_": "lbdist.training.timing.Collectives", "name": "collectives", "sizes": [256, 65536],
         "repeats": 2, "seconds": 0.005}  # fmt: skip


def cell_of(node: dict = SHORT, **changes) -> Cell:
    return make_cell(procedure=node, epochs=1, test_points=1, **changes)


def test_a_phase_within_another_is_taken_from_the_outer_one() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch.phase("backward"):
        pass
    assert watch.seconds() == {}  # it is off
    watch.on = True
    watch.seconds()
    began = time.perf_counter()
    with watch.phase("backward"):
        time.sleep(0.02)
        with watch.phase("all_reduce"):
            time.sleep(0.04)
        time.sleep(0.01)
    time.sleep(0.005)
    found, spent = watch.seconds(), time.perf_counter() - began
    assert found["all_reduce"] >= 0.04 and found["backward"] >= 0.03 and found["other"] >= 0.005
    assert sum(found.values()) == pytest.approx(spent, rel=0.05)


@pytest.mark.parametrize("kind", ["signals", "images", "conservative", "adversarial"])
def test_a_step_is_timed_and_its_phases_add_up(kind: str, tmp_path) -> None:
    data = images() if kind == "images" else signals(train=300)
    fields = {"network": CONVOLUTIONAL} if kind == "images" else {}
    if kind in ("conservative", "adversarial"):
        target = f"lbdist.remedies.{kind}.{kind.title()}"
        fields["remedies"] = ({"_target_": target, "name": kind},)
    final = run_cell(cell_of(**fields), data, Store(tmp_path))
    phases = {name: final[f"{name}_seconds"] for name in PHASES}
    assert phases["all_reduce"] == 0 and all(v > 0 for name, v in phases.items() if name != "all_reduce")
    assert final["samples_per_second"] == pytest.approx(48 / final["step_seconds"])
    assert final["peak_memory"] > 1e8 and final["device_memory"] > 1e9 and final["collective_calls"] == 0
    named = {row["device"] for row in results_of(tmp_path, cell_of(**fields))}
    assert device_name(torch.device("cpu")) in named
    assert run_cell(cell_of(**fields), data, Store(tmp_path)) == final  # it is not run again


def test_a_step_that_does_not_fit_is_a_row_and_no_failure(tmp_path) -> None:
    for batch, fits in ((16, True), (48, False)):
        network = {"_target_": "tests.support.cells.Greedy", "name": "greedy"}
        final = run_cell(cell_of(network=network, global_batch_size=batch), signals(), Store(tmp_path))
        assert ("step_seconds" in final) is fits and ("out_of_memory" in final) is not fits


def test_a_watched_learner_takes_the_same_steps_to_the_same_bits() -> None:
    from lbdist.data.base import on_device
    from lbdist.training.batches import batches

    cell, data, found = make_cell(), signals(), []
    for watching in (None, False, True):
        watch = Stopwatch(torch.device("cpu"))
        watch.on = bool(watching)
        workers = Workers() if watching is None else WatchedWorkers(watch=watch)
        kind = {} if watching is None else {"kind": WatchedLearner}
        learner = make_learner(cell, make(cell.network, 0).float(), workers, **kind)
        samples = on_device(data.train, "cpu")
        for batch in batches(*samples, global_batch_size=48, seed=0, epoch=0, workers=workers):
            learner.gradient(batch)
            learner.update()
        found.append(learner.x.clone())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("bucket", [None, 256])
def test_a_group_counts_its_calls_and_times_them_by_size(bucket: int | None, tmp_path) -> None:
    work = [(cell_of(num_workers=2), signals(train=300)), (cell_of(CALLS, num_workers=2), signals())]
    finals = train_in_group(2, work, torch.float32, store=Store(tmp_path), whole=True, bucket=bucket)
    step, calls = finals
    gradient = 4 * sum(p.numel() for p in make(make_cell().network).parameters())
    norms = 2 * 4 * ((2 + 2 * 16) + 2 * 16)  # two layers of 16: counts and moments forward, sums backward
    assert step["collective_bytes"] == gradient + norms
    assert step["collective_calls"] >= 1 + 2 * 2 and (step["collective_calls"] == 5) is (bucket is None)
    assert step["all_reduce_seconds"] > 0 and step["all_reduce_hidden_seconds"] >= 0
    rows = [row for row in results_of(tmp_path, work[1][0]) if row["metric"] == "collective_seconds"]
    assert {(row["bytes"], row["block"]) for row in rows} == {(s, d) for s in (256, 65536) for d in (0, 1)}
    assert calls["seconds"] > 0 and all(row["value"] > 0 for row in rows)


def results_of(folder, cell: Cell) -> list[dict]:
    from lbdist import results

    return results.read_rows(Store(folder), results.cell_file(cell.id))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Timing, "block", 0.0),
        (Timing, "seconds", 0.0),
        (Timing, "least", 0),
        (Collectives, "sizes", []),
        (Collectives, "sizes", [1]),
        (Collectives, "repeats", 0),
        (Collectives, "seconds", -1.0),
    ],
)
def test_wrong_settings_are_refused(kind, field: str, value) -> None:
    with pytest.raises(InputError, match=f"^{field}="):
        kind(**{field: value})
