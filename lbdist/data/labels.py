"""From labels as people write them to those that a loss takes; a label means the same in every file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lbdist.errors import InputError, require

TASKS = ("classification", "regression")

_SHOWN = 6  # names of classes in a line
_FEW = 4  # times as many classes as there are labels: the labels are identifiers


@dataclass(frozen=True, eq=False)
class Labels:
    """What the files of a split say is to be learnt.

    Attributes:
        values: (N,) or (N, ...), text or numbers.
        files: Each file in order, and how many samples it has.
        names: Of the classes, where the files tell them.
    """

    values: np.ndarray
    files: Sequence[tuple[str, int]]
    names: Sequence[str] | None = None

    def place(self, row: int) -> str:
        """A sample's label, and where it lies."""
        start = 0
        for name, count in self.files:
            if row < start + count:
                return f"{name}: label {self.values[row]!s} in row {row - start}"
            start += count
        raise IndexError(row)

    @property
    def first(self) -> str:
        """The first file."""
        return self.files[0][0]


@dataclass(frozen=True, eq=False)
class Coded:
    """Labels as a loss takes them.

    Attributes:
        values: int64 or float32, of each split.
        classes: How many there are; None where labels are no classes.
        notes: What their user should know.
    """

    values: list[np.ndarray]
    classes: int | None
    notes: list[str]


def coded(every: Sequence[Labels], *, task: str | None, classes: int | None, relabel: bool) -> Coded:
    """The labels of a training split, and of a test split where there is one.

    Text is a class each, in alphabetical order; integers are classes; floating-point numbers are what a
    regression learns.

    Args:
        every: The training split's, and the test split's.
        task: `classification` or `regression` where labels do not tell.
        classes: How many there are; None for as many as the training split's labels need.
        relabel: Whether the classes are the training split's labels in order, whatever they are.

    Raises:
        InputError: Naming the file and what is wrong with it.
    """
    kinds = [_kind(one) for one in every]
    if "text" in kinds and len(set(kinds)) > 1:
        told = " and ".join(f"{one.first} has {kind}" for one, kind in zip(every, kinds, strict=True))
        raise InputError(f"data.label: must mean the same in every file: {told}")
    named = {tuple(one.names): one.first for one in every if one.names is not None}
    if len(named) > 1:
        (one, a), (other, b) = list(named.items())[:2]
        at = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), None)
        how = f"names {len(one)} classes and {b} names {len(other)} classes"
        if at is not None:
            how = f"calls class {at} {one[at]} and {b} calls it {other[at]}"
        raise InputError(f"data.label: must mean the same in every file: {a} {how}")
    shapes = {one.values.shape[1:] for one in every}
    require(len(shapes) == 1, "data.label", sorted(shapes), "of one shape in both splits")
    if task == "regression" or (task is None and "numbers" in kinds):
        if "text" in kinds:
            raise InputError(f"data.task=regression: {every[0].first}: its labels are text, no numbers")
        return Coded([one.values.astype(np.float32) for one in every], None, [])
    if shapes != {()} and "text" not in kinds and "numbers" not in kinds:
        return Coded([one.values.astype(np.int64) for one in every], classes, [])
    whole = [_whole(one, kind) for one, kind in zip(every, kinds, strict=True)]
    if "text" in kinds or relabel:
        return _named(every, whole, classes)
    return _counted(every, whole, classes, next(iter(named), ()))


def _kind(labels: Labels) -> str:
    kind = labels.values.dtype.kind
    if kind in "US" or (kind == "O" and all(isinstance(value, str) for value in labels.values.flat)):
        return "text"
    require(kind in "biuf", "data.label", f"{labels.first} ({labels.values.dtype})", "text or numbers")
    return "numbers" if kind == "f" else "integers"


def _whole(labels: Labels, kind: str) -> np.ndarray:
    """Labels that are to be classes."""
    values = labels.values
    if kind == "text":
        require(values.ndim == 1, "data.label", labels.first, "one text a sample")
        return values.astype(str)
    if kind == "numbers":
        wrong = np.flatnonzero(values != np.floor(values))
        if values.ndim != 1 or len(wrong):
            where = labels.place(int(wrong[0])) if values.ndim == 1 else labels.first
            raise InputError(f"data.task=classification: {where}; must be whole numbers, or text")
    return values.astype(np.int64)


def _named(every: Sequence[Labels], whole: Sequence[np.ndarray], classes: int | None) -> Coded:
    """Classes are the labels of the training split, in order."""
    known = np.unique(whole[0])
    for labels, values in zip(every, whole, strict=True):
        wrong = np.flatnonzero(~np.isin(values, known))
        if len(wrong):
            raise InputError(f"data.label: {labels.place(int(wrong[0]))}, which no training sample has")
    count = classes or len(known)
    require(count >= len(known), "data.classes", classes, f"at least {len(known)}, the labels that there are")
    listed = ", ".join(f"{value} is {at}" for at, value in enumerate(known[:_SHOWN].tolist()))
    more = f", and so on to {known[-1]}, which is {len(known) - 1}" if len(known) > _SHOWN else ""
    codes = [np.searchsorted(known, values).astype(np.int64) for values in whole]
    return Coded(codes, count, [f"data: the classes in order: {listed}{more}"])


def _counted(
    every: Sequence[Labels], whole: Sequence[np.ndarray], classes: int | None, names: Sequence[str]
) -> Coded:
    """Labels are 0 to C - 1 already."""
    known = np.unique(whole[0])
    count = classes or len(names) or 1 + int(known.max(initial=1))
    for labels, values in zip(every, whole, strict=True):
        wrong = np.flatnonzero((values < 0) | (values >= count))
        if len(wrong):
            raise InputError(
                f"data.classes={classes!r}: {labels.place(int(wrong[0]))}; allowed are 0 to {count - 1}"
                + ("; data.splits={test: NAME} takes another split" if values.max() < 0 else "")
                + ("" if classes else "; data.task=regression takes labels as numbers")
            )
    declared = classes or len(names)
    if not declared and count > _FEW * len(known):
        raise InputError(
            f"data.label: labels up to {count - 1} of which {len(known)} have a training sample are no "
            f"numbers of classes: data.relabel=true takes each for a class, data.classes={count} as they "
            "are, data.task=regression as numbers"
        )
    gaps = np.setdiff1d(np.arange(count), known)
    notes = []
    if len(gaps):
        listed = ", ".join(map(str, gaps[:_SHOWN])) + (", ..." if len(gaps) > _SHOWN else "")
        few = "class" if len(gaps) == 1 else "classes"
        way = "" if declared else "; data.relabel=true takes those that there are, in order"
        notes = [f"data: of {count} classes, no training sample has {few} {listed}{way}"]
    return Coded(list(whole), count, notes)
