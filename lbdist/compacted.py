"""The files of finished cells and measurements, read at once, or from one file that keeps them together.

`compacted` in a storage folder holds what was read, and found sound, of other files: rows, and what
`cell.json` says. Each comes with the size and the time that its file had then: of one that has changed since,
or is gone, nothing is taken from there. A study writes it anew as it ends; what it does not hold is read
where it lies.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from lbdist.rows import SCHEMA, Row, of_parquet, parquet, read_rows
from lbdist.storage import Damaged, Store, Version, check_stamp, digest, read_json, stamp

NAME = "compacted"
AT_ONCE = 16
"""Files that are read at once: an object store takes long to answer, and answers many as soon as one."""

Content = list[Row] | dict[str, Any]
"""Of a file: its rows, or what a JSON file says."""


class Files:
    """What the files of a storage folder hold: each is given out once, and read where it lies from then on.

    Args:
        store: The storage folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._table = SCHEMA.empty_table()
        self._kept: dict[str, Any] = {}  # what JSON says, or a slice of the table
        self._there: Mapping[str, Version] = {}
        self._ahead: dict[str, Content] = {}
        self._read: dict[str, tuple[Version, Content]] = {}
        wrong = (FileNotFoundError, Damaged, pa.ArrowException, LookupError, TypeError, ValueError)
        with contextlib.suppress(*wrong):  # the files themselves are there
            self._take(store.read(NAME))

    def __reduce__(self) -> tuple[type[Files], tuple[Store]]:
        return Files, (self.store,)  # Tune pickles who holds one

    def _take(self, content: bytes) -> None:
        """Takes over what is kept of files that are as they were."""
        line, _, table = content.partition(b"\n")
        check_stamp(json.loads(line), NAME, digest(table), f"{self.store}/{NAME}")
        kept = of_parquet(table)
        if kept.column_names != SCHEMA.names:
            return  # an earlier version's
        self._table, self._there = kept, self.store.versions()
        for name, version, held in json.loads(kept.schema.metadata[b"lbdist"]):
            if self._there.get(name) == tuple(version) and None not in version:
                self._kept[name] = held

    def rows(self, name: str) -> list[Row]:
        """The rows of a file; none if it is not there.

        Raises:
            Damaged: It is not what was written there.
        """
        return self._given(name) or read_rows(self.store, name)

    def json(self, name: str) -> dict[str, Any]:
        """What a JSON file says.

        Raises:
            FileNotFoundError: There is no such file.
            Damaged: It is not what was written there.
        """
        return self._given(name) or read_json(self.store, name)

    def _given(self, name: str) -> Any:
        if name in self._ahead:
            return self._ahead.pop(name)
        if name not in self._kept:
            return None
        held = self._kept.pop(name)
        return held if isinstance(held, dict) else self._table.slice(*held).to_pylist()

    def drop(self, *names: str) -> None:
        """Forgets what is known of files that are written anew."""
        for name in names:
            self._ahead.pop(name, None)
            self._kept.pop(name, None)

    def read_ahead(self, names: Iterable[str]) -> None:
        """Reads files at once that will be asked for; what is wrong with one shows when it is asked for."""
        there = self._there or self.store.versions()
        new = [name for name in names if name in there and name not in self._kept]
        self._ahead = dict(_read(self.store, new))
        # as of before they were read: one that is written meanwhile will differ
        self._read = {name: (there[name], content) for name, content in self._ahead.items()}

    def compact(self, names: Collection[str]) -> None:
        """Writes what is kept together, and these files with it, unless there is nothing new.

        Args:
            names: Of files that are complete; those that are not there, or damaged, are passed over.
        """
        there, fresh = self.store.versions(), Files(self.store)
        fresh._kept = {name: held for name, held in fresh._kept.items() if name in there}
        new = [name for name in names if name in there and name not in fresh._kept]
        if not new:
            return
        known = {n: self._read[n][1] for n in new if self._read.get(n, (None,))[0] == there[n]}
        known |= _read(self.store, [name for name in new if name not in known])
        entries: list[tuple[str, Version, Any]] = []
        tables, start = [SCHEMA.empty_table()], 0
        for name, held in [*fresh._held(), *known.items()]:
            if isinstance(held, list):
                held = pa.Table.from_pylist(held, schema=SCHEMA)
            if isinstance(held, pa.Table):
                tables.append(held)
                start, held = start + len(held), (start, len(held))
            entries.append((name, there[name], held))
        table = pa.concat_tables(tables).replace_schema_metadata({"lbdist": json.dumps(entries)})
        content = parquet(table)
        line = json.dumps(stamp(NAME, digest(content))).encode()
        self.store.write(NAME, b"\n".join([line, content]), durable=False)

    def _held(self) -> Iterator[tuple[str, Any]]:
        """What is kept of each file, rows as a table."""
        table = self._table.replace_schema_metadata(None)
        for name, held in self._kept.items():
            yield name, held if isinstance(held, dict) else table.slice(*held)


def _read(store: Store, names: Sequence[str]) -> Iterator[tuple[str, Content]]:
    """The files that are there and sound, each with what it holds."""

    def some(part: Sequence[str]) -> list[tuple[str, Content]]:
        found = []
        for name in part:
            with contextlib.suppress(OSError, Damaged):
                found.append(
                    (name, read_json(store, name) if name.endswith(".json") else read_rows(store, name))
                )
        return found

    parts = [names[start::AT_ONCE] for start in range(min(AT_ONCE, len(names)))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for found in pool.map(some, parts):
            yield from ((name, content) for name, content in found if content)
