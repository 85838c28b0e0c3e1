"""What training costs: lbdist beside what a user would otherwise write, on the same model, batch and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import benchmark
from lbdist.errors import require
from lbdist.plan import Cell, Node
from lbdist.studies.base import Done, Study


@dataclass
class Benchmark(Study):
    """Every procedure at SB's and LB's batch, on one worker and on several, alone on the cluster.

    Attributes:
        procedures: Nodes of procedures by name, lbdist's own among them, each in its `precision` or in the
            study's. One with `threads` is a single process, of as many threads as others have workers.
        workers: Numbers of workers.
    """

    procedures: dict[str, Any] = field(default_factory=dict)
    workers: list[int] = field(default_factory=lambda: [1])

    def check(self) -> None:
        """There are procedures, and whole numbers of workers."""
        allowed = "one or more nodes with a _target_, by name"
        good = bool(self.procedures) and all(
            isinstance(node, Mapping) and "_target_" in node for node in self.procedures.values()
        )
        require(good, "study.procedures", self.procedures, allowed)
        numbers = bool(self.workers) and all(number >= 1 for number in self.workers)
        require(numbers, "study.workers", self.workers, "one or more numbers of at least 1")
        least = "at least 2, since the first epoch is the start"
        require(self.plan.config.epochs >= 2, "epochs", self.plan.config.epochs, least)

    @property
    def procedure_nodes(self) -> dict[str, Node]:
        """The procedures, by their keys."""
        return {f"study.procedures.{name}": node for name, node in self.procedures.items()}

    def cells(self, done: Done) -> Iterator[Cell]:
        """One process first, then groups."""
        for workers in self.workers:
            for method in ("SB", "LB"):
                for name, node in self.procedures.items():
                    single = "threads" in node
                    own = {**node, "name": name, **({"threads": workers} if single else {})}
                    for seed in self.plan.seeds:
                        yield self.plan.cell(
                            method,
                            seed=seed,
                            role="benchmark",
                            num_workers=1 if single else workers,
                            precision=node.get("precision") or self.plan.config.precision,
                            procedure=own,
                        )

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """One table and one figure."""
        return benchmark.sections(runs)
