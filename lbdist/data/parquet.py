"""Bring your own images: a folder in the Hugging Face Parquet image layout.

`train.parquet` and `test.parquet` (else `validation`, `valid`), or their shards
`train-00000-of-00003.parquet`, lie in the folder or its `data/`; a column of structs {bytes, path} holds PNG,
JPEG or WebP, another the class as an integer.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from lbdist.data.base import Dataset, DataSource, Split, is_integer, subset
from lbdist.data.mapped import Mapped, Recipe, check_memory, limit
from lbdist.errors import InputError, one_line, require

_BATCH = 2048  # rows held encoded at a time
_CHUNK = 64  # images a thread decodes at a time
_FORMATS = ("PNG", "JPEG", "WEBP")
_SPLITS = {"train": ("train",), "test": ("test", "validation", "valid")}


_EQUAL = 0  # `channels` of grey images that are kept as colour


class _Coloured(Exception):
    """An image has colours, where those before it had none."""


@dataclass(frozen=True)
class _Shard:
    """What a name says: `train.parquet`, `train-00000-of-00003.parquet` (and a hash), `train-7.parquet`."""

    file: Path
    split: str
    number: int | None
    total: int | None

    @classmethod
    def of(cls, file: Path) -> _Shard:
        form = r"(.*?)(?:[-_.]?(\d+)(?:-of-(\d+)(?:-[0-9a-f]{6,})?)?)?"
        match = re.fullmatch(form, file.stem)
        assert match is not None
        number, total = (None if found is None else int(found) for found in match.group(2, 3))
        return cls(file, match[1], number, total)


def _whole(shards: list[_Shard]) -> list[Path]:
    """The files of one split by their numbers, where all are there and none is left from another time."""
    if len(shards) == 1 and shards[0].total is None:
        return [shards[0].file]
    first = max(shards, key=lambda shard: (shard.total is not None, shard.total or 0, shard.file.name))
    kept: dict[int, Path] = {}
    for shard in shards:
        if shard.number is None or shard.total != first.total or shard.number in kept:
            other = kept.get(shard.number or 0, first.file)
            raise InputError(
                f"data.root: {shard.file} and {other} are not shards of one set; remove the one that is stale"
            )
        kept[shard.number] = shard.file
    begin = 0 if first.total is not None else min(1, *kept)
    numbers = range(begin, begin + (first.total or max(kept) - begin + 1))
    lost = [number for number in numbers if number not in kept]
    if lost:
        digits = re.sub(r"\d+", lambda found: f"{lost[0]:0{len(found[0])}}", first.file.name, count=1)
        raise InputError(
            f"data.root: {first.file.parent / digits} is missing: {len(kept)} of {len(numbers)} are there"
        )
    if first.total is not None and max(kept) >= first.total:
        raise InputError(f"data.root: {kept[max(kept)]} has a number beyond its own count")
    return [kept[number] for number in sorted(kept)]


@dataclass
class Parquet(DataSource):
    """Images, uint8 of shape (N, C, H, W).

    Attributes:
        root: The folder.
        splits: Which split is `train` and which is `test`, where they are not called so; the test split is
            else `validation` or `valid`.
        classes: Number of classes; None for those that the files' metadata name (a ClassLabel of the
            `datasets` library), else the largest training label plus 1.
        label: Column of the classes; where it is left at `label` and absent, `fine_label` is taken.
        image: Column of the images; None for `image` or `img`.
        channels: 1 for grey, 3 for colour; None for as the files have it, where a data set of which all
            channels of all images are equal is grey: some formats have no other way to keep it.
        memory_gib: Splits of more GiB, decoded, lie in a file of the cache instead of in memory; None for a
            tenth of the machine's memory.
    """

    root: str | None = None
    splits: dict[str, str] | None = None
    classes: int | None = None
    label: str = "label"
    image: str | None = None
    channels: int | None = None
    memory_gib: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "the folder that holds train.parquet and test.parquet, or their shards: set data.root=DIR"
        require(isinstance(self.root, str), "data.root", self.root, remedy)
        splits = self.splits or {}
        known = set(splits) <= {"train", "test"} and all(isinstance(v, str) for v in splits.values())
        require(known, "data.splits", self.splits, "a mapping from train and test to names of splits")
        allowed = self.classes is None or is_integer(self.classes, 2)
        require(allowed, "data.classes", self.classes, "an integer of at least 2, or null")
        require(isinstance(self.label, str), "data.label", self.label, "a column's name")
        allowed = self.image is None or isinstance(self.image, str)
        require(allowed, "data.image", self.image, "a column's name, or null")
        require(self.channels in (None, 1, 3), "data.channels", self.channels, "1, 3 or null")
        check_memory(self.memory_gib)

    def read(self) -> Dataset:
        """Reads all labels, then all images.

        Raises:
            InputError: Naming the file that is missing, damaged, or holds something wrong.
        """
        train, test = self._files("train"), self._files("test")
        found = {file: self._labels(file) for file in train + test}
        labels = {file: values for file, (values, _) in found.items()}
        named = {file: count for file, (_, count) in found.items() if count}
        if len(set(named.values())) > 1:
            one, other = min(named, key=named.__getitem__), max(named, key=named.__getitem__)
            raise InputError(
                f"data.root: {one} names {named[one]} classes and {other} {named[other]}; set data.classes"
            )
        largest = 1 + int(max(labels[file].max(initial=1) for file in train))
        classes = self.classes or next(iter(named.values()), largest)
        for file, values in labels.items():
            wrong = np.flatnonzero((values < 0) | (values >= classes))
            if len(wrong):
                raise InputError(
                    f"data.classes={self.classes!r}: {file}: label {values[wrong[0]]} in row {wrong[0]}; "
                    f"allowed are 0 to {classes - 1}"
                    + ("; data.splits={test: NAME} takes another split" if values.max() < 0 else "")
                )
        source, parts = self, (("train", train), ("test", test))
        if self.channels is None and self._begins_grey(train):
            source = copy.copy(self)
            source.channels = _EQUAL
        try:
            read = [source._split(part, files, labels) for part, files in parts]
        except _Coloured:  # further on
            source = self
            read = [source._split(part, files, labels) for part, files in parts]
        if source is not self:
            self.notes.append("data: images are grey, kept as colour: their equal channels are taken as one")
        return Dataset(read[0], read[1], classes)

    def _begins_grey(self, files: list[Path]) -> bool:
        """Whether the first images are kept as colour although their channels are equal."""
        file, encoded = next(((file, rows) for file in files for rows in self._encoded(file)), (files[0], []))
        images = (self._decode(row, data, file) for row, data in enumerate(encoded[:_CHUNK]))
        return all(len(image) == 3 and not np.ptp(image, axis=0).any() for image in images)

    def _files(self, part: str) -> list[Path]:
        """The shards of a part, `train` or `test`, in the order of their numbers."""
        root = Path(str(self.root)).expanduser()
        require(root.is_dir(), "data.root", self.root, "a folder that is there")
        names = (self.splits[part],) if self.splits and part in self.splits else _SPLITS[part]
        found: dict[str, list[_Shard]] = {}
        for file in sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")]):
            shard = _Shard.of(file)
            found.setdefault(shard.split, []).append(shard)
        for name in names:
            if name in found:
                return _whole(found[name])
        wanted = " or ".join(f"{name}.parquet or {name}-*-of-*.parquet" for name in names)
        there = f"; there are the splits {', '.join(sorted(found))}: set data.splits" if found else ""
        raise InputError(
            f"data.root={self.root!r}: must hold {wanted}, in the folder itself or in data/{there}"
        )

    def _labels(self, file: Path) -> tuple[np.ndarray, int]:
        """A file's labels, and how many classes its schema names for them; 0 where it does not."""
        names = ("label", "fine_label") if self.label == "label" else (self.label,)
        with _opened(file) as opened:
            column = _column(file, opened.schema_arrow, "label", names)
            kind = opened.schema_arrow.field(column).type
            if not pa.types.is_integer(kind):
                raise InputError(f"data.label={column!r}: {file}: must be integers, not {kind}")
            values = opened.read([column]).column(column)
        if values.null_count:
            raise InputError(f"data.label={column!r}: {file}: {values.null_count} rows have no label")
        return values.to_numpy().astype(np.int64), _named_classes(opened.schema_arrow, column)

    def _split(self, part: str, files: list[Path], labels: dict[Path, np.ndarray]) -> Split:
        joined = np.concatenate([labels[file] for file in files])
        kept = subset(len(joined), self.count(f"{part}_samples", len(joined)))  # only these are decoded
        file, encoded = next(self._chosen(files, kept), (None, []))
        shape = self._decode(*encoded[0], file).shape if file is not None else (1, 1, 1)
        source = copy.copy(self)
        source.root = str(Path(str(self.root)).expanduser().absolute())  # wherever it is sent
        images = _Images(source, part, kept, shape)
        return Mapped.of(images, joined[kept], limit(self.memory_gib))

    def _chosen(
        self, files: list[Path], kept: np.ndarray
    ) -> Iterator[tuple[Path, list[tuple[int, bytes | None]]]]:
        """The rows to decode, in order: a file, and numbers and bytes of some of its rows."""
        start = 0
        for file in files:
            row = 0
            for batch in self._encoded(file):
                inside = kept[np.searchsorted(kept, start) : np.searchsorted(kept, start + len(batch))]
                if len(inside):
                    yield file, [(row + at, batch[at]) for at in (inside - start).tolist()]
                start, row = start + len(batch), row + len(batch)

    def _encoded(self, file: Path) -> Iterator[list[bytes | None]]:
        """The images' bytes, a batch at a time."""
        names = ("image", "img") if self.image is None else (self.image,)
        with _opened(file) as opened:
            column = _column(file, opened.schema_arrow, "image", names)
            kind = opened.schema_arrow.field(column).type
            if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
                raise InputError(
                    f"data.image={column!r}: {file}: must be a struct of bytes and path, not {kind}"
                )
            for batch in opened.iter_batches(_BATCH, columns=[f"{column}.bytes"]):
                yield batch.column(0).field("bytes").to_pylist()

    def _fill(self, images: np.ndarray, encoded: list[tuple[int, bytes | None]], file: Path) -> None:
        """Decodes pairs of a row's number and its bytes into the first of `images`."""
        for index, (row, data) in enumerate(encoded):
            image = self._decode(row, data, file)
            if image.shape != images.shape[1:]:
                raise InputError(
                    f"data.root: {file}: the image in row {row} has shape {image.shape}, but the first one "
                    f"has {images.shape[1:]}; all must have one size (see data.channels for the first number)"
                )
            images[index] = image

    def _decode(self, row: int, data: bytes | None, file: Path) -> np.ndarray:
        """One image as uint8 of shape (C, H, W)."""
        if data is None:
            raise InputError(f"data.root: {file}: row {row} holds no image bytes")
        try:
            with Image.open(BytesIO(data), formats=_FORMATS) as opened:
                image = self._as_stored(opened)
                pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)
        except _Coloured:
            raise
        except InputError as error:
            raise InputError(f"data.root: {file}: the image in row {row} {error}") from error
        except Exception as error:  # Pillow's decoders raise many kinds
            raise InputError(
                f"data.root: {file}: the image in row {row} cannot be decoded as PNG, JPEG or WebP"
            ) from error
        return pixels.transpose(2, 0, 1)

    def _as_stored(self, opened: Image.Image) -> Image.Image:
        """The image in the mode that is wanted, upright; what that would lose without a word is refused."""
        frames = getattr(opened, "n_frames", 1)
        if frames > 1:
            raise InputError(f"has {frames} frames; must be one image")
        image = ImageOps.exif_transpose(opened) if opened.info.get("exif") else opened
        if image.mode.startswith("I;16"):  # the high byte, as Pillow takes of colours of 16 bits
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise InputError(
                f"has mode {image.mode}, numbers of 32 bits; must be of 8 or 16 bits per channel"
            )
        if image.has_transparency_data:
            if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                raise InputError("is transparent in places, which has no colour; must be opaque")
            image = image.convert("RGB" if image.mode != "LA" else "L")
        if self.channels == _EQUAL:
            colour = image.convert("RGB")
            if np.ptp(np.asarray(colour), axis=2).any():
                raise _Coloured
            return colour.getchannel(0)
        mode = {1: "L", 3: "RGB"}.get(self.channels or 0, "L" if image.mode == "L" else "RGB")
        return image if image.mode == mode else image.convert(mode)


