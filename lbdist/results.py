"""The rows of a storage folder: one schema, written whole or not at all, read back as one pandas DataFrame.

A storage folder, local or in an object store, is shared by all its studies:

    cells/<cell>/cell.json         what the cell is, and with which code it was trained
    cells/<cell>/rows.parquet      its rows, once it is finished
    cells/<cell>/*.safetensors     its models: the last, and one for each epoch that is kept
    measurements/<id>.parquet      the rows of one measurement
    compacted                      what was read of these, which need not be read again
    <study>/rows.parquet           the rows of a study, with the columns that say what each cell is
    <study>/tune, report.html, figures/, tables/

Neither torch nor ray is imported here: reading results needs neither.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lbdist import code
from lbdist.compacted import Files
from lbdist.old_rows import renewed
from lbdist.rows import SCHEMA, Place, Row, read_table, write_rows
from lbdist.rows import as_table as as_table
from lbdist.rows import read_rows as read_rows
from lbdist.storage import Store, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and writing does not need it

RAN = ("num_workers", "precision", "memory_format", "seeds_at_once")
"""Columns that say how a cell was run, which its id may leave open."""

CELLS, MEASUREMENTS = "cells", "measurements"
"""Folders of the storage folder, which no study may be called."""


def cell_folder(cell: str) -> str:
    """Where what is known of a cell is."""
    return f"{CELLS}/{cell}"


def cell_json(cell: str) -> str:
    """Where a cell says what it is."""
    return f"{cell_folder(cell)}/cell.json"


def cell_file(cell: str) -> str:
    """Where a cell's rows are."""
    return f"{cell_folder(cell)}/rows.parquet"


def late_file(cell: str) -> str:
    """What a process that was ended for being late wrote of a cell."""
    return f"{cell_folder(cell)}/late.txt"


def measurement_file(measurement: str) -> str:
    """Where a measurement's rows are."""
    return f"{MEASUREMENTS}/{measurement}.parquet"


def final_name(metric: str, split: str | None) -> str:
    """The name of a value that has no other column to say its split.

    Example:
        >>> final_name("loss", "train"), final_name("accuracy", "test"), final_name("steps", None)
        ('train_loss', 'test_accuracy', 'steps')
    """
    return f"{split}_{metric}" if split else metric


def final_metrics(rows: Iterable[Row]) -> dict[str, float]:
    """The final values among a cell's rows, each by its `final_name`."""
    return {
        final_name(row["metric"], row.get("split")): row["value"] for row in rows if row.get("epoch") is None
    }


def write_cell(place: Place, cell: str, content: Mapping[str, Any]) -> None:
    """Writes what a cell is: its `cell`, its `columns`, the `provenance` of its rows, and their `code`."""
    write_json(Store.of(place), cell_json(cell), content)


