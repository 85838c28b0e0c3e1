"""What is done of a study: its cells' files, looked up once, and set aside where they are damaged."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lbdist import code, results
from lbdist.compacted import Files
from lbdist.plan import Cell, Measurement
from lbdist.storage import Damaged, Store
from lbdist.studies.base import Final, Study, cells_of, whole
from lbdist.training import checkpoint
from lbdist.training.cell import has_models


class Book:
    """What is done: each cell is looked up in the storage folder once, and booked when it ends.

    A file that is damaged is set aside, with a line that says so, and counts as missing; a cell of which one
    is missing counts as never run.

    Args:
        store: The storage folder.
        say: Told of what is damaged; None leaves the folder as it is, for a dry run.
        renew: Whether what other code than today's has computed counts as missing.
    """

    def __init__(self, store: Store, say: Callable[[str], None] | None = None, renew: bool = False) -> None:
        self.store, self.say, self.renew = store, say, renew
        self.files = Files(store)
        self._found: dict[tuple[str, frozenset[int]], Final | None] = {}
        self._ended: dict[str, Final] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._told: dict[str, Mapping[str, Any]] = {}

    def __call__(self, cell: Cell) -> Final | None:
        """The final metrics of a cell that is finished with every model that it keeps, else None."""
        if cell.id in self._ended:
            return self._ended[cell.id]
        key = (cell.id, cell.keep)
        if key not in self._found:
            rows = self.rows(results.cell_file(cell.id))
            whole = bool(rows) and self._described(cell) and has_models(self.store, cell, rows)
            if whole and self.renew and self.changed(cell):
                self._forget(cell)
                whole = False
            self._found[key] = results.final_metrics(rows) if whole else None
        return self._found[key]

    def read_ahead(self, study: Study) -> None:
        """Reads what is there of a study at once, as far as its cells and measurements are known."""
        done = whole(study)
        measurements = [measurement.id for measurement in study.measurements(done)]
        self.files.read_ahead(results.file_names(cells_of(study, done), measurements))

    def compact(self, study: Study) -> None:
        """Keeps what is finished of a study together, so that the next run reads one file."""
        cells = [name for name, cell in cells_of(study, self).items() if self(cell)]
        measurements = [measurement.id for measurement in study.measurements(self)]
        with contextlib.suppress(OSError):  # the files themselves are there
            self.files.compact(results.file_names(cells, measurements))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a cell's or a measurement's file, read once; none where it is missing or damaged."""
        if name not in self._rows:
            found = self._sound(name, lambda: self.files.rows(name))
            if not found:
                return []
            self._rows[name] = found
        return self._rows[name]

    def _described(self, cell: Cell) -> bool:
        """Whether `cell.json` is there, with the code that the rows come from; if not, they are dropped."""
        return self._needed(cell, results.cell_json(cell.id), lambda: self._read(cell))

    def changed(self, cell: Cell) -> list[str]:
        """Of what a finished cell was computed by, what is no longer as it was."""
        then, now = self.told(cell).get("code", {}), todays_code(cell)
        return [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]

    def told(self, cell: Cell) -> Mapping[str, Any]:
        """What `cell.json` says of a cell, read once; nothing where it is missing or damaged."""
        try:
            return self._told.get(cell.id) or self._read(cell)
        except (FileNotFoundError, Damaged):
            return {}

    def _read(self, cell: Cell) -> Mapping[str, Any]:
        self._told[cell.id] = self.files.json(results.cell_json(cell.id))
        return self._told[cell.id]

    def measured(self, measurement: Measurement) -> list[dict[str, Any]]:
        """The rows of a measurement; none where it is missing."""
        rows = self.rows(results.measurement_file(measurement.id))
        return [] if rows and self.renew and self.measured_otherwise(measurement, rows) else rows

    def measured_otherwise(self, measurement: Measurement, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a measurement's rows are of other code than today's."""
        return rows[0]["code"] != measurement.code

    def check(self, cells: Sequence[Cell], models: Iterable[tuple[Cell, int | None]]) -> None:
        """Looks through the files that are about to be read: resume files, and models.

        Args:
            cells: Cells that are going to run, from where they stopped.
            models: Cells that are finished, and the epoch (None: the last) of a model of each.
        """
        for cell in cells:
            name = f"{results.cell_folder(cell.id)}/{checkpoint.RESUME}"
            read = functools.partial(checkpoint.check, self.store / results.cell_folder(cell.id))
            if self._sound(name, read) and self.say and self.told(cell) and self.changed(cell):
                self.store.remove(name)
                self.say(f"{cell.label} was begun by other code than today's, and begins anew")
        for cell, epoch in {(cell.id, epoch): (cell, epoch) for cell, epoch in models}.values():
            if cell.id in self._ended:
                continue  # written just now
            folder, file = self.store / results.cell_folder(cell.id), checkpoint.model_name(epoch)
            name = f"{results.cell_folder(cell.id)}/{file}"
            self._needed(cell, name, functools.partial(checkpoint.load_model, folder, file))

    def _sound(self, name: str, read: Callable[[], Any], of: Cell | None = None) -> Any:
        """What a file holds; None where it is damaged, or missing, which is told if it is part of a cell."""
        say = self.say or (lambda line: None)
        again = f"{of.label} is to be trained again" if of else "to be computed again"
        try:
            return read()
        except FileNotFoundError:
            if of is not None:
                say(f"{self.store}/{name} is missing; {again}")
        except Damaged as error:
            aside = self.store.set_aside(name).rpartition("/")[2] if self.say else ""
            say(f"{error}; set aside as {aside}, {again}")
        return None

    def _forget(self, cell: Cell) -> None:
        """Counts a cell as one that never ran, and what was measured at its models as not measured."""
        if self.say is not None:
            for name in self.store.names(results.MEASUREMENTS):
                measured = self.rows(name) if name.endswith(".parquet") else []
                if any(cell.id in (row["cell"], row["other_cell"]) for row in measured):
                    self.store.remove(name)
                    del self._rows[name]
            self.store.remove(results.cell_file(cell.id))
        self._rows.pop(results.cell_file(cell.id), None)

    def _needed(self, cell: Cell, name: str, read: Callable[[], Any]) -> bool:
        """Whether a part of a finished cell is sound; if not, the cell counts as one that never ran."""
        if self._sound(name, read, cell):
            return True
        if self.say is not None:
            self.store.remove(results.cell_file(cell.id))
        self._rows.pop(results.cell_file(cell.id), None)
        self._ended.pop(cell.id, None)
        for key in [key for key in self._found if key[0] == cell.id]:
            self._found[key] = None
        return False

    def end(self, cell: Cell, final: Final) -> None:
        """Books a cell that ended; an empty `final` is a failure."""
        self._ended[cell.id] = final
        self._told.pop(cell.id, None)
        self.files.drop(*results.file_names([cell.id], []))


def read_cells(store: Store, names: Sequence[str]) -> tuple[list[Cell], float]:
    """The cells of these ids, and when they were handed out, in seconds since the epoch."""
    told = [results.read_cell(store, name) for name in names]
    return [Cell.of_record(one["cell"]) for one in told], told[0]["handed_out"]


def write_cell(store: Store, cell: Cell) -> None:
    """Writes a cell's configuration beside its rows, with the versions and the machine."""
    results.write_cell(
        store,
        cell.id,
        {
            "cell": cell.record(),
            "columns": cell.columns(),
            "provenance": results.provenance(),
            "code": todays_code(cell),
            "handed_out": time.time(),
        },
    )


def todays_code(cell: Cell) -> dict[str, str]:
    """What a cell is computed by, as it is now: `code.of` its nodes, and the files that its network names."""
    return {**code.of(cell.nodes), **code.of_files(cell.network)}
