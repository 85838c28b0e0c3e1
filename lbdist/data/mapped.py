"""Samples that memory does not hold: in a file of this machine's cache, of which batches read what they need.

The file is decoded once a machine and memory-mapped, so that any order of the samples, and with it every
batch, is what it would be in memory; the system keeps in memory as much of it as there is room for. Another
process is sent how the file is made, and opens it, or makes it where it is not there yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil

from lbdist.data.base import Split, cache_folder, check_finite, locked
from lbdist.errors import InputError, require
from lbdist.storage import FULL

MEMORY_SHARE = 0.1
"""Of a machine's memory: a larger split lies in a file, unless the user says otherwise. The driver holds the
samples of one that does not, the object store does, and a search's validation split is a copy."""

_ROWS = 1024
"""Samples that are copied at a time."""

_KEPT = 4 * 2**20
"""Bytes of samples that are slow to make from which on a file of them is kept."""


class Recipe(ABC):
    """How an array of samples is made; sent to other processes in the place of the array.

    Attributes:
        costly: Whether to make it is slow, so that a file of it is kept although memory holds it.
    """

    costly: ClassVar[bool] = False

    @abstractmethod
    def name(self) -> str:
        """Says what the samples are: two recipes of one name make the same array."""

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""

    def dtype(self) -> np.dtype:
        """The array's type."""
        return np.dtype(np.uint8)

    @abstractmethod
    def fill(self, array: np.ndarray) -> None:
        """Makes the samples."""


@dataclass(frozen=True)
class Rows(Recipe):
    """Some of another file's samples."""

    of: Recipe
    indices: np.ndarray

    def __str__(self) -> str:
        return str(self.of)

    def name(self) -> str:
        """A digest of the file's name and of which samples are taken."""
        found = hashlib.sha256(self.of.name().encode())
        found.update(np.ascontiguousarray(self.indices).data)
        return found.hexdigest()

    def shape(self) -> tuple[int, ...]:
        """As many samples as there are indices."""
        return len(self.indices), *self.of.shape()[1:]

    def dtype(self) -> np.dtype:
        """The type of the file's array."""
        return self.of.dtype()

    def fill(self, array: np.ndarray) -> None:
        """Copies them, a few at a time."""
        _, whole = opened(self.of)
        for start in range(0, len(array), _ROWS):
            array[start : start + _ROWS] = whole[self.indices[start : start + _ROWS]]


@dataclass(frozen=True, eq=False)
class Mapped(Split):
    """A split whose inputs are a file's, read-only.

    Attributes:
        recipe: How the file is made.
        sum: The SHA-256 of the inputs in hex digits, known since the file was made.
        limit: Bytes of samples that are kept in memory.
    """

    recipe: Recipe
    sum: str
    limit: float

    @classmethod
    def of(cls, recipe: Recipe, labels: np.ndarray, limit: float) -> Split:
        """A split of what a recipe makes, which is in memory if it takes no more than `limit` bytes."""
        shape = recipe.shape()
        size = np.prod(shape, dtype=float) * recipe.dtype().itemsize
        if size <= limit:
            return _kept(recipe, labels) if recipe.costly and size >= _KEPT else Split(_made(recipe), labels)
        digest, inputs = opened(recipe)
        return cls(inputs, labels, recipe, digest, limit)

    @property
    def inputs_digest(self) -> str:
        """The SHA-256 of the inputs' bytes."""
        return self.sum

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "inputs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the file where the split was sent, or makes it there."""
        recipe = state["recipe"]
        try:
            found, inputs = opened(recipe)
        except FileNotFoundError as error:
            raise InputError(
                f"data: {recipe}: {error.filename} is not there on this node; samples that are larger than "
                "data.memory_gib have to be where every node sees them"
            ) from error
        if found != state["sum"]:
            raise InputError(f"data: {recipe} gives other samples on this node than at the driver")
        self.__dict__.update(state, inputs=inputs)

    def take(self, indices: np.ndarray) -> Split:
        """The samples at these positions, in a file of their own if they are as many."""
        return self.of(Rows(self.recipe, indices), self.labels[indices], self.limit)


def _made(recipe: Recipe) -> np.ndarray:
    array = np.empty(recipe.shape(), recipe.dtype())
    recipe.fill(array)
    return array


def _kept(recipe: Recipe, labels: np.ndarray) -> Split:
    """A recipe's array as its file has it, kept in memory by the system; made anew if there is no room."""
    try:
        digest, there = opened(recipe)
    except (NoRoom, PermissionError):
        return Split(_made(recipe), labels)
    split = Split(there.view(np.ndarray), labels)
    vars(split)["inputs_digest"] = digest  # known already
    return split


class NoRoom(InputError):
    """A disk takes nothing more."""


def check_memory(gib: float | None) -> None:
    """Refuses what is no size.

    Raises:
        InputError: Naming `data.memory_gib`.
    """
    number = isinstance(gib, int | float) and not isinstance(gib, bool) and gib >= 0
    require(gib is None or number, "data.memory_gib", gib, "a number of at least 0, or null")


def limit(gib: float | None) -> float:
    """Bytes of a split that is kept in memory: so many GiB, by default a share of what the machine has."""
    return psutil.virtual_memory().total * MEMORY_SHARE if gib is None else gib * 2**30


def opened(recipe: Recipe) -> tuple[str, np.memmap]:
    """The SHA-256 and the samples of a recipe's file, which is made first where it is not there.

    Raises:
        NoRoom: The disk is full.
    """
    folder = cache_folder(None) / "samples" / recipe.name()[:32]
    folder.mkdir(parents=True, exist_ok=True)

    def there() -> tuple[str, np.memmap] | None:
        for file in folder.glob("[!.]*.npy"):
            with contextlib.suppress(ValueError, OSError, EOFError):  # cut short
                array = np.load(file, mmap_mode="r")
                if (array.shape, array.dtype) == (recipe.shape(), recipe.dtype()):
                    return file.stem, array
        return None

    found = there()
    if found is None:
        with locked(folder):
            found = there()
            if found is None:
                _make(recipe, folder)
                found = there()
    assert found is not None
    return found


def _make(recipe: Recipe, folder: Path) -> None:
    """Writes a file aside and renames it: it is whole or absent, and its name has the content's digest."""
    for left in folder.iterdir():  # by a process that was killed, or damaged since
        left.unlink()
    aside = folder / f".{os.getpid()}.npy"
    try:
        array = np.lib.format.open_memmap(aside, "w+", recipe.dtype(), recipe.shape())
        with aside.open("r+b") as file:  # or a full disk would be a signal that kills
            os.posix_fallocate(file.fileno(), 0, aside.stat().st_size)
        recipe.fill(array)
        array.flush()
        digest = hashlib.sha256()
        for start in range(0, len(array), _ROWS):
            check_finite("data.root", array[start : start + _ROWS], start)
            digest.update(array[start : start + _ROWS].data)
        aside.rename(folder / f"{digest.hexdigest()}.npy")
    except OSError as error:
        if error.errno not in FULL:
            raise
        size = np.prod(recipe.shape()) * recipe.dtype().itemsize
        need, free = size / 2**30, shutil.disk_usage(folder).free / 2**30
        raise NoRoom(
            f"data.memory_gib: the samples take {need:.3g} GiB in a file, and {folder} has {free:.3g} GiB "
            "free; set XDG_CACHE_HOME to a larger disk, or data.memory_gib to keep them in memory"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
