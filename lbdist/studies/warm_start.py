"""Figure 5 of Keskar et al.: large-batch runs that begin where a small-batch run was after some epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import warm_start
from lbdist.plan import Cell, Origin
from lbdist.studies.base import Done, OverEpochs


@dataclass
class WarmStart(OverEpochs):
    """SB, LB, and LB begun at the model that SB of the same seed kept after each of some epochs."""

    def cells(self, done: Done) -> Iterator[Cell]:
        """SB and LB, and once SB of a seed is there, the runs that begin at it."""
        plan = self.plan
        epochs = self.chosen()
        for seed in plan.seeds:
            small = plan.cell("SB", seed=seed, keep=frozenset(epochs))
            yield small
            yield plan.cell("LB", seed=seed)
            final = done(small)
            if final and not final.get("diverged"):  # else it has no later model to begin at
                for epoch in epochs:
                    yield plan.cell("LB", seed=seed, origin=Origin(small.id, epoch))

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """Accuracy and sharpness of the warm-started runs by the epoch that they begin at."""
        return warm_start.sections(runs)
