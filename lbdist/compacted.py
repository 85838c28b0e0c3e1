"""The files of finished cells and measurements, read at once, or from one file that keeps them together.

`compacted` in a storage folder holds what was read, and found sound, of other files: rows, and what
`cell.json` says. Each comes with the size and the time that its file had then: of one that has changed since,
or is gone, nothing is taken from there. A study writes it anew as it ends; what it does not hold is read
where it lies.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from lbdist.rows import SCHEMA, Row, of_parquet, parquet, read_rows
from lbdist.storage import Damaged, Store, Version, read_json, stamped, unstamped

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
        self._there: Mapping[str, Version] = {}  # as of before any file was read
        self._ahead: dict[str, Content] = {}
        self._out: set[str] = set()  # what was given out, or is no longer so
        wrong = (FileNotFoundError, Damaged, pa.ArrowException, LookupError, TypeError, ValueError)
        with contextlib.suppress(*wrong):  # the files themselves are there
            self._take(store.read(NAME))

    def __reduce__(self) -> tuple[type[Files], tuple[Store]]:
        return Files, (self.store,)  # Tune pickles who holds one

    def _take(self, content: bytes) -> None:
        """Takes over what is kept of files that are as they were."""
        kept = of_parquet(unstamped(content, NAME, f"{self.store}/{NAME}"))
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
        if name in self._out:
            return None
        self._out.add(name)
        if name in self._ahead:
            return self._ahead[name]
        held = self._kept.get(name)
        return self._table.slice(*held).to_pylist() if isinstance(held, list) else held

    def drop(self, *names: str) -> None:
        """Forgets what is known of files that are written anew."""
        self._out.update(names)

    def read_ahead(self, names: Iterable[str]) -> None:
        """Reads files at once that will be asked for; what is wrong with one shows when it is asked for."""
        self._there, names = self._there or self.store.versions(), list(names)
        new = [name for name in names if name in self._there and name not in self._kept]
        self._ahead = dict(_sound(self.store, new))
        kept = {name: self._kept[name] for name in names if isinstance(self._kept.get(name), list)}
        if kept:  # a slice of the table for each would take twice as long
            at = np.concatenate([np.arange(start, start + count) for start, count in kept.values()])
            rows = iter(self._table.take(pa.array(at)).to_pylist())
            self._ahead |= {name: list(itertools.islice(rows, count)) for name, (_, count) in kept.items()}

    def compact(self, names: Collection[str]) -> None:
        """Writes what is kept together, and these files with it, unless there is nothing new.

        Args:
            names: Of files that are complete; those that are not there, or damaged, are passed over.
        """
        there = self.store.versions()
        same = {name for name, version in there.items() if self._there.get(name) == version}
        kept = {name: held for name, held in self._held() if name in same}
        new = [name for name in names if name in there and name not in kept]
        if not new:
            return
        known = {name: self._ahead[name] for name in new if name in same and name in self._ahead}
        known |= _sound(self.store, [name for name in new if name not in known])
        entries: list[tuple[str, Version, Any]] = []
        tables, start = [SCHEMA.empty_table()], 0
        for name, held in [*kept.items(), *known.items()]:
            if isinstance(held, list):
                held = pa.Table.from_pylist(held, schema=SCHEMA)
            if isinstance(held, pa.Table):
                tables.append(held)
                start, held = start + len(held), (start, len(held))
            entries.append((name, there[name], held))
        table = pa.concat_tables(tables).replace_schema_metadata({"lbdist": json.dumps(entries)})
        self.store.write(NAME, stamped(NAME, parquet(table)), durable=False)

    def _held(self) -> Iterator[tuple[str, Any]]:
        """What is kept of each file, rows as a table."""
        table = self._table.replace_schema_metadata(None)
        for name, held in self._kept.items():
            yield name, held if isinstance(held, dict) else table.slice(*held)


def _sound(store: Store, names: Sequence[str]) -> Iterator[tuple[str, Content]]:
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
