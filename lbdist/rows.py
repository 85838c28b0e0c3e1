"""Rows, and the files that hold them: one schema, written whole or not at all, checked as they are read."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lbdist.old_rows import OLD_COLUMNS, renewed
from lbdist.storage import Damaged, Store, check_stamp, digest, stamp

SCHEMA = pa.schema(
    [
        ("experiment", pa.string()),
        ("cell", pa.string()),
        ("network", pa.string()),
        ("data", pa.string()),
        ("method", pa.string()),
        ("remedy", pa.string()),
        ("setting", pa.string()),
        ("global_batch_size", pa.int64()),
        ("num_workers", pa.int64()),
        ("seed", pa.int64()),
        ("role", pa.string()),
        ("epoch", pa.int64()),
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("split", pa.string()),
        ("measure", pa.string()),
        ("epsilon", pa.float64()),
        ("space", pa.string()),
        ("solver", pa.string()),
        ("draw", pa.int64()),
        ("converged", pa.bool_()),
        ("evaluations", pa.int64()),
        ("position", pa.float64()),
        ("position_2", pa.float64()),
        ("other_cell", pa.string()),
        ("origin_cell", pa.string()),
        ("origin_epoch", pa.int64()),
        ("options", pa.string()),
        ("precision", pa.string()),
        ("memory_format", pa.string()),
        ("seeds_at_once", pa.int64()),
        ("device", pa.string()),
        ("block", pa.int64()),
        ("bytes", pa.int64()),
        ("curvilinear", pa.bool_()),
        ("convention", pa.string()),
        ("file", pa.string()),
        ("rule", pa.string()),
        ("procedure", pa.string()),
        ("code", pa.string()),
        ("point", pa.string()),
        # beyond the common columns: what a number needs to be believed
        ("measurement", pa.string()),
        ("start", pa.string()),
        ("iterations", pa.int64()),
        ("fraction_at_bound", pa.float64()),
        ("batch_norm", pa.string()),
        ("error", pa.string()),
    ]
)
"""One row per measured value; columns that do not apply are null."""

_NAMES = frozenset(SCHEMA.names)
COLUMNS = "columns "
"""Before a digest that is taken column by column."""

Row = dict[str, Any]
"""A value with its columns."""

Place = str | Path | Store
"""A folder, a URI or a store."""


def as_table(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table with the columns of `SCHEMA`; missing ones become null.

    Raises:
        ValueError: A row has a column that the schema does not have.
    """
    rows = list(rows)
    unknown = {column for row in rows for column in row} - set(SCHEMA.names)
    if unknown:
        raise ValueError(f"columns that the row schema does not have: {sorted(unknown)}")
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def write_rows(place: Place, name: str, rows: Iterable[Row] | pa.Table) -> None:
    """Writes the rows of what is finished; it counts as done once this returns.

    Args:
        place: The storage folder.
        name: The file; a second write replaces the first.
        rows: A table, or what `as_table` takes, of which columns without a value are left out: a file of few
            columns is read in a third of the time.

    Raises:
        ValueError: A row has a column that the schema does not have.
    """
    if isinstance(rows, pa.Table):
        table, found = rows, _digest_of_columns(rows)
    else:
        table = _filled(as_table(rows))
        found = _digest(table.to_pylist())
    mark = stamp(name, found)
    content = parquet(table.replace_schema_metadata({"lbdist": json.dumps(mark)}))
    Store.of(place).write(name, content)


def _filled(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if table[name].null_count < len(table)])


def parquet(table: pa.Table) -> bytes:
    """A table as a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def of_parquet(content: bytes) -> pa.Table:
    """The table of a file; of a small one in less than half the time of `read_table`."""
    return pq.ParquetFile(pa.BufferReader(content)).read()


def _digest(rows: list[Row]) -> str:
    return digest(json.dumps(rows).encode())


def _digest_of_columns(table: pa.Table) -> str:
    """Of a table's names, types and values, in whatever pieces it lies: for large ones 30 times as fast."""
    parts: list[bytes] = []
    for field in table.schema:
        column = table[field.name]
        values = column.drop_null().combine_chunks()
        parts += [f"{field.name} {field.type}".encode(), column.is_valid().to_numpy().tobytes()]
        if pa.types.is_string(field.type):
            coded = values.dictionary_encode()
            parts.append(json.dumps(coded.dictionary.to_pylist()).encode())
            values = coded.indices
        parts.append(values.to_numpy(zero_copy_only=False).tobytes())
    return COLUMNS + digest(b"".join(struct.pack("<q", len(part)) + part for part in parts))


def read_table(place: Place, name: str) -> pa.Table:
    """The table of a file, with the columns of `SCHEMA`.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: It is not what was written there.
    """
    table, rows = _checked(Store.of(place), name)
    return table if table.schema == SCHEMA else as_table(_todays(table, rows))


def _checked(store: Store, name: str) -> tuple[pa.Table, list[Row]]:
    """The table of a file, and its rows, where they had to be made to check it.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: It is not what `write_rows` wrote there.
    """
    content, where, rows = store.read(name), f"{store}/{name}", []
    try:
        table = of_parquet(content)
        mark = json.loads((table.schema.metadata or {}).get(b"lbdist", b"null"))
        others = any(f not in SCHEMA and f.name not in OLD_COLUMNS for f in table.schema)
        # text may be garbled, in names and in values
        if str(mark and mark["digest"]).startswith(COLUMNS):
            content_digest = _digest_of_columns(table)
        else:
            rows = table.to_pylist()
            content_digest = _digest(rows)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise Damaged(f"{where} cannot be read as Parquet") from error
    if others:
        raise Damaged(f"{where} has other columns")
    check_stamp(mark, name, content_digest, where)
    return table.replace_schema_metadata(None), rows


def read_rows(place: Place, name: str) -> list[Row]:
    """The rows of a file; none if it is not there.

    Raises:
        Damaged: It is not what was written there.
    """
    try:
        return _todays(*_checked(Store.of(place), name))
    except FileNotFoundError:
        return []


def _todays(table: pa.Table, rows: list[Row]) -> list[Row]:
    """What `_checked` gave as rows with the columns of `SCHEMA`."""
    rows = rows or table.to_pylist()
    names = set(table.column_names)
    if names - _NAMES:
        rows = [renewed(row) for row in rows]
    if missing := dict.fromkeys(_NAMES - names):  # which had no values, or an earlier version did not write
        rows = [{**missing, **row} for row in rows]
    return rows
