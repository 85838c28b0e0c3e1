"""The benchmark's procedures: that each does the cell's work, and what it says of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lbdist import networks
from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import benchmark
from lbdist.config.build import build, plain
from lbdist.config.compose import compose
from lbdist.errors import InputError
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.studies.base import cells_of, whole
from lbdist.training import procedures
from lbdist.training.batches import Workers
from lbdist.training.cell import Task, run_cell
from lbdist.training.precision import EXACT
from tests.support.cells import CONVOLUTIONAL, make_cell, train_in_group
from tests.support.plans import make_study
from tests.support.rows import frame
from tests.support.samples import images, signals

SHIPPED: dict[str, Any] = plain(compose(["experiment=benchmark"]).study.procedures)


def cell_of(name: str, **changes: Any) -> Cell:
    node = {**SHIPPED[name], "name": name}
    if name == "DataLoader":
        node["processes"] = 0
    return make_cell(procedure=node, epochs=12, test_points=1, **changes)


@pytest.mark.parametrize("kind", ["signals", "images"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_procedure_trains_the_cell_and_is_timed(name: str, kind: str, tmp_path) -> None:
    fields = {"network": CONVOLUTIONAL} if kind == "images" else {}
    data = images() if kind == "images" else signals(train=300)
    cell, threads = cell_of(name, **fields), torch.get_num_threads()
    final = run_cell(cell, data, Store(tmp_path))
    wanted = {"samples_per_second", "startup_seconds", "whole_seconds", "peak_memory", "share_of_limit"}
    wanted |= {"seconds", "threads"}
    assert wanted | {"test_loss", "test_accuracy", "overhead_seconds"} == set(final)
    assert final["samples_per_second"] > 0 and final["share_of_limit"] > 0 and final["peak_memory"] > 1e8
    if kind == "signals":
        assert final["test_accuracy"] > 60  # chance is 25
    assert torch.get_num_threads() == threads
    assert run_cell(cell, data, Store(tmp_path)) == final  # it is not run again


def test_the_first_epoch_is_the_start_and_the_median_of_the_others_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clocked(procedures.Procedure):
        def train(self, task: Task, epoch: procedures.Epoch) -> tuple[float, float]:
            for _ in range(4):
                epoch()
            return 0.5, 80.0

        def limit(self, task: Task) -> float:
            return 1.5

    times = iter([0.0, 5.0, 7.0, 9.0, 12.0, 13.0])
    task = Task(make_cell(), signals(), Workers(), torch.device("cpu"), EXACT, Store("."))
    monkeypatch.setattr(procedures.time, "perf_counter", lambda: next(times))
    found = {row["metric"]: row["value"] for row in Clocked()(task)}
    monkeypatch.undo()
    assert (found["samples_per_second"], found["startup_seconds"], found["seconds"]) == (65.0, 3.0, 12.0)
    assert (found["share_of_limit"], found["loss"], found["accuracy"]) == (0.75, 0.5, 80.0)
    assert found["whole_seconds"] == 13.0


def test_the_loader_in_a_group_and_lbdist_beside_it(tmp_path) -> None:
    """DistributedDataParallel and lbdist's group; each worker has its share of the batch."""
    work = [(cell_of(name, num_workers=2), signals(train=300)) for name in ("lbdist", "DataLoader")]
    for final in train_in_group(2, work, torch.float32, store=Store(tmp_path), whole=True):
        assert final["test_accuracy"] > 60 and final["samples_per_second"] > 0


def test_the_limit_is_the_larger_of_products_and_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, data = cell_of("bare loop"), signals()
    task = Task(cell, data, Workers(), torch.device("cpu"), EXACT, Store("."))
    found = build(cell.procedure, "procedure")
    products = 130 * 3 * 2 * (12 * 16 + 16 * 16 + 16 * 4)
    moved = 3 * 6 * 4 * networks.parameter_count(networks.make(cell.network))  # three steps an epoch
    for rate, bandwidth, limit in ((1e3, 1e12, products / 1e3), (1e12, 1e3, moved / 1e3)):
        monkeypatch.setattr(procedures, "rates", lambda device, reduced, r=(rate, bandwidth): r)
        assert found.limit(task) == pytest.approx(limit)


