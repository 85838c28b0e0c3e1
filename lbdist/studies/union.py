"""Several studies as one, which share their cells and measurements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lbdist.plan import Cell, Measurement
from lbdist.studies.base import Done, Study


@dataclass
class Union(Study):
    """What all of its studies run and measure; a subclass says what is shown of it."""

    def cells(self, done: Done) -> Iterator[Cell]:
        """The cells of each part."""
        for study in self.studies.values():
            yield from study.cells(done)

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """What each part measures at its own cells, each once."""
        found = {m.id: m for study in self.studies.values() for m in study.measurements(done)}
        yield from found.values()
