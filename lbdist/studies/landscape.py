"""Figures 3 and 7 of Keskar et al.: loss and accuracy between SB's and LB's models, and around each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import landscape
from lbdist.plan import Cell, Measurement, Point
from lbdist.studies.base import Done, Study, ended
from lbdist.studies.search import searched


@dataclass
class Landscape(Study):
    """SB, LB, and LB with each remedy, in the setting that a search chooses.

    Measures of two models go from SB's to the other's.
    """

    points: ClassVar[tuple[int, ...]] = (1, 2)

    def cells(self, done: Done) -> Iterator[Cell]:
        """SB, LB and, once their search is over, the remedies, over the seeds."""
        plan = self.plan
        settings = yield from searched(plan, done)
        for seed in plan.seeds:
            yield plan.cell("SB", seed=seed)
            yield plan.cell("LB", seed=seed)
            for name, setting in settings.items():
                yield plan.cell("LB", {name: setting}, seed=seed)

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """From SB's model to each other one of its seed, and at every model by itself."""
        cells = ended(self, done)
        firsts = {cell.seed: cell for cell in cells if cell.method == "SB"}
        for cell in cells:
            for name, (node, measure) in self.plan.measures.items():
                for part in measure.parts(node, cell):
                    named = {**part, "name": name}
                    if measure.points == 1:
                        yield Measurement(named, (Point(cell),))
                    elif cell.method != "SB" and cell.seed in firsts:
                        yield Measurement(named, (Point(firsts[cell.seed]), Point(cell)))

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """The slices and the planes."""
        return landscape.sections(runs)
