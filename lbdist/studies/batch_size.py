"""Figure 4 of Keskar et al.: test accuracy and sharpness against the global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import batch_size
from lbdist.errors import require
from lbdist.plan import Cell
from lbdist.studies.base import Done, Study


@dataclass
class BatchSize(Study):
    """Plain training at each of a list of global batches, every run measured.

    Attributes:
        batches: Global batches: samples, shares of the training set below 1, or `full` for all of it.
    """

    batches: list[Any] = field(default_factory=list)

    def check(self) -> None:
        """Each batch fits the training set."""
        allowed = "samples, a share of the training set between 0 and 1, or full"
        for batch in self.batches:
            good = isinstance(batch, int | float) and not isinstance(batch, bool)
            good = good and (0 < batch < 1 or (batch >= 1 and float(batch).is_integer()))
            require(good or batch == "full", "study.batches", self.batches, allowed)
            size = self.plan.train_size
            if batch != "full":
                self.plan.check_batch("study.batches", batch, size, "the samples that are trained on")
        require(len(self.batches) > 0, "study.batches", [], "one or more batches")

    def _sizes(self) -> list[int]:
        plan = self.plan
        return sorted({plan.train_size if b == "full" else plan.batch(b) for b in self.batches})

    def cells(self, done: Done) -> Iterator[Cell]:
        """Every batch over the seeds; SB's and LB's batches are the cells of other studies too."""
        plan = self.plan
        names = {plan.large_batch: "LB", plan.small_batch: "SB"}
        for size in self._sizes():
            method = names.get(size, f"batch {size}")
            yield from (plan.cell(method, batch=size, seed=seed) for seed in plan.seeds)

    def sections(self, runs: Runs) -> list[Section]:
        """Accuracy and sharpness by batch."""
        return batch_size.sections(runs)