def test_the_study_runs_each_procedure_alone_at_both_batches_and_all_workers() -> None:
    study = make_study("experiment=benchmark", "study.workers=[1,2]")
    cells = list(cells_of(study, whole(study)).values())
    assert len(cells) == 2 * 2 * len(SHIPPED) and all(cell.alone for cell in cells)
    assert not list(study.measurements(whole(study)))
    for cell in cells:
        node = cell.procedure or {}
        assert cell.global_batch_size in (32, 400)
        single = "threads" in SHIPPED[node["name"]]
        assert cell.num_workers == 1 if single else cell.num_workers in (1, 2)
    assert {c.precision for c in cells if "bfloat16" in c.label} == {"bfloat16"}
    for wrong in ("study.workers=[0]", "study.procedures={}", "epochs=1"):
        with pytest.raises(InputError, match=f"^{wrong.partition('=')[0]}="):
            make_study("experiment=benchmark", wrong if "{}" not in wrong else "~study.procedures")


def rows_of(
    name: str, batch: int, workers: int, rate: float, threads: int = 1, **more: float
) -> list[dict[str, Any]]:
    common = {
        "experiment": "benchmark", "network": "mlp", "data": "mnist1d", "method": "SB", "remedy": "none",
        "cell": f"{name}{batch}{workers}{threads}", "seed": 0, "role": "benchmark", "setting": "",
        "global_batch_size": batch, "num_workers": workers, "precision": "float32", "procedure": name,
    }  # fmt: skip
    values = {"samples_per_second": rate, "startup_seconds": 0.1, "peak_memory": 1e9, "share_of_limit": 0.5,
              "threads": threads, "accuracy": 70.0, **more}  # fmt: skip
    return [{**common, "metric": k, "value": v, "split": "test" if k == "accuracy" else None}
            for k, v in values.items()]  # fmt: skip


def test_the_table_sets_each_procedure_beside_lbdist() -> None:
    rows = [*rows_of("lbdist", 32, 1, 1000), *rows_of("bare loop", 32, 1, 500),
            *rows_of("lbdist", 32, 2, 800), *rows_of("bare loop", 32, 1, 1600, threads=2),
            *rows_of("lbdist", 400, 1, 2000), *rows_of("lbdist", 400, 2, 3600)]  # fmt: skip
    runs = Runs(frame(rows))
    data = benchmark.speeds(runs).set_index(["workers", "batch", "procedure"])
    assert list(data.index)[:2] == [(1, 32, "lbdist"), (1, 32, "bare loop")]
    of_ours = data["mean"] / data["best"]
    assert of_ours[1, 32, "bare loop"] == 0.5
    assert of_ours[2, 32, "bare loop"] == 2.0
    (section,) = benchmark.sections(runs)
    text = " ".join(section.sentences)
    assert "Samples a second at batch 32: lbdist takes 2.00 times those of bare loop." in text
    assert "2 workers take the samples of one 0.80 times at batch 32 and 1.80 times at batch 400." in text
    assert "why people want large batches" in text
    assert len(section.tables[0].rows) == 6 and section.figures[0].draw() is not None
    slower = [*rows_of("lbdist", 32, 1, 1000), *rows_of("lbdist", 32, 2, 1900),
              *rows_of("lbdist", 400, 1, 2000), *rows_of("lbdist", 400, 2, 2000)]  # fmt: skip
    (other,) = benchmark.sections(Runs(frame(slower)))
    assert "why people want" not in " ".join(other.sentences)
    nothing = benchmark.sections(Runs(frame([{**row, "procedure": None} for row in rows])))
    assert nothing[0].sentences == ["No run is finished yet."] and not math.isnan(data["mean"].iloc[0])


def test_the_whole_cell_beside_others_of_its_precision() -> None:
    rows = [
        *rows_of("lbdist", 32, 1, 1000, whole_seconds=2.1),
        *rows_of("bare loop", 32, 1, 500, whole_seconds=2.0),
    ]
    low = [
        *rows_of("lbdist low", 32, 1, 9, whole_seconds=9.0),
        *rows_of("bare low", 32, 1, 9, whole_seconds=6.0),
    ]
    rows += [{**row, "precision": "bfloat16"} for row in low]
    rows += rows_of("bare loop", 32, 1, 500, threads=2, whole_seconds=1.0)
    (section,) = benchmark.sections(Runs(frame(rows)))
    (text,) = [text for text in section.sentences if text.startswith("A whole cell")]
    assert text.endswith("takes lbdist 1.50 times bare low in bfloat16, 1.05 times bare loop in float32.")
    assert [row["whole s"] for row in section.tables[0].records() if row["procedure"] == "lbdist"] == [2.1]
