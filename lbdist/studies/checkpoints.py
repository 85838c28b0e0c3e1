"""Models of the user's own: every measure at each file, none of them trained here."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import checkpoints
from lbdist.errors import require
from lbdist.plan import INDEX, Cell, Measurement, Point, checkpoint_files
from lbdist.studies.base import Done, Study

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass
class Checkpoints(Study):
    """A checkpoint, or every one of a folder.

    Attributes:
        checkpoint: A file, or a folder of files, in safetensors (with an index, where it is in shards) or as
            `torch.save` writes state dicts.
        key: Which of several state dicts in a file; None for the model's own.
    """

    checkpoint: str | None = None
    key: str | None = None

    def check(self) -> None:
        """There is at least one file."""
        path, allowed = Path(self.checkpoint or "").expanduser(), "a file, or a folder with one or more of "
        found = self.checkpoint and (path.is_file() or (path.is_dir() and self.files()))
        require(bool(found), "checkpoint", self.checkpoint, allowed + ", ".join(SUFFIXES))

    def files(self) -> list[Path]:
        """The files, by name."""
        path = Path(self.checkpoint or "").expanduser().absolute()
        if path.is_file():
            return [path]
        names = (*SUFFIXES, INDEX)
        found = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(names))
        shards = {shard for file in found for shard in checkpoint_files(str(file))[1:]}
        return [file for file in found if str(file) not in shards]

    def cells(self, done: Done) -> Iterator[Cell]:
        """No cells: nothing is trained."""
        return iter(())

    @functools.cached_property
    def _points(self) -> list[Point]:
        """The models; kept, since a point reads its file once, for what it holds is its id."""
        cell = self.plan.cell("LB", seed=0)
        return [Point(cell, file=str(file), entry=self.key) for file in self.files()]

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """Every measure at each file."""
        for point in self._points:
            yield from (Measurement(node, (point,)) for node in self.plan.measured(point.cell))

    def models(self) -> dict[str, Mapping[str, Any]]:
        """What each file is, by the id that its rows have; its name is their `file`."""
        common = {**self.plan.cell("LB", seed=0).columns(), "method": None, "role": None, "rule": None}
        return {p.id: {**common, "cell": p.id, "file": Path(str(p.file)).name} for p in self._points}

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """The files, the flattest first."""
        return checkpoints.sections(runs)
