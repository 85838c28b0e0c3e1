"""One experiment at every point of a grid of its keys, as one study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import sweep
from lbdist.errors import InputError
from lbdist.studies.base import Done, cells_of
from lbdist.studies.union import Union


@dataclass
class Sweep(Union):
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

    def swept(self, done: Done) -> dict[str, list[str]]:
        """The points that each cell and each measurement belongs to, by id."""
        found: dict[str, list[str]] = {}
        for name, study in self.studies.items():
            for key in (*cells_of(study, done), *(m.id for m in study.measurements(done))):
                found.setdefault(key, []).append(self.points_of[name])
        return found

    def told(self, done: Done) -> dict[str, Mapping[str, Any]]:
        """The first point that each cell belongs to, by id."""
        found: dict[str, Mapping[str, Any]] = {}
        for name, study in self.studies.items():
            point = json.loads(self.points_of[name])
            found = {**dict.fromkeys(cells_of(study, done), point), **found}
        return found

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """The points side by side, then what each part shows of its own runs."""
        parts = {}
        for name, study in self.studies.items():
            own = Runs(runs.rows[runs.rows["point"] == self.points_of[name]], runs.score)
            parts[name] = json.loads(self.points_of[name]), own, study.sections(own, done)
        return sweep.sections(parts)
