"""Bring your own tar shards, in the layout of webdataset.

`train-000000.tar`, `train-000001.tar`, ... hold the files of a sample one after the other, under one name:
`0001.jpg` (or another picture, or `0001.npy`) and `0001.cls`, which has its label as text.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lbdist.data import shards
from lbdist.data.brought import Part, stacked
from lbdist.data.files import Files
from lbdist.data.labels import Labels
from lbdist.data.pictures import CHUNK, ENDINGS, Encoded, Item
from lbdist.data.seen import Pictured, Shaped
from lbdist.data.streamed import Chunked
from lbdist.errors import InputError, one_line

_TARS = (".tar", ".tar.gz", ".tgz")
_ARRAY = "npy"


@dataclass
class Tar(Pictured, Shaped):
    """Samples in tar shards, each a picture, uint8 (C, H, W), or an array.

    Attributes:
        inputs: Ending of the inputs' files; None for that of a picture, or `npy`.
        label: Ending of the labels' files, which hold text.
    """

    inputs: str | None = None
    label: str = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("inputs", "label"):
            self.check_name(field)

    def parts(self) -> list[Part]:
        """Labels of each split, and where its inputs are."""
        found = shards.splits(self.files, _TARS)
        taken = self.chosen(found, "{0}-000000.tar, {0}-000001.tar, ...")
        return [self._part(tuple(shards.whole(self.files, names, _TARS))) for _, names in taken]

    def _part(self, names: Sequence[str]) -> Part:
        values: list[str] = []
        found, ending = [], self.inputs
        for name in names:
            before = len(values)
            for key, files in _samples(self.files, name, (self.label,)):
                where = f"{self.files.say(name)}: {key}"
                if ending is None:
                    own = [end for end in files if f".{end}" in ENDINGS or end == _ARRAY]
                    if len(own) != 1:
                        raise InputError(
                            f"data.inputs: {where} has {', '.join(files)}; must have one picture or "
                            f"{_ARRAY}: set data.inputs to one of them"
                        )
                    ending = own[0]
                for field, end in (("inputs", ending), ("label", self.label)):
                    if end not in files:
                        raise InputError(
                            f"data.{field}={end}: {where} has {', '.join(files)}; set data.{field} to one "
                            "of them"
                        )
                values.append((files[self.label] or b"").decode(errors="replace").strip())
            found.append((self.files.say(name), len(values) - before))
        place = _Shards(self.files, tuple(names), ending or _ARRAY)
        labels = Labels(_numbers(values), found)
        if place.ending == _ARRAY:
            return Part(labels, self.streamed(place, next(place.chunks(), np.zeros((0, 1), np.float32))))
        return Part(labels, self.pictures(place))


def _numbers(values: Sequence[str]) -> np.ndarray:
    """Labels as integers or numbers, where all of them are."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(values).astype(kind) if values else np.zeros(0, np.int64)
        except (ValueError, OverflowError):
            continue
    return np.array(values)


def _samples(files: Files, name: str, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """The samples of a tar, in order: what they are called, and their files by ending.

    Args:
        files: Where the tar lies.
        name: The tar.
        wanted: Endings of the files whose content is read.
    """
    key: str | None = None
    own: dict[str, bytes | None] = {}
    try:
        with files.open(name) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                folder, mark, last = member.name.rpartition("/")
                if not member.isfile() or last.startswith("."):
                    continue
                stem, _, ending = last.partition(".")
                if f"{folder}{mark}{stem}" != key:
                    if key is not None:
                        yield key, own
                    key, own = f"{folder}{mark}{stem}", {}
                content = tar.extractfile(member) if ending.lower() in wanted else None
                own[ending.lower()] = None if content is None else content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise InputError(f"data.root: {files.say(name)} cannot be read as tar: {one_line(error)}") from error
    if key is not None:
        yield key, own


@dataclass(frozen=True)
class _Shards(Encoded, Chunked):
    """The inputs of some tars, pictures or arrays."""

    files: Files
    names: tuple[str, ...]
    ending: str

    def __str__(self) -> str:
        return f"data.root={self.files.root!r}"

    def name(self) -> str:
        """The tars, as they are now."""
        stamps = [self.files.stamp(name) for name in self.names]
        return hashlib.sha256(repr((stamps, self.ending)).encode()).hexdigest()

    def _contents(self) -> Iterator[tuple[str, bytes]]:
        for name in self.names:
            for key, own in _samples(self.files, name, (self.ending,)):
                yield f"{self.files.say(name)}: {key}.{self.ending}", own.get(self.ending) or b""

    def chosen(self, kept: np.ndarray) -> Iterator[list[Item]]:
        """Encoded pictures, as they come by."""
        wanted = set(kept.tolist())
        found: list[Item] = []
        for at, item in enumerate(self._contents()):
            if at in wanted:
                found.append(item)
                if len(found) == CHUNK:
                    yield found
                    found = []
        if found:
            yield found

    def chunks(self) -> Iterator[np.ndarray]:
        """Arrays, some at a time."""
        rows: list[np.ndarray] = []
        where = ""
        for where, content in self._contents():
            try:
                rows.append(np.load(io.BytesIO(content), allow_pickle=False))
            except (ValueError, EOFError, OSError) as error:
                raise InputError(f"data.root: {where} cannot be read: {one_line(error)}") from error
            if rows[-1].shape != rows[0].shape:
                stacked(rows, where)
            if len(rows) == CHUNK:
                yield np.stack(rows)
                rows = rows[:0]
        if rows:
            yield stacked(rows, where)
