"""Several studies as one, which share their cells and measurements and stand in one report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

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

    def __post_init__(self) -> None:
        self.studies: Mapping[str, Study] = {}
        self._cells: dict[str, dict[str, Cell]] = {}
        self._measurements: dict[str, dict[str, str]] = {}

    def cells(self, done: Done) -> Iterator[Cell]:
        """The cells of each part; what a part was asked for stays known to be its own."""
        for name, study in self.studies.items():
            found = cells_of(study, done)
            own = self._cells.setdefault(name, {})
            for key, cell in found.items():
                own[key] = replace(cell, keep=cell.keep | own[key].keep) if key in own else cell
            yield from found.values()

    def measurements(self, cells: Sequence[Cell]) -> Iterator[Measurement]:
        """What each part measures at its own cells, each once."""
        known: set[str] = set()
        for name, study in self.studies.items():
            own = self._cells.get(name, {})
            for found in study.measurements([own[cell.id] for cell in cells if cell.id in own]):
                self._measurements.setdefault(name, {})[found.id] = title(found.measure)
                if found.id not in known:
                    known.add(found.id)
                    yield found

    def within(self, devices: int) -> list[str]:
        """What each part leaves out."""
        return list(dict.fromkeys(line for study in self.studies.values() for line in study.within(devices)))

    def sections(self, runs: Runs) -> list[Section]:
        """Every claim, then what each part shows of its own runs."""
        rows, found = runs.rows, {}
        for name in self.studies:
            own = rows["cell"].isin(self._cells.get(name, {})) & rows["measurement"].isna()
            measured = self._measurements.get(name, {})
            own |= rows["measurement"].isin(measured)
            called = rows["measurement"].map(measured)  # parts may call one measurement differently
            found[name] = Runs(rows.assign(measure=called.astype(object))[own], runs.score)
        return paper.sections({name: (found[name], study) for name, study in self.studies.items()})
