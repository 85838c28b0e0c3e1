"""Several studies as one, which share their cells and measurements and stand in one report."""

from __future__ import annotations

from dataclasses import dataclass, field

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import paper
from lbdist.plan import title
from lbdist.studies.base import Done, cells_of
from lbdist.studies.union import Union


@dataclass
class Paper(Union):
    """Every table and figure of the paper: the union of other studies.

    Attributes:
        parts: The experiments that it consists of.
    """

    parts: list[str] = field(default_factory=list)

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """Every claim, then what each part shows of its own runs."""
        rows, parts = runs.rows, {}
        for name, study in self.studies.items():
            measured = {m.id: title(m.measure) for m in study.measurements(done)}
            own = rows["cell"].isin(cells_of(study, done)) & rows["measurement"].isna()
            own |= rows["measurement"].isin(measured)
            called = rows["measurement"].map(measured)  # parts may call one measurement differently
            part = Runs(rows.assign(measure=called.astype(object))[own], runs.score)
            parts[name] = part, study.sections(part, done)
        return paper.sections(parts)
