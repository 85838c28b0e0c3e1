"""Frames of speech with a class each, as `python -m lbdist.data.kaldi` takes them from a Kaldi experiment.

A folder holds shards of Parquet with a row per utterance, and `manifest.json`, which says what is in them. A
frame goes between its neighbours as it is read, so that the folder is a ninth of what a network sees.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lbdist.data.base import Dataset, DataSource, Split, is_integer, subset
from lbdist.data.mapped import Mapped, Recipe, check_memory, limit
from lbdist.data.speech import CONTEXT, spliced
from lbdist.errors import InputError, one_line, require
from lbdist.storage import Damaged, Store, read_json

SCHEMA = pa.schema(
    [
        ("utterance", pa.string()),
        ("features", pa.list_(pa.float32())),  # frame after frame, `dimension` numbers each
        ("labels", pa.list_(pa.int32())),  # one per frame
    ]
)
MANIFEST = "manifest.json"


def digest_of(table: pa.Table) -> str:
    """The SHA-256 of what a shard holds, in hex digits, however it is encoded."""
    found = hashlib.sha256(json.dumps(table.column("utterance").to_pylist()).encode())
    for name in ("features", "labels"):
        column = table.column(name).combine_chunks()
        found.update(column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64).data)
        found.update(np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False)).data)
    return found.hexdigest()


def read_shard(folder: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    """A shard's table.

    Raises:
        Damaged: It cannot be read, or lacks a column.
        FileNotFoundError: It is not there.
    """
    content, where = folder.read(name), f"{folder}/{name}"
    try:
        table = pq.read_table(pa.BufferReader(content), columns=columns)
        table.validate(full=True)  # or garbled text would be found by whoever looks at it
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"{where} cannot be read as Parquet ({one_line(error)})") from error
    if not set(columns or SCHEMA.names) <= set(table.column_names):
        raise Damaged(f"{where} must have the columns {', '.join(columns or SCHEMA.names)}")
    return table


@dataclass
class Frames(DataSource):
    """Frames between their neighbours, float32 of shape (N, (2 context + 1) d).

    Attributes:
        root: The folder, or its URI.
        context: Frames on either side; an utterance's first and last are repeated beyond its ends.
        memory_gib: Splits of more GiB lie in a file of the cache instead of in memory; None for a tenth of
            the machine's memory.
    """

    root: str | None = None
    context: int = CONTEXT
    memory_gib: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "the folder that python -m lbdist.data.kaldi made: set data.root=DIR"
        require(isinstance(self.root, str), "data.root", self.root, remedy)
        require(is_integer(self.context, 0), "data.context", self.context, "a whole number of at least 0")
        check_memory(self.memory_gib)

    def read(self) -> Dataset:
        """Reads all labels, then the frames that are asked for.

        Raises:
            InputError: Naming the file that is missing or damaged.
        """
        folder = Store(str(self.root))
        try:
            content = read_json(folder, MANIFEST)
            train, test = (self._split(folder, part, content) for part in ("train", "test"))
        except FileNotFoundError as error:
            lost = Path(error.filename or MANIFEST).name
            raise InputError(
                f"data.root={self.root!r}: {lost} is missing; python -m lbdist.data.kaldi makes the folder, "
                "and the same command again goes on where it ended"
            ) from error
        except Damaged as error:
            raise InputError(f"data.root: {error}") from error
        return Dataset(train, test, content["classes"])

    def _split(self, folder: Store, part: str, content: dict[str, Any]) -> Split:
        shards = content["splits"][part]["shards"]
        tables = (read_shard(folder, shard["name"], ["labels"]) for shard in shards)
        labels = np.concatenate(
            [table.column("labels").combine_chunks().flatten().to_numpy() for table in tables]
        )
        kept = subset(len(labels), self.count(f"{part}_samples", len(labels)))
        source = copy.copy(self)
        source.root = folder.root  # absolute, wherever it is sent
        recipe = _Spliced(source, tuple((s["name"], s["digest"]) for s in shards), kept, content["dimension"])
        return Mapped.of(recipe, labels[kept].astype(np.int64), limit(self.memory_gib))


@dataclass(frozen=True)
class _Spliced(Recipe):
    """Frames of one split, each between its neighbours.

    Attributes:
        source: The folder, and how it is read.
        shards: Names and digests.
        kept: Which frames, as sorted positions.
        dimension: Numbers in a frame.
    """

    source: Frames
    shards: tuple[tuple[str, str], ...]
    kept: np.ndarray
    dimension: int

    def __str__(self) -> str:
        return f"data.root={self.source.root!r}"

    def name(self) -> str:
        """What the shards hold, and what is taken of it."""
        found = hashlib.sha256(repr((self.shards, self.source.context)).encode())
        found.update(self.kept.data)
        return found.hexdigest()

    def shape(self) -> tuple[int, ...]:
        """The samples' shape, (N, (2 context + 1) d)."""
        return len(self.kept), (2 * self.source.context + 1) * self.dimension

    def dtype(self) -> np.dtype:
        """The samples' type."""
        return np.dtype(np.float32)

    def fill(self, array: np.ndarray) -> None:
        """Splices utterance by utterance, a shard in memory at a time.

        Raises:
            Damaged: A shard is not what was written there.
        """
        folder, begin, done = Store(str(self.source.root)), 0, 0
        for name, known in self.shards:
            table = read_shard(folder, name)
            if digest_of(table) != known:
                raise Damaged(f"{folder}/{name} is not as it was written")
            for features in table.column("features"):
                frames = features.values.to_numpy().reshape(-1, self.dimension)
                end = begin + len(frames)
                inside = self.kept[np.searchsorted(self.kept, begin) : np.searchsorted(self.kept, end)]
                if len(inside):
                    chosen = spliced(frames, self.source.context)[inside - begin]
                    array[done : done + len(inside)] = chosen
                begin, done = end, done + len(inside)
