"""The rows of a study: one schema, written whole or not at all, read back as one pandas DataFrame.

A study's folder under `storage`:

    rows/<job>.parquet    the rows of one finished piece of work (a trained cell, a sharpness value)
    rows.parquet          the same rows in one file, once the study is finished
    cells/<cell>/         a cell's configuration (cell.json) and its checkpoint
    tune/                 Ray Tune's own folder
    report.html, figures/

Neither torch nor ray is imported here: reading results needs neither.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes a file whole or not at all: aside first, then renamed over the name.

    Args:
        path: The file; its folder is made.
        content: All of it.
        durable: Waits until the disk has it, against a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_rows(folder: str | Path, job: str, rows: Iterable[Row]) -> None:
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
    _write_table(Path(folder) / "rows" / f"{job}.parquet", table)


def _write_table(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a mapping as JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True).encode())


def provenance() -> dict[str, str]:
    """What a number was measured with: code and library versions, machine, date."""
    versions = {name: metadata.version(name) for name in ("lbdist", "torch", "ray", "numpy", "scipy")}
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        code = subprocess.run(git, capture_output=True, text=True, timeout=5)
        if code.returncode == 0:
            versions["commit"] = code.stdout.strip()
    except OSError:
        pass  # no git here: the package's version has to do
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"
    return {
        **versions,
        "python": platform.python_version(),
        "machine": machine,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def finished_jobs(folder: str | Path) -> set[str]:
    """The ids of the jobs whose rows are there."""
    folder = Path(folder)
    jobs = {path.stem for path in (folder / "rows").glob("*.parquet")}
    if (folder / "rows.parquet").exists():
        jobs |= set(pq.read_table(folder / "rows.parquet", columns=["job"])["job"].unique().to_pylist())
    return jobs


def job_rows(folder: str | Path, job: str) -> list[dict[str, Any]]:
    """The rows of one job; none if it is not finished."""
    part, whole = Path(folder) / "rows" / f"{job}.parquet", Path(folder) / "rows.parquet"
    if part.exists():
        return pq.read_table(part, schema=SCHEMA).to_pylist()
    if whole.exists():
        return pq.read_table(whole, schema=SCHEMA, filters=[("job", "=", job)]).to_pylist()
    return []


def _read(folder: Path) -> pa.Table:
    parts = sorted((folder / "rows").glob("*.parquet"))
    tables = [pq.read_table(path, schema=SCHEMA) for path in parts]
    if (folder / "rows.parquet").exists():
        table = pq.read_table(folder / "rows.parquet", schema=SCHEMA)
        # a compaction that was cut off leaves both; a part is never the older of the two
        tables.append(
            table.filter(~pc.is_in(pc.field("job"), pa.array([path.stem for path in parts], pa.string())))
        )
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def load(folder: str | Path) -> pd.DataFrame:
    """All rows of a study, or of every study below a folder.

    Args:
        folder: A study's folder (`results/remedies`) or one that holds several (`results`).

    Returns:
        A DataFrame with the columns of `SCHEMA`, in a fixed order of rows.

    Raises:
        FileNotFoundError: There are no rows below the folder.
    """
    folder = Path(folder)
    studies = sorted({path.parent for pattern in ("rows", "rows.parquet") for path in folder.rglob(pattern)})
    if not studies:
        raise FileNotFoundError(f"no rows under {folder}")
    frame = pa.concat_tables([_read(study) for study in studies]).to_pandas()
    order = ["experiment", "stage", "method", "remedy", "cell", "job", "epoch", "metric", "split"]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def compact(folder: str | Path) -> None:
    """Gathers a study's rows in one file. Cut off at any point, nothing is lost or counted twice."""
    folder = Path(folder)
    parts = list((folder / "rows").glob("*.parquet"))
    if not parts:
        return
    _write_table(folder / "rows.parquet", _read(folder))
    for path in parts:
        path.unlink()
