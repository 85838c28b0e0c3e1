"""One experiment at every point of a grid of its keys, as one study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import sweep
from lbdist.errors import InputError
from lbdist.plan import Cell, Measurement
from lbdist.studies.base import Done, Study, cells_of


@dataclass
class Sweep(Study):
    """The union of a study's variants, which share the cells that they have in common.

    Attributes:
        points_of: The point of each part as JSON, by the part's name: its keys and their values.
    """

    points: ClassVar[tuple[int, ...]] = (1, 2)
    points_of: dict[str, str] = field(default_factory=dict)

    def check_parts(self) -> None:
        """Refuses a key that changes nothing: then two points are the same runs."""
        seen: dict[frozenset[str], str] = {}
        for name, study in self.studies.items():
            cells = frozenset(cells_of(study, lambda cell: None))
            if cells in seen:
                same = f"{seen[cells]} and {name} are the same runs"
                raise InputError(f"-m: must sweep over what a run is computed from, but {same}")
            seen[cells] = name

    def cells(self, done: Done) -> Iterator[Cell]:
        """The cells of each part."""
        for study in self.studies.values():
            yield from study.cells(done)

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """What each part measures at its own cells, each once."""
        found = {m.id: m for study in self.studies.values() for m in study.measurements(done)}
        yield from found.values()

    def swept(self, done: Done) -> dict[str, list[str]]:
        """The points that each cell and each measurement belongs to, by id."""
        found: dict[str, list[str]] = {}
        for name, study in self.studies.items():
            for key in (*cells_of(study, done), *(m.id for m in study.measurements(done))):
                found.setdefault(key, []).append(self.points_of[name])
        return found

    def told(self, cell: Cell, done: Done) -> Mapping[str, Any]:
        """The first point that a cell belongs to."""
        own = (name for name, study in self.studies.items() if cell.id in cells_of(study, done))
        return json.loads(self.points_of[next(own)])

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """The points side by side, then what each part shows of its own runs."""
        parts = {}
        for name, study in self.studies.items():
            own = Runs(runs.rows[runs.rows["point"] == self.points_of[name]], runs.score)
            parts[name] = json.loads(self.points_of[name]), own, study.sections(own, done)
        return sweep.sections(parts)
