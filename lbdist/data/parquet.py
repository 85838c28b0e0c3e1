"""Bring your own images: a folder in the Hugging Face Parquet image layout.

`train*.parquet` and `test*.parquet` (else `validation*.parquet`, `valid*.parquet`) lie in the folder or its
`data/`; a column of structs {bytes, path} holds PNG, JPEG or WebP, another the class as an integer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lbdist.data.base import Dataset, DataSource, Split, is_integer, subset
from lbdist.errors import InputError, one_line, require

_BATCH = 2048  # rows held encoded at a time
_CHUNK = 64  # images a thread decodes at a time
_FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass
class Parquet(DataSource):
    """Images, uint8 of shape (N, C, H, W).

    Attributes:
        root: The folder.
        classes: Number of classes; None for the largest training label plus 1.
        label: Column of the classes; where it is left at `label` and absent, `fine_label` is taken.
        image: Column of the images; None for `image` or `img`.
        channels: 1 for grey, 3 for colour; None for as the files have it. WebP has no grey mode, so grey
            images kept in it need a 1 here.
    """

    root: str | None = None
    classes: int | None = None
    label: str = "label"
    image: str | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "the folder that holds train*.parquet and test*.parquet: set data.root=DIR"
        require(isinstance(self.root, str), "data.root", self.root, remedy)
        allowed = self.classes is None or is_integer(self.classes, 2)
        require(allowed, "data.classes", self.classes, "an integer of at least 2, or null")
        require(isinstance(self.label, str), "data.label", self.label, "a column's name")
        allowed = self.image is None or isinstance(self.image, str)
        require(allowed, "data.image", self.image, "a column's name, or null")
        require(self.channels in (None, 1, 3), "data.channels", self.channels, "1, 3 or null")

    def read(self) -> Dataset:
        """Reads all labels, then all images.

        Raises:
            InputError: Naming the file that is missing, damaged, or holds something wrong.
        """
        train, test = self._files("train"), self._files("test", "validation", "valid")
        labels = {file: self._labels(file) for file in train + test}
        classes = self.classes or 1 + int(max(labels[file].max(initial=1) for file in train))
        for file, values in labels.items():
            wrong = np.flatnonzero((values < 0) | (values >= classes))
            if len(wrong):
                raise InputError(
                    f"data.classes={self.classes!r}: {file}: label {values[wrong[0]]} in row {wrong[0]}; "
                    f"allowed are 0 to {classes - 1}"
                )
        return Dataset(
            self._split(train, labels, self.train_samples),
            self._split(test, labels, self.test_samples),
            classes,
        )

    def _files(self, *prefixes: str) -> list[Path]:
        root = Path(str(self.root)).expanduser()
        require(root.is_dir(), "data.root", self.root, "a folder that is there")
        for prefix in prefixes:
            for folder in (root, root / "data"):
                if files := sorted(folder.glob(f"{prefix}*.parquet")):
                    return files
        wanted = " or ".join(f"{prefix}*.parquet" for prefix in prefixes)
        raise InputError(f"data.root={self.root!r}: must hold {wanted}, in the folder itself or in data/")

    def _labels(self, file: Path) -> np.ndarray:
        names = ("label", "fine_label") if self.label == "label" else (self.label,)
        with _opened(file) as opened:
            column = _column(file, opened.schema_arrow, "label", names)
            kind = opened.schema_arrow.field(column).type
            if not pa.types.is_integer(kind):
                raise InputError(f"data.label={column!r}: {file}: must be integers, not {kind}")
            values = opened.read([column]).column(column)
        if values.null_count:
            raise InputError(f"data.label={column!r}: {file}: {values.null_count} rows have no label")
        return values.to_numpy().astype(np.int64)

    def _split(self, files: list[Path], labels: dict[Path, np.ndarray], count: int | None) -> Split:
        joined = np.concatenate([labels[file] for file in files])
        kept = subset(len(joined), count)  # so that only these are decoded
        images = np.empty((0, 1, 1, 1), np.uint8)
        done = start = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for file in files:
                row = 0
                for batch in self._encoded(file):
                    inside = kept[np.searchsorted(kept, start) : np.searchsorted(kept, start + len(batch))]
                    encoded = [(row + at, batch[at]) for at in (inside - start).tolist()]
                    if encoded and not done:
                        images = np.empty((len(kept), *self._decode(*encoded[0], file).shape), np.uint8)
                    jobs = [
                        pool.submit(self._fill, images[done + at :], encoded[at : at + _CHUNK], file)
                        for at in range(0, len(encoded), _CHUNK)
                    ]
                    for job in jobs:
                        job.result()
                    done, start, row = done + len(encoded), start + len(batch), row + len(batch)
        return Split(images, joined[kept])

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
                mode = {1: "L", 3: "RGB"}.get(self.channels or 0, "L" if opened.mode == "L" else "RGB")
                image = opened if opened.mode == mode else opened.convert(mode)
                pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)
        except Exception as error:  # Pillow's decoders raise many kinds
            raise InputError(
                f"data.root: {file}: the image in row {row} cannot be decoded as PNG, JPEG or WebP"
            ) from error
        return pixels.transpose(2, 0, 1)


def _column(file: Path, schema: pa.Schema, field: str, names: tuple[str, ...]) -> str:
    """The first of these columns that is there."""
    for name in names:
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
