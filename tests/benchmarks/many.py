"""What a study costs that is finished: its rows loaded, a dry run of it, the command run again.

    python tests/benchmarks/many.py [cells=2000]

The storage folder is filled with rows as cells and measurements write them, without training.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lbdist import results
from lbdist.config import compose
from lbdist.plan import Cell, Measurement
from lbdist.prepare import prepare
from lbdist.results import Row
from lbdist.storage import Store
from lbdist.studies.base import whole
from lbdist.tuning.book import write_cell


def measured(title: str, what: Callable[[], object]) -> None:
    """Prints the seconds, and the CPU seconds, children's among them."""

    def cpu() -> float:
        whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(sum(resource.getrusage(who)[:2]) for who in whose)

    before, begin = cpu(), time.perf_counter()
    what()
    print(f"{title:<28} {time.perf_counter() - begin:7.1f} s {cpu() - before:7.1f} CPU s", flush=True)


def rows_of(cell: Cell) -> list[Row]:
    """What training a cell writes, with a curve that falls."""
    fixed = {"cell": cell.id, "num_workers": 1, "seeds_at_once": 1, "precision": "float32"}
    fixed |= {"memory_format": "contiguous"}
    found: list[Row] = []
    for epoch in range(1, cell.epochs + 1):
        point = {**fixed, "epoch": epoch, "step": 10 * epoch, "split": "train"}
        found.append({**point, "metric": "running_loss", "value": 1 / epoch})
        for split in ("train", "test") if epoch % max(1, cell.epochs // cell.test_points) == 0 else ():
            for metric in ("loss", "accuracy"):
                found.append({**point, "split": split, "metric": metric, "value": 50.0 + cell.seed % 7})
    last = [row for row in found if row["epoch"] == cell.epochs and row["metric"] != "running_loss"]
    found += [{key: row[key] for key in ("metric", "value", "split", *fixed)} for row in last]
    ends = ("steps", "gradient_evaluations", "samples", "seconds", "distance_from_start", "overhead_seconds")
    found += [{**fixed, "metric": metric, "value": 10.0} for metric in ends]
    return [*found, {**fixed, "metric": "diverged", "value": 0.0}]


def rows_at(measurement: Measurement) -> list[Row]:
    """What two boxes and two solvers write."""
    fixed = {**measurement.columns(), "metric": "sharpness", "space": measurement.measure["spaces"][0]}
    fixed |= {"draw": measurement.measure.get("draw", 0), "split": "train", "evaluations": 40}
    return [
        {**fixed, "epsilon": epsilon, "solver": solver, "converged": True, "value": 1.0}
        for epsilon in (1e-3, 5e-4)
        for solver in ("paper", "converged")
    ]


def main(cells: int = 2000) -> None:
    """Fills a folder, and takes the times."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            "experiment=remedies",
            "remedy=[none]",
            f"seeds={cells // 2}",
            "measure.sharpness.spaces=[full]",
        ]
        chosen += ["study.check_workers=null", "study.check_precision=null", f"storage={folder}"]
        session = prepare(*compose.compose_parts(chosen))
        store = Store(folder)
        known = list(session.cells.values())
        for cell in known:
            write_cell(store, cell)
            results.write_rows(store, results.cell_file(cell.id), rows_of(cell))
        measurements = list(session.study.measurements(whole(session.study)))
        for measurement in measurements:
            results.write_rows(store, results.measurement_file(measurement.id), rows_at(measurement))
        print(f"{len(known)} cells, {len(measurements)} measurements")

        command = [sys.executable, "-m", "lbdist.run", *chosen]

        def again(*more: str) -> Callable[[], object]:
            log = (Path(folder) / "log").open("w")
            return lambda: subprocess.run([*command, *more], stdout=log, stderr=log, check=True)

        measured("lbdist.results.load", lambda: print(len(results.load(folder)), "rows"))
        measured("dry run", again("dry_run=true"))
        measured("the command, finished", again())
        print(f"on {os.cpu_count()} CPUs; the same once more:")
        measured("lbdist.results.load", lambda: print(len(results.load(folder)), "rows"))
        measured("dry run", again("dry_run=true"))
        measured("the command, finished", again())


if __name__ == "__main__":
    main(**{key: int(value) for key, _, value in (word.partition("=") for word in sys.argv[1:])})
