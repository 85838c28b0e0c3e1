"""Bring your own: a folder in the Parquet layout of Hugging Face, a column of which holds a sample's input.

`train.parquet` and `test.parquet` (else `validation`, `valid`, `val`), or their shards
`train-00000-of-00003.parquet`, lie in the folder, its `data/`, or a folder of the split's name. Inputs are
pictures (structs {bytes, path} of PNG, JPEG, WebP, ...), or lists of numbers of one length, nested or not;
labels are integers, text, numbers, or lists of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lbdist.data import shards
from lbdist.data.brought import Part, column
from lbdist.data.files import Files
from lbdist.data.labels import Labels
from lbdist.data.pictures import Encoded, Item
from lbdist.data.seen import Pictured, Shaped
from lbdist.data.streamed import Chunked
from lbdist.errors import InputError, one_line

ENDINGS = (".parquet",)
_BATCH = 2048  # rows held encoded at a time
_IMAGES = ("image", "img")
_INPUTS = (*_IMAGES, "input_ids", "inputs", "features", "x")
_LABELS = ("label", "labels", "fine_label", "target", "y")


@dataclass
class Parquet(Pictured, Shaped):
    """Samples in the rows of Parquet: uint8 (N, C, H, W), float32 or int64 (N, ...).

    Attributes:
        inputs: Column of the inputs; None for one of the usual names, such as `image` and `input_ids`.
        label: Column of the labels; None for one of the usual names, `label` first.
    """

    inputs: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("inputs", "label"):
            self.check_name(field)

    def parts(self) -> list[Part]:
        """Labels of each split, and where its inputs are."""
        found = shards.splits(self.files, ENDINGS)
        taken = self.chosen(found, "{0}.parquet or {0}-*-of-*.parquet")
        return [self._part(shards.whole(self.files, names, ENDINGS)) for _, names in taken]

    def _part(self, names: Sequence[str]) -> Part:
        labels = self._labels(names)
        with opened(self.files, names[0]) as first:
            schema, where = first.schema_arrow, self.files.say(names[0])
            name = column("inputs", self.inputs, self._usual(schema), schema.names, where)
            kind = schema.field(name).type
        place = _Column(self.files, tuple(names), name)
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return Part(labels, self.pictures(_Images(self.files, tuple(names), name)))
        if not is_list(kind) and not isinstance(kind, pa.BaseExtensionType):
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            way = "text is to be cut into tokens first" if text else "columns of numbers are data=table"
            raise InputError(
                f"data.inputs={name!r}: {where}: must be a struct of bytes and path, or lists of numbers, "
                f"not {kind}: {way}"
            )
        rows = next((rows for rows in place.chunks() if len(rows)), np.zeros((0, 1), np.float32))
        return Part(labels, self.streamed(place, rows))

    def _usual(self, schema: pa.Schema) -> list[str]:
        """Names that inputs mostly have, and the one column beside the labels that could be them."""
        label = self.label or next((name for name in _LABELS if name in schema.names), None)
        others = [
            f.name for f in schema if f.name != label and (is_list(f.type) or pa.types.is_struct(f.type))
        ]
        return [*_INPUTS, *(others if len(others) == 1 else [])]

    def _labels(self, names: Sequence[str]) -> Labels:
        """The labels of files, and the classes that their schemas name."""
        values, found, named = [], [], {}
        for file in names:
            where = self.files.say(file)
            with opened(self.files, file) as one:
                schema = one.schema_arrow
                name = column("label", self.label, _LABELS, schema.names, where)
                read = one.read([name]).column(name)
            if read.null_count:
                raise InputError(f"data.label={name!r}: {where}: {read.null_count} rows have no label")
            classes = named_classes(schema, name)
            if classes:
                named[where] = classes
            values.append(_as_labels(read, classes, where, name))
            found.append((where, len(read)))
        if len(set(named.values())) > 1:
            one, other = list({classes: where for where, classes in named.items()}.items())[:2]
            raise InputError(
                f"data.label: {one[1]} names the classes {', '.join(one[0][:4])}, ... and {other[1]} "
                f"{', '.join(other[0][:4])}, ...; must mean the same in every file"
            )
        kinds = {
            ("text" if v.dtype.kind in "US" else "numbers"): where
            for v, (where, n) in zip(values, found, strict=True)
            if n
        }
        if len(kinds) > 1:
            told = " and ".join(f"{where} has {kind}" for kind, where in kinds.items())
            raise InputError(f"data.label: must mean the same in every file: {told}")
        filled = [v for v in values if len(v)] or values[:1]
        return Labels(np.concatenate(filled), found, next(iter(named.values()), None))


def _as_labels(read: pa.ChunkedArray, classes: Sequence[str], where: str, name: str) -> np.ndarray:
    """A column of labels as an array: of one of them, or of several, a sample."""
    if not is_list(read.type):
        kind = read.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
            return np.array(read.to_pylist(), dtype=np.str_)
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InputError(f"data.label={name!r}: {where}: must be integers, numbers or text, not {kind}")
        return np.asarray(read.to_numpy())
    if classes:  # those of several classes that a sample is of
        several = np.zeros((len(read), len(classes)), np.int64)
        for row, labels in enumerate(read.to_pylist()):
            if wrong := [label for label in labels if not 0 <= label < len(classes)]:
                raise InputError(
                    f"data.label={name!r}: {where}: label {wrong[0]} in row {row}; allowed are 0 to "
                    f"{len(classes) - 1}"
                )
            several[row, labels] = 1
        return several
    return arrays(read.combine_chunks(), where, 0, "label")


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def arrays(values: pa.Array, where: str, first: int, field: str = "inputs") -> np.ndarray:
    """Lists, nested or not, as one array, of shape (rows, ...).

    Raises:
        InputError: A list is longer than others, or misses a value, naming its row.
    """
    rows, sizes = len(values), []
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    while is_list(values.type):
        if values.null_count:
            raise InputError(f"data.{field}: {where}: {values.null_count} rows are missing")
        if pa.types.is_fixed_size_list(values.type):
            sizes.append(values.type.list_size)
        else:
            lengths = values.value_lengths().to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != lengths[:1])
            if len(wrong):
                row = first + int(wrong[0]) * rows // max(1, len(lengths))
                raise InputError(
                    f"data.{field}: {where}: row {row} has {lengths[wrong[0]]} values where the first one "
                    f"has {lengths[0]}; all must have one length: cut or pad them"
                )
            sizes.append(int(lengths[0]) if len(lengths) else 0)
        values = values.flatten()
    if values.null_count:
        raise InputError(f"data.{field}: {where}: {values.null_count} values are missing")
    if not (
        pa.types.is_integer(values.type)
        or pa.types.is_floating(values.type)
        or pa.types.is_boolean(values.type)
    ):
        raise InputError(f"data.{field}: {where}: must be lists of numbers, not of {values.type}")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(rows, *sizes)


@dataclass(frozen=True)
class _Column(Chunked):
    """A column of the files of a split."""

    files: Files
    names: tuple[str, ...]
    column: str

    def __str__(self) -> str:
        return f"data.root={self.files.root!r}"

    def name(self) -> str:
        """The files, as they are now, and the column."""
        stamps = [self.files.stamp(name) for name in self.names]
        return hashlib.sha256(repr((stamps, self.column)).encode()).hexdigest()

    def _batches(self, name: str, column: str) -> Iterator[tuple[int, pa.Array]]:
        row = 0
        with opened(self.files, name) as file:
            if self.column not in file.schema_arrow.names:
                raise InputError(f"data.inputs: {self.files.say(name)}: there is no column {self.column}")
            for batch in file.iter_batches(_BATCH, columns=[column]):
                yield row, batch.column(0)
                row += len(batch)

    def chunks(self) -> Iterator[np.ndarray]:
        """Batch by batch."""
        size = None
        for name in self.names:
            for row, values in self._batches(name, self.column):
                found = arrays(values, self.files.say(name), row)
                size = size or found.shape[1:]
                if found.shape[1:] != size:
                    raise InputError(
                        f"data.inputs: {self.files.say(name)}: row {row} has shape {list(found.shape[1:])}, "
                        f"but the first one has {list(size)}; all must have one: cut or pad them"
                    )
                yield found


@dataclass(frozen=True)
class _Images(_Column, Encoded):
    """A column of encoded images."""

    def chosen(self, kept: np.ndarray) -> Iterator[list[Item]]:
        """The images' bytes, a batch at a time."""
        start = 0
        for name in self.names:
            where = self.files.say(name)
            for row, values in self._batches(name, f"{self.column}.bytes"):
                end = start + len(values)
                inside = kept[np.searchsorted(kept, start) : np.searchsorted(kept, end)] - start
                if len(inside):
                    encoded = values.field("bytes").take(pa.array(inside)).to_pylist()
                    numbers = (row + inside).tolist()
                    yield [
                        (f"{where}: the image in row {number}", data)
                        for number, data in zip(numbers, encoded, strict=True)
                    ]
                start = end


def named_classes(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The classes that the `datasets` library's metadata name for a column, or for the lists in it."""
    try:
        stored = (schema.metadata or {}).get(b"huggingface", b"{}")
        feature = json.loads(stored)["info"]["features"][column]
        if isinstance(feature, list):
            feature = feature[0]
        feature = feature.get("feature", feature)
        names = feature.get("names") or range(feature["num_classes"])
        return tuple(map(str, names)) if feature["_type"] == "ClassLabel" else ()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ()


@contextlib.contextmanager
def opened(files: Files, name: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a folder's.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with files.open(name) as file, pq.ParquetFile(file) as table:
            yield table
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"data.root: {files.say(name)} cannot be read as Parquet: {one_line(error)}"
        ) from error
