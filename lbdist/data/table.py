"""Bring your own table: columns of CSV or Parquet are features and a target."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from lbdist.data import shards
from lbdist.data.base import Dataset
from lbdist.data.brought import Part, Take, column
from lbdist.data.files import Files
from lbdist.data.labels import Labels
from lbdist.data.seen import Shaped
from lbdist.data.streamed import Chunked
from lbdist.errors import InputError, one_line, require

_ENDINGS = (".csv", ".csv.gz", ".tsv", ".parquet")
_LABELS = ("label", "target", "y", "class")
_MISSING = ("drop", "mean")
_STANDARDISE = ("inputs", "all")
_ROWS = 65536
_MOST_VALUES = 1000  # of a category, each of which is an input of its own


@dataclass
class Table(Shaped):
    """Rows of a table, float32 of shape (N, F), which is in memory as a whole while it is read.

    Numbers are taken as they are, a category as 0 or 1 for each of its values.

    Attributes:
        inputs: Columns of the features, in order; None for all but the label's.
        label: Column of what is to be learnt, or a list of several; None for one of the usual names, such as
            `label` and `target`.
        categories: Columns among the features that are categories, of which the training split's values are
            those that there are.
        missing: What becomes of empty cells: `drop` leaves out their rows, `mean` takes the training split's
            mean, and of a category a value of its own; None refuses them.
        standardise: `inputs` brings each feature that is a number to mean 0 and deviation 1 in the training
            split, `all` numbers of labels as well; None leaves them.
    """

    inputs: list[str] | None = None
    label: Any = field(default=None, metadata={"text": True})  # for lbdist.config.text
    categories: list[str] | None = None
    missing: str | None = None
    standardise: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("missing", _MISSING), ("standardise", _STANDARDISE)):
            value = getattr(self, name)
            require(value in (None, *allowed), f"data.{name}", value, f"{' or '.join(allowed)}, or null")
        for name in ("inputs", "categories"):
            value = getattr(self, name)
            good = value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))
            require(good and value != [], f"data.{name}", value, "a list of columns, or null")
        names = self.label if isinstance(self.label, list) else [self.label or ""]
        good = bool(names) and all(isinstance(one, str) for one in names)
        require(good, "data.label", self.label, "a column, a list of columns, or null")

    def read(self) -> Dataset:
        """Reads the tables.

        Raises:
            InputError: Naming the file, and the column that is missing or wrong.
        """
        return replace(super().read(), columns=True)

    def parts(self) -> list[Part]:
        """The rows of each split; how features are taken is told by the training split."""
        found = shards.splits(self.files, _ENDINGS)
        taken = self.chosen(found, "{0}.csv or {0}.parquet")
        tables = []
        for _, files in taken:
            names = shards.whole(self.files, files, _ENDINGS)
            tables.append((tuple(names), self.files.say(names[0]), read(self.files, names)))
        _, where, first = tables[0]
        single = not isinstance(self.label, list)
        labels = [column("label", self.label, _LABELS, first.column_names, where)] if single else self.label
        features = self.inputs or [name for name in first.column_names if name not in labels]
        self._check(features, labels)
        fitted = _Fitted(self.standardise is not None, self.missing == "mean", tuple(self.categories or ()))
        kinds = {name: first.column(name).type for name in features if name in first.column_names}
        whole = all(pa.types.is_integer(kind) for kind in kinds.values())
        pictures = self.kind is None and len(self.sides) == 3 and whole
        integers = self.kind in ("tokens", "pictures") or pictures
        plain = not integers or self.standardise is None
        require(plain, "data.standardise", self.standardise, "null: tokens and pixels stay as they are")
        parts: list[Part] = []
        every = (*features, *labels)
        for own, where, table in tables:
            for name in every:
                column("label" if name in labels else "inputs", name, (), table.column_names, where)
            drop = self.missing == "drop"
            rows = _Rows(self.files, own, where, every, len(features), drop, fitted, integers)
            vars(rows)["table"] = _present(table.select(every), drop)  # it has been read already
            self._check_cells(table.select(every), labels, where)
            values = _labels([rows.table.column(name) for name in labels], single, where)
            fit = rows.fit if not parts else None
            parts.append(Part(Labels(values, [(where, len(values))]), self._taker(rows), fit))
        return parts

    def _check(self, features: Sequence[str], labels: Sequence[str]) -> None:
        both = [name for name in features if name in labels]
        require(not both, "data.label", both[:1], "no feature: leave it out of data.inputs")
        require(len(set(features)) == len(features), "data.inputs", self.inputs, "columns, each of them once")
        require(bool(features), "data.inputs", self.inputs, "one column or more beside the label's")
        unknown = [name for name in self.categories or () if name not in features]
        require(not unknown, "data.categories", unknown, f"among the features, {', '.join(features[:40])}")

    def _taker(self, rows: _Rows) -> Take:
        return lambda kept: self.streamed(rows, rows.none())(kept)

    def _check_cells(self, table: pa.Table, labels: Sequence[str], where: str) -> None:
        """Refuses empty cells, unless it is said what becomes of them."""
        empty = {name: _empty(table.column(name)) for name in table.column_names}
        if self.missing == "drop":
            lost = int(np.logical_or.reduce(list(empty.values())).sum())
            if lost:
                self.notes.append(f"data: {lost:,} of {len(table):,} rows of {where} have empty cells")
            return
        for name in labels if self.missing else table.column_names:
            if count := int(empty[name].sum()):
                ways = "data.missing=drop leaves such rows out"
                ways += "" if name in labels else ", data.missing=mean takes the training split's mean"
                raise InputError(
                    f"data.missing={self.missing}: {where}: column {name} is empty in {count} rows, "
                    f"the first of them {int(np.argmax(empty[name]))}; {ways}"
                )

    def scaled(self, values: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Labels that are numbers by the training split's mean and deviation, where that is asked for."""
        if self.standardise != "all" or train.dtype.kind != "f":
            return values
        mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
        return ((values - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def read(files: Files, names: Sequence[str]) -> pa.Table:
    """The tables of files, one below the other.

    Raises:
        InputError: One cannot be read, or differs from the others.
    """
    tables = []
    for name in names:
        where = files.say(name)
        try:
            with files.open(name) as file:
                if name.endswith(".parquet"):
                    tables.append(pq.read_table(file))
                else:
                    content = pa.CompressedInputStream(file, "gzip") if name.endswith(".gz") else file
                    split = pyarrow.csv.ParseOptions(delimiter="\t" if name.endswith(".tsv") else ",")
                    tables.append(pyarrow.csv.read_csv(content, parse_options=split))
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise InputError(f"data.root: {where} cannot be read as a table: {one_line(error)}") from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        listed = " and ".join(files.say(name) for name in names[:2])
        raise InputError(f"data.root: {listed} are not of one table: {one_line(error)}") from error


def _present(table: pa.Table, drop: bool) -> pa.Table:
    """The rows without empty cells, where those are dropped."""
    if not drop:
        return table
    empty = [_empty(table.column(name)) for name in table.column_names]
    return table.filter(pa.array(~np.logical_or.reduce(empty)))


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without a dictionary."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _empty(values: pa.ChunkedArray) -> np.ndarray:
    """Which cells have nothing in them."""
    values = _plain(values)
    empty = pc.is_null(values, nan_is_null=True)
    if _is_text(values.type):
        empty = pc.or_(empty, pc.fill_null(pc.equal(values, ""), True))
    return np.asarray(empty)


def _numbers(values: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    """A column's numbers in float64, NaN for empty cells, or its integers."""
    kind = values.type
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        way = f"data.categories=[{name}] takes it for a category, data.inputs=[...] leaves it out"
        raise InputError(f"data.inputs: {where}: column {name} is {kind}, no number: {way}")
    if pa.types.is_integer(values.type) and not values.null_count:
        return np.asarray(values.to_numpy())
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy())


def _labels(columns: Sequence[pa.ChunkedArray], single: bool, where: str) -> np.ndarray:
    values = [_plain(one) for one in columns]
    if single and _is_text(values[0].type):
        return np.array(values[0].to_pylist(), dtype=np.str_)
    for one in values:
        require(
            _is_number(one.type),
            "data.label",
            f"{where} ({one.type})",
            "text or numbers; several are numbers",
        )
    arrays = [one.to_numpy() for one in values]
    return np.asarray(arrays[0]) if single else np.stack(arrays, 1)


@dataclass
class _Fitted:
    """How features are taken, as the training split tells.

    Attributes:
        standardise: Whether numbers are brought to mean 0 and deviation 1.
        fill: Whether empty cells are filled.
        categories: Columns that are no numbers.
        values: Of each category.
        moments: Mean and deviation of each number.
    """

    standardise: bool
    fill: bool
    categories: tuple[str, ...]
    values: dict[str, list[str]] = field(default_factory=dict)
    moments: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Rows(Chunked):
    """The features of the rows of a split.

    Attributes:
        files: Where they lie.
        names: The split's files.
        where: What a line calls them.
        used: Columns of the features, and then of the labels.
        features: How many of them are features.
        drop: Whether rows with empty cells do not count.
        fitted: How features are taken.
        integers: Whether they are tokens or pixels.
    """

    files: Files
    names: tuple[str, ...]
    where: str
    used: tuple[str, ...]
    features: int
    drop: bool
    fitted: _Fitted
    integers: bool

    def __str__(self) -> str:
        return f"data.root={self.files.root!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "table"}

    @functools.cached_property
    def table(self) -> pa.Table:
        """The columns that are used, of the rows that count."""
        return _present(read(self.files, self.names).select(self.used), self.drop)

    def name(self) -> str:
        """The files, as they are now, and how they are taken."""
        stamps = [self.files.stamp(name) for name in self.names]
        shown = (stamps, self.used, self.features, self.drop, self.fitted)
        return hashlib.sha256(repr(shown).encode()).hexdigest()

    def fit(self, kept: np.ndarray) -> None:
        """Learns from these rows how features are taken."""
        for name in self.used[: self.features]:
            values = _plain(self.table.column(name))
            if name in self.fitted.categories:
                there = values.take(pa.array(kept)).cast(pa.string()).unique().to_pylist()
                known = sorted({one or "" for one in there})
                few = len(known) <= _MOST_VALUES
                allowed = f"columns of at most {_MOST_VALUES:,} values each; leave it out of data.inputs"
                require(few, "data.categories", f"{name} ({len(known):,} values)", allowed)
                self.fitted.values[name] = known
            elif not self.integers:
                numbers = _numbers(values, name, self.where)[kept].astype(np.float64)
                numbers = numbers[~np.isnan(numbers)]
                if not len(numbers):
                    raise InputError(f"data.inputs: {self.where}: column {name} has no number in it")
                with np.errstate(invalid="ignore"):  # of infinity, which is refused where it is
                    self.fitted.moments[name] = float(numbers.mean()), float(numbers.std()) or 1.0

    def none(self) -> np.ndarray:
        """No row, of the shape and type that rows have once they are fitted."""
        known = self.fitted.values
        width = sum(len(known[name]) if name in known else 1 for name in self.used[: self.features])
        return np.zeros((0, width), np.int64 if self.integers and not known else np.float32)

    def chunks(self) -> Iterator[np.ndarray]:
        """Rows as float32, or int64 where they are integers, some at a time."""
        columns = [self._column(name) for name in self.used[: self.features]]
        for start in range(0, max(1, len(self.table)), _ROWS):
            some = [(values[start : start + _ROWS], kinds) for values, kinds in columns]
            yield np.concatenate(
                [np.eye(kinds, dtype=np.float32)[one] if kinds else one[:, None] for one, kinds in some],
                axis=1,
            )

    def _column(self, name: str) -> tuple[np.ndarray, int]:
        """A feature's numbers, of shape (N,), and 0; of a category its codes, and how many values it has."""
        values = _plain(self.table.column(name))
        if name in self.fitted.categories:
            known = self.fitted.values[name]
            text = pc.fill_null(values.cast(pa.string()), "")
            codes = np.asarray(pc.fill_null(pc.index_in(text, pa.array(known, pa.string())), -1))
            if len(wrong := np.flatnonzero(codes < 0)):
                value = text[int(wrong[0])].as_py()
                raise InputError(
                    f"data.categories: {self.where}: {name} is {value!r} where no training sample has that"
                )
            return codes, len(known)
        numbers = _numbers(values, name, self.where)
        if self.integers:
            whole = numbers.dtype.kind in "iu"
            require(whole, "data.kind", f"column {name} of {self.where}", "numbers, since it is no integers")
            return numbers.astype(np.int64), 0
        mean, deviation = self.fitted.moments[name]
        numbers = numbers.astype(np.float64)
        if self.fitted.fill:
            numbers = np.where(np.isnan(numbers), mean, numbers)
        if self.fitted.standardise:
            numbers = (numbers - mean) / deviation
        with np.errstate(over="ignore"):  # infinity is refused further on
            return numbers.astype(np.float32), 0