@functools.cache
def provenance() -> dict[str, str]:
    """What a number was measured with: code and library versions, machine, date; taken once a process."""
    versions = {name: metadata.version(name) for name in ("lbdist", "torch", "ray", "numpy", "scipy")}
    here = Path(__file__).resolve().parent
    quiet: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 5}
    git = ["git", "-C", str(here)]
    try:
        # a repository may merely contain the environment that this file is installed in
        ours = subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], **quiet)
        commit = subprocess.run([*git, "describe", "--always", "--dirty"], **quiet)
        if ours.returncode == commit.returncode == 0:
            versions["commit"] = commit.stdout.strip()
            if versions["commit"].endswith("-dirty"):  # of which no two are alike
                versions["commit"] += f" ({code.of_lbdist()})"
    except (OSError, subprocess.TimeoutExpired):
        pass  # no git here: the package's version has to do
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"
    return {
        **versions,
        "python": platform.python_version(),
        "machine": machine,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def gather(
    place: Place,
    cells: Mapping[str, Mapping[str, Any]],
    measurements: Mapping[str, str],
    study: str | None = None,
    read: Callable[[str], list[dict[str, Any]]] | None = None,
    points: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> pd.DataFrame:
    """The rows of cells and measurements, with the columns that say what each cell is.

    Args:
        place: The storage folder.
        cells: Each cell's columns by its id; cells that are not finished have no rows.
        measurements: What each measurement is called, by its id, at these cells or others; those that are not
            there have no rows. Nothing leaves what the study called it that measured it first.
        study: What `experiment` is to be; the rows are then written to `<study>/rows.parquet` as well.
        read: Gives the rows of a file; None reads them from the folder.
        points: Of a sweep, the points that a cell or a measurement belongs to, by its id; it has its rows
            once for each.

    Returns:
        A DataFrame with the columns of `SCHEMA`, in a fixed order of rows.
    """
    store = Store.of(place)
    read = read or functools.partial(read_rows, store)
    parts: list[tuple[Sequence[Row], Mapping[str, Any]]] = []
    ran: dict[str, Row] = {}
    for cell, columns in cells.items():
        if rows := read(cell_file(cell)):
            ran[cell] = {name: rows[0][name] for name in RAN}  # its end is evaluated in float32
            told = {**columns, "experiment": study}
            parts += [(rows, {**told, "point": point}) for point in points.get(cell, [None])]
    for measurement, measure in measurements.items():
        for row in read(measurement_file(measurement)):
            columns = {**ran.get(row["cell"], {}), **cells.get(row["cell"], {}), "experiment": study}
            told = {**columns, "measure": measure or row["measure"]}
            parts += [([row], {**told, "point": point}) for point in points.get(measurement, [None])]
    table = _sorted(_joined(parts))
    if study is not None and parts:
        write_rows(store / study, "rows.parquet", table)
    return table.to_pandas()


def _joined(parts: Sequence[tuple[Sequence[Row], Mapping[str, Any]]]) -> pa.Table:
    """Rows with the columns that say what their cell is, which an earlier version may have written."""
    parts = [
        ([renewed({**row, **columns}) for row in rows], {}) if "stage" in columns else (rows, columns)
        for rows, columns in parts
    ]
    rows = [row for rows, _ in parts for row in rows]
    at = pa.array(np.repeat(np.arange(len(parts)), [len(rows) for rows, _ in parts]))
    said = {name: [name in columns for _, columns in parts] for name in SCHEMA.names}
    own = pa.Table.from_pylist(rows, schema=pa.schema([f for f in SCHEMA if not all(said[f.name])]))
    arrays = []
    for field in SCHEMA:  # what a cell is called is looked up once, not once a row
        values = own[field.name] if field.name in own.column_names else None
        if any(said[field.name]):
            told = pa.array([columns.get(field.name) for _, columns in parts], field.type).take(at)
            values = told if values is None else pc.if_else(pa.array(said[field.name]).take(at), told, values)
        arrays.append(values)
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def append(place: Place, study: str, rows: Iterable[Row]) -> None:
    """Adds rows that were derived of a study's own to its `rows.parquet`, where `gather` has written it.

    Args:
        place: The storage folder.
        study: The study, which is their `experiment`.
        rows: The rows, of no cell.
    """
    store = Store.of(place) / study
    if more := [{**row, "experiment": study} for row in rows]:
        table = pa.concat_tables([read_table(store, "rows.parquet"), as_table(more)])
        write_rows(store, "rows.parquet", _sorted(table))


def _sorted(table: pa.Table) -> pa.Table:
    order = ["experiment", "role", "method", "remedy", "cell", "measurement", "epoch", "metric", "split"]
    frame = table.select(order).to_pandas().sort_values(order, kind="stable")
    return table.take(pa.array(frame.index))


def load(place: Place) -> pd.DataFrame:
    """All rows of a study, or each row of a storage folder once.

    Args:
        place: A study's folder (`results/remedies`), or a storage folder (`results`), whose `experiment` is
            null since its studies share cells; or its URI.

    Returns:
        A DataFrame with the columns of `SCHEMA`, in a fixed order of rows; each key of a sweep is a column
        after them.

    Raises:
        FileNotFoundError: There are no rows in the folder.
        Damaged: A file is not what was written there; the study, run again, computes it anew.
    """
    store = Store.of(place)
    if store.exists("rows.parquet"):
        return _with_points(_sorted(read_table(store, "rows.parquet")).to_pandas())
    found, measurements = finished(store, CELLS), finished(store, MEASUREMENTS)
    if not found:
        raise FileNotFoundError(f"no rows under {store}")
    files = Files(store)
    files.read_ahead(file_names(found, measurements))
    cells = {cell: files.json(cell_json(cell))["columns"] for cell in found}
    return gather(store, cells, dict.fromkeys(measurements, ""), read=files.rows)


def _with_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column for each key of the points that they belong to."""
    found = {point: json.loads(point) for point in rows["point"].dropna().unique()}
    keys = dict.fromkeys(key for point in found.values() for key in point)
    for key in keys:
        rows[key] = rows["point"].map({point: values.get(key) for point, values in found.items()})
    return rows


def file_names(cells: Iterable[str], measurements: Iterable[str]) -> list[str]:
    """The files in which cells and measurements are that are finished."""
    found = [file(cell) for cell in cells for file in (cell_json, cell_file)]
    return found + [measurement_file(measurement) for measurement in measurements]


def finished(place: Place, kind: str) -> list[str]:
    """The ids of the cells, or of the measurements, whose rows are there."""
    file = (cell_file if kind == CELLS else measurement_file)("([0-9a-f]+)").replace(".", "[.]")
    return [match[1] for match in map(re.compile(file).fullmatch, Store.of(place).names(kind)) if match]


def read_cell(place: Place, cell: str) -> dict[str, Any]:
    """What `cell.json` holds: the `cell`, its `columns`, the `provenance` of its rows, and their `code`.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: It is not what was written there.
    """
    return read_json(Store.of(place), cell_json(cell))


def code_version(provenance: Mapping[str, str]) -> str:
    """The version of the code in words: `lbdist 0.1.0, commit 1a2b3c4`."""
    commit = provenance.get("commit")
    return f"lbdist {provenance['lbdist']}" + (f", commit {commit}" if commit else "")
