"""Several studies as one, which share their cells and measurements and stand in one report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import paper
from lbdist.plan import Cell, Measurement, title
from lbdist.studies.base import Done, Study, cells_of


@dataclass
class Paper(Study):
    """Every table and figure of the paper: the union of other studies.

    Attributes:
        parts: The experiments that it consists of.
    """

    parts: list[str] = field(default_factory=list)

    def cells(self, done: Done) -> Iterator[Cell]:
        """The cells of each part."""
        for study in self.studies.values():
            yield from study.cells(done)

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """What each part measures at its own cells, each once."""
        found = {m.id: m for study in self.studies.values() for m in study.measurements(done)}
        yield from found.values()

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