@dataclass(frozen=True)
class _Images(Recipe):
    """The decoded images of one part of a folder.

    Attributes:
        source: The folder, and how it is read.
        part: `train` or `test`.
        kept: Which of its samples, as sorted positions.
        size: Of an image, (C, H, W).
    """

    source: Parquet
    part: str
    kept: np.ndarray
    size: tuple[int, ...]

    def __str__(self) -> str:
        return f"data.root={self.source.root!r}"

    def name(self) -> str:
        """The files, as they are now, and what is read of them."""
        stats = [(file.name, file.stat()) for file in self.source._files(self.part)]
        # mtime can be set to what it was, ctime cannot
        files = [(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]
        found = hashlib.sha256(repr((files, self.source.image, self.size)).encode())
        found.update(self.kept.data)
        return found.hexdigest()

    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return len(self.kept), *self.size

    def fill(self, array: np.ndarray) -> None:
        """Decodes on all cores.

        Raises:
            InputError: Naming the image that is not as the first one, or cannot be decoded.
        """
        done, files = 0, self.source._files(self.part)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for file, encoded in self.source._chosen(files, self.kept):
                jobs = [
                    pool.submit(self.source._fill, array[done + at :], encoded[at : at + _CHUNK], file)
                    for at in range(0, len(encoded), _CHUNK)
                ]
                for job in jobs:
                    job.result()
                done += len(encoded)


def _named_classes(schema: pa.Schema, column: str) -> int:
    """How many classes the `datasets` library's metadata name for a column; 0 where they do not."""
    try:
        stored = (schema.metadata or {}).get(b"huggingface", b"{}")
        feature = json.loads(stored)["info"]["features"][column]
        names = feature.get("names") or range(feature["num_classes"])
        return len(names) if feature["_type"] == "ClassLabel" else 0
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def _column(file: Path, schema: pa.Schema, field: str, names: tuple[str, ...]) -> str:
    """The first of these columns that is there, once."""
    for name in names:
        if schema.names.count(name) > 1:
            raise InputError(
                f"data.{field}: {file}: must have one column {name}, not {schema.names.count(name)}"
            )
        if name in schema.names:
            return name
    raise InputError(
        f"data.{field}: {file}: there is no column {' or '.join(names)}; set data.{field} to one of "
        f"{', '.join(schema.names)}"
    )


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"data.root: {file} cannot be read as Parquet: {one_line(error)}") from error
