"""The rows of a study: one schema, written whole or not at all, read back as one pandas DataFrame.

A study's folder under `storage`, local or in an object store:

    rows/<job>.parquet    the rows of one finished piece of work (a trained cell, a sharpness value)
    rows.parquet          the same rows in one file, once the study is finished
    cells/<cell>/         a cell's configuration (cell.json) and its checkpoint
    tune/                 Ray Tune's own folder
    report.html, figures/

Neither torch nor ray is imported here: reading results needs neither.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lbdist.storage import Store

SCHEMA = pa.schema(
    [
        ("experiment", pa.string()),
        ("cell", pa.string()),
        ("network", pa.string()),
        ("data", pa.string()),
        ("method", pa.string()),
        ("remedy", pa.string()),
        ("global_batch_size", pa.int64()),
        ("num_workers", pa.int64()),
        ("seed", pa.int64()),
        ("stage", pa.string()),
        ("epoch", pa.int64()),
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("split", pa.string()),
        ("epsilon", pa.float64()),
        ("space", pa.string()),
        ("solver", pa.string()),
        ("draw", pa.int64()),
        ("converged", pa.bool_()),
        ("evaluations", pa.int64()),
        # beyond the common columns: what a number needs to be believed
        ("job", pa.string()),
        ("setting", pa.string()),
        ("start", pa.string()),
        ("iterations", pa.int64()),
        ("fraction_at_bound", pa.float64()),
        ("batch_norm", pa.string()),
        ("error", pa.string()),
    ]
)
"""One row a measured value; columns that do not apply are null."""

Row = Mapping[str, Any]

Place = str | Path | Store
"""A folder, a URI or a store."""


def write_rows(folder: Place, job: str, rows: Iterable[Row]) -> None:
    """Writes the rows of one finished job; the job counts as done once this returns.

    Args:
        folder: The study's folder.
        job: The job's id; a second write replaces the first.
        rows: Mappings from the columns of `SCHEMA` to values; missing columns become null.

    Raises:
        ValueError: A row has a column that the schema does not have.
    """
    full = [{**row, "job": job} for row in rows]
    unknown = {name for row in full for name in row} - set(SCHEMA.names)
    if unknown:
        raise ValueError(f"columns that the row schema does not have: {sorted(unknown)}")
    table = pa.Table.from_pylist(full, schema=SCHEMA)
    _write_table(Store.of(folder), f"rows/{job}.parquet", table)


def _write_table(store: Store, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    store.write(name, sink.getvalue().to_pybytes())


def _read_table(store: Store, name: str, **options: Any) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.read(name)), **options)


def write_json(store: Store, name: str, value: Mapping[str, Any]) -> None:
    """Writes a mapping as JSON, whole or not at all."""
    store.write(name, json.dumps(value, indent=1, sort_keys=True).encode())


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
        code = subprocess.run([*git, "describe", "--always", "--dirty"], **quiet)
        if ours.returncode == code.returncode == 0:
            versions["commit"] = code.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass  # no git here: the package's version has to do
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"
    return {
        **versions,
        "python": platform.python_version(),
        "machine": machine,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _parts(store: Store) -> list[str]:
    """The jobs that have a file of their own."""
    return [Path(name).stem for name in store.names("rows") if name.endswith(".parquet")]


def finished_jobs(folder: Place) -> set[str]:
    """The ids of the jobs whose rows are there."""
    store = Store.of(folder)
    jobs = set(_parts(store))
    if store.exists("rows.parquet"):
        jobs |= set(_read_table(store, "rows.parquet", columns=["job"])["job"].unique().to_pylist())
    return jobs


def job_rows(folder: Place, job: str) -> list[dict[str, Any]]:
    """The rows of one job; none if it is not finished."""
    store = Store.of(folder)
    for name, options in ((f"rows/{job}.parquet", {}), ("rows.parquet", {"filters": [("job", "=", job)]})):
        try:
            return _read_table(store, name, schema=SCHEMA, **options).to_pylist()
        except FileNotFoundError:
            continue
    return []


def _read(store: Store) -> pa.Table:
    parts = _parts(store)
    tables = [_read_table(store, f"rows/{job}.parquet", schema=SCHEMA) for job in parts]
    if store.exists("rows.parquet"):
        table = _read_table(store, "rows.parquet", schema=SCHEMA)
        # a compaction that was cut off leaves both; a part is never the older of the two
        tables.append(table.filter(~pc.is_in(pc.field("job"), pa.array(parts, pa.string()))))
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def load(folder: Place) -> pd.DataFrame:
    """All rows of a study, or of every study below a folder.

    Args:
        folder: A study's folder (`results/remedies`) or one that holds several (`results`), or its URI.

    Returns:
        A DataFrame with the columns of `SCHEMA`, in a fixed order of rows.

    Raises:
        FileNotFoundError: There are no rows below the folder.
    """
    store = Store.of(folder)
    found = re.compile(r"(?:(.*)/)?rows(?:/[^/]*)?\.parquet")
    studies = {match[1] or "" for match in map(found.fullmatch, store.names()) if match}
    if not studies:
        raise FileNotFoundError(f"no rows under {store}")
    tables = [_read(store / study if study else store) for study in sorted(studies)]
    frame = pa.concat_tables(tables).to_pandas()
    order = ["experiment", "stage", "method", "remedy", "cell", "job", "epoch", "metric", "split"]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def compact(folder: Place) -> None:
    """Gathers a study's rows in one file. Cut off at any point, nothing is lost or counted twice."""
    store = Store.of(folder)
    parts = _parts(store)
    if not parts:
        return
    _write_table(store, "rows.parquet", _read(store))
    for job in parts:
        store.remove(f"rows/{job}.parquet")
