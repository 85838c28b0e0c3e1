"""Figure 4 of Keskar et al.: test accuracy and sharpness against the global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import batch_size
from lbdist.plan import Cell
from lbdist.studies.base import Done, Study, chosen_batches


@dataclass
class BatchSize(Study):
    """Plain training at each of a list of global batches, every run measured.

    Attributes:
        batches: Global batches: samples, shares of the training set below 1, or `full` for all of it.
    """

    batches: list[Any] = field(default_factory=list)

    def check(self) -> None:
        """Each batch fits the training set."""
        chosen_batches(self.plan, self.batches)

    def cells(self, done: Done) -> Iterator[Cell]:
        """Every batch over the seeds; SB's and LB's batches are the cells of other studies too."""
        plan = self.plan
        for size in chosen_batches(plan, self.batches):
            yield from (plan.cell(size, seed=seed) for seed in plan.seeds)

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """Accuracy and sharpness by batch."""
        return batch_size.sections(runs)
