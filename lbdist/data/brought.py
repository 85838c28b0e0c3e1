"""What users bring: the splits, labels, subsets and files that their layouts share."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lbdist.data.base import Dataset, DataSource, carved, is_integer, subset
from lbdist.data.files import Files
from lbdist.data.labels import TASKS, Labels, coded
from lbdist.data.layouts import there
from lbdist.data.mapped import Mapped, Recipe, check_memory, limit
from lbdist.errors import InputError, require

TRAIN, TEST = ("train",), ("test", "validation", "valid", "val")
"""What splits are called, the likeliest first."""

Take = Callable[[np.ndarray], Recipe]
"""Makes the recipe of the inputs at sorted positions of a split."""


@dataclass(frozen=True, eq=False)
class Part:
    """A split before any input of it is read.

    Attributes:
        labels: Of all its samples.
        take: Makes the recipe of some.
        fit: Of a training split, what is told which of its samples are trained on, before any is taken.
    """

    labels: Labels
    take: Take
    fit: Callable[[np.ndarray], None] | None = None


@dataclass
class Brought(DataSource):
    """Data of the user's own.

    Attributes:
        root: A folder or a file, or its URI.
        splits: Which split is `train` and which is `test`, where they are not called so; the test split is
            else `validation`, `valid` or `val`.
        held_out: Share of the training split that becomes the test split, of each class alike.
        task: `classification` or `regression`, where labels do not tell; None takes text and integers for
            classes, and other numbers for what a regression learns.
        classes: Number of classes; None for those that files name or labels need.
        relabel: Whether the classes are the training split's labels in order, as of labels from 1 on.
        memory_gib: Splits of more GiB lie in a file of the cache instead of in memory; None for a tenth of
            the machine's memory.
    """

    root: str | None = None
    splits: dict[str, str] | None = None
    held_out: float | None = None
    task: str | None = None
    classes: int | None = None
    relabel: bool = False
    memory_gib: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_root()
        splits = self.splits or {}
        known = set(splits) <= {"train", "test"} and all(isinstance(v, str) for v in splits.values())
        require(known, "data.splits", self.splits, "a mapping from train and test to names of splits")
        share = self.held_out
        good = share is None or (isinstance(share, float) and 0 < share < 1)
        require(good, "data.held_out", share, "a share between 0 and 1, or null")
        both = share is not None and "test" in splits
        require(not both, "data.held_out", share, "null, since data.splits names a test split")
        require(self.task in (None, *TASKS), "data.task", self.task, f"{' or '.join(TASKS)}, or null")
        allowed = self.classes is None or is_integer(self.classes, 2)
        require(allowed, "data.classes", self.classes, "an integer of at least 2, or null")
        require(isinstance(self.relabel, bool), "data.relabel", self.relabel, "true or false")
        check_memory(self.memory_gib)

    def check_root(self) -> None:
        """Refuses a root that is none."""
        require(
            isinstance(self.root, str),
            "data.root",
            self.root,
            "the folder or file of the data: data.root=DIR",
        )

    def limit(self) -> float:
        """Bytes of a split that is kept in memory."""
        return limit(self.memory_gib)

    def scaled(self, values: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Labels as they are learnt, by those of the training split."""
        return values

    def check_name(self, field: str) -> None:
        """Refuses a name that is none."""
        value = getattr(self, field)
        require(value is None or isinstance(value, str), f"data.{field}", value, "a name, or null")

    @abstractmethod
    def parts(self) -> list[Part]:
        """The training split, and the test split unless it is held out."""

    @functools.cached_property
    def files(self) -> Files:
        """Where they lie."""
        return Files(str(self.root))

    def chosen(self, found: Mapping[str, Sequence[str]], wanted: str) -> list[tuple[str, list[str]]]:
        """The splits to read, `train` first, each with its name and its files.

        Args:
            found: The files of each split that is there.
            wanted: What a split's files are, as in `{}.parquet`.

        Raises:
            InputError: One is not there; what is, and the line that takes it.
        """
        splits = self.splits or {}
        names: dict[str, tuple[str, ...]] = {"train": (splits["train"],) if "train" in splits else TRAIN}
        if self.held_out is None:
            names["test"] = (splits["test"],) if "test" in splits else TEST
        elif "train" in splits or "train" in found:
            unused = [name for name in TEST if name in found and name not in splits.values()]
            share = f"since data.held_out={self.held_out}"
            self.notes += [f"data: the split {name} is left out, {share}" for name in unused]
        elif len(found) == 1:
            names["train"] = tuple(found)  # all there is
        taken = []
        for part, candidates in names.items():
            name = next((name for name in candidates if name in found), None)
            if name is None:
                what = " or ".join(wanted.format(name) for name in candidates)
                known = sorted(filter(None, found))
                way = f"there are the splits {', '.join(known)}: set data.splits" if known else ""
                if part == "test" and "test" not in splits:
                    way += f"{', or ' if way else ''}data.held_out=0.2 takes a share of the training split"
                elif "" in found and not known:
                    way = "what is there has no split's name: data.held_out=0.2 takes a share of it for tests"
                elif not found:
                    way = there(self.files, str(self.root))
                raise InputError(f"data.root={self.root!r}: must hold {what}; {way}")
            taken.append((name, list(found[name])))
        return taken

    def read(self) -> Dataset:
        """Reads labels, then the inputs that are asked for.

        Raises:
            InputError: Naming the file that is missing, damaged, or holds something wrong.
        """
        vars(self).pop("files", None)  # what they were at an earlier reading does not count
        with self.files.unchanged():
            return self._read()

    def _read(self) -> Dataset:
        parts = self.parts()
        for part, name in zip(parts, ("train", "test"), strict=False):
            if not len(part.labels.values):
                raise InputError(f"data: the {name} split is empty: {part.labels.first} has no samples")
        got = coded([p.labels for p in parts], task=self.task, classes=self.classes, relabel=self.relabel)
        self.notes += got.notes
        places = [np.arange(len(values)) for values in got.values]
        if self.held_out is not None:
            parts, got.values[1:] = parts[:1] * 2, got.values[:1]
            mask = carved(got.values[0], self.held_out, "data.held_out")
            places = [np.flatnonzero(~mask), np.flatnonzero(mask)]
        if parts[0].fit is not None:
            parts[0].fit(places[0])
        train, made = got.values[0][places[0]], []
        for name, part, values, where in zip(("train", "test"), parts, got.values, places, strict=True):
            field = f"{name}_samples"
            count = self.count(field, len(where))
            if count is not None:
                require(count <= len(where), f"data.{field}", count, f"at most {len(where)}, or null")
                where = where[subset(len(where), count)]
            labels = self.scaled(values[where], train)
            made.append(Mapped.of(part.take(where), labels, self.limit()))
        return Dataset(made[0], made[1], got.classes)


def column(field: str, given: Any, names: Sequence[str], known: Sequence[str], where: str) -> str:
    """The first of the usual names, or the one that the user gives, that is there, once.

    Raises:
        InputError: Naming `data.<field>` and what there is.
    """
    wanted = names if given is None else (given,)
    for name in wanted:
        if known.count(name) > 1:
            raise InputError(f"data.{field}: {where}: must have one column {name}, not {known.count(name)}")
        if name in known:
            return name
    listed = ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
    raise InputError(
        f"data.{field}: {where}: there is no column {' or '.join(wanted)}; set data.{field} to one of "
        f"{listed}"
    )


def stacked(rows: Sequence[Any], where: str, field: str = "inputs") -> np.ndarray:
    """Rows as one array.

    Raises:
        InputError: They differ in shape.
    """
    arrays = [np.asarray(row) for row in rows]
    for at, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise InputError(
                f"data.{field}: {where}: row {at} has shape {list(array.shape)}, but the first one has "
                f"{list(arrays[0].shape)}; all must have one: cut or pad them"
            )
    return np.stack(arrays) if arrays else np.zeros((0,))
