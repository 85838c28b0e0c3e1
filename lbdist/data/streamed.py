"""Inputs that are arrays already: what they are, and how rows of files become them, some at a time."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lbdist.data.base import is_integer
from lbdist.data.mapped import Recipe
from lbdist.errors import InputError, require

KINDS = ("pictures", "numbers", "tokens")
_COLOURS = (1, 3)


@dataclass(frozen=True)
class Layout:
    """What the rows of a file are.

    Attributes:
        kind: `pictures`, `numbers` or `tokens`.
        last: Whether their channels come last.
        size: A sample's shape as a network takes it.
    """

    kind: str
    last: bool
    size: tuple[int, ...]

    @classmethod
    def of(cls, size: tuple[int, ...], dtype: np.dtype, kind: str | None, shape: tuple[int, ...]) -> Layout:
        """What a file's rows are, by what the user says, else by their type.

        Bytes of two dimensions or more are pictures, (H, W), (H, W, C) or (C, H, W); other integers are
        tokens, and the rest are numbers.

        Args:
            size: A row's shape.
            dtype: Its type.
            kind: One of `KINDS`, or None.
            shape: What it is to be reshaped to first; empty leaves it.

        Raises:
            InputError: Naming `data.shape` or `data.kind`.
        """
        if shape:
            fits = math.prod(shape) == math.prod(size)
            allowed = f"of {math.prod(size)} numbers, as samples have ({list(size)})"
            require(fits, "data.shape", list(shape), allowed)
            size = shape
        if dtype.kind not in "biuf":
            raise InputError(f"data.inputs: must be numbers or pictures, not {dtype}")
        whole = dtype.kind in "iu"
        pictures = whole and (len(shape) == 3 or (dtype == np.uint8 and len(size) > 1))
        found = kind or ("pictures" if pictures else "tokens" if whole else "numbers")
        if found != "pictures":
            good = found == "numbers" or dtype.kind != "f"
            require(good, "data.kind", kind, f"numbers or null: inputs are {dtype}")
            return cls(found, False, size)
        require(dtype.kind != "f" and len(size) in (2, 3), "data.kind", kind, f"numbers, for {dtype} {size}")
        if len(size) == 2:
            return cls(found, False, (1, *size))
        first, last = size[0] in _COLOURS, size[2] in _COLOURS
        require(first or last, "data.shape", list(size), "[C,H,W] or [H,W,C], with 1 or 3 channels")
        if first and last and size[0] != size[2]:
            raise InputError(f"data.shape={list(size)}: must tell where the channels are: data.shape=[C,H,W]")
        last = last and not first
        return cls(found, last, (size[2], *size[:2]) if last else size)

    @property
    def dtype(self) -> np.dtype:
        """Of the inputs that the rows become."""
        return np.dtype({"pictures": np.uint8, "numbers": np.float32, "tokens": np.int64}[self.kind])

    def taken(self, rows: np.ndarray) -> np.ndarray:
        """Rows as inputs.

        Raises:
            InputError: Pictures that are no bytes.
        """
        if self.kind == "pictures" and rows.dtype != np.uint8 and len(rows):
            low, high = rows.min(), rows.max()
            within = low >= 0 and high <= 255
            require(
                within, "data.kind", f"pictures, {low} to {high}", "tokens or numbers: pixels are 0 to 255"
            )
        if self.kind == "tokens" and rows.dtype == np.uint64:
            require(not len(rows) or rows.max() < 2**63, "data.inputs", rows.dtype, "below 2^63")
        with np.errstate(over="ignore"):  # infinity is refused further on
            rows = rows.astype(self.dtype, copy=False)
        if self.last:
            channels, height, width = self.size
            return rows.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        return rows.reshape(-1, *self.size)


def checked_shape(shape: object) -> tuple[int, ...]:
    """What a user says that a sample's shape is.

    Raises:
        InputError: Naming `data.shape`.
    """
    good = shape is None or (isinstance(shape, list) and shape and all(is_integer(side, 1) for side in shape))
    require(bool(good), "data.shape", shape, "a list of sizes, as [3,32,32], or null")
    return tuple(shape) if isinstance(shape, list) else ()


class Chunked(ABC):
    """Rows of the files of a split, in order, some at a time; sent to other processes and nodes."""

    @abstractmethod
    def name(self) -> str:
        """Says which rows these are, as they are now."""

    @abstractmethod
    def chunks(self) -> Iterator[np.ndarray]:
        """All rows, of shape (k, ...) with any k."""


@dataclass(frozen=True)
class Streamed(Recipe):
    """Some of the rows of a place, as inputs.

    Attributes:
        place: Where they come from.
        kept: Which of them, as sorted positions.
        layout: What they are.
    """

    place: Chunked
    kept: np.ndarray
    layout: Layout

    def __str__(self) -> str:
        return str(self.place)

    def name(self) -> str:
        """The rows, as they are now, and what is taken of them."""
        found = hashlib.sha256(repr((self.place.name(), self.layout)).encode())
        found.update(self.kept.data)
        return found.hexdigest()

    def shape(self) -> tuple[int, ...]:
        """As many samples as are kept."""
        return len(self.kept), *self.layout.size

    def dtype(self) -> np.dtype:
        """As their kind has it."""
        return self.layout.dtype

    def fill(self, array: np.ndarray) -> None:
        """Takes them chunk by chunk."""
        begin = done = 0
        for rows in self.place.chunks():
            end = begin + len(rows)
            inside = self.kept[np.searchsorted(self.kept, begin) : np.searchsorted(self.kept, end)]
            if len(inside):
                some = rows if len(inside) == len(rows) else rows[inside - begin]
                array[done : done + len(inside)] = self.layout.taken(some)
            begin, done = end, done + len(inside)
        if done < len(array):
            raise InputError(f"data.root: {self.place} has fewer samples than it had labels")
