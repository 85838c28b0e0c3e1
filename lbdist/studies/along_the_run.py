"""Figure 6 of Keskar et al.: sharpness against the loss along a small-batch and a large-batch run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import along_the_run
from lbdist.plan import Cell, Measurement
from lbdist.studies.base import Done, OverEpochs, along_runs
from lbdist.studies.search import searched


@dataclass
class AlongTheRun(OverEpochs):
    """SB, LB, and LB with each remedy, in the setting that a search chooses.

    Every measure is taken at the models of some of their epochs.
    """

    def cells(self, done: Done) -> Iterator[Cell]:
        """The runs, which keep the models that are measured; the last one is kept anyway."""
        plan = self.plan
        keep = frozenset(self.chosen()) - {plan.config.epochs}
        settings = yield from searched(plan, done)
        for seed in plan.seeds:
            yield plan.cell("SB", seed=seed, keep=keep)
            yield plan.cell("LB", seed=seed, keep=keep)
            for name, setting in settings.items():
                yield plan.cell("LB", {name: setting}, seed=seed, keep=keep)

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """Every measure at every model that is kept, and at the last."""
        return along_runs(self, done)

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """Sharpness against loss and epoch."""
        return along_the_run.sections(runs)
