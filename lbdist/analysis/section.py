"""One record of what a study shows, written by the terminal, HTML, LaTeX, Markdown and CSV alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lbdist.analysis.numbers import interval, number, percent, phi
from lbdist.analysis.statistics import Difference, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


Others = Mapping[str, Mapping[str, Summary]]
"""Metrics that were measured beside sharpness, each by label."""


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        text: As people read it.
        small: What stands under it where there is room.
        values: The numbers behind it, by what they are (the main one by the empty name): columns of the CSV.
    """

    text: str
    small: str = ""
    values: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def numbers(self) -> Mapping[str, float | str]:
        """The values, or the text where there is none."""
        return self.values or {"": self.text}


def of_number(value: float, decimals: int = 0) -> Entry:
    """An entry that shows a number."""
    return Entry(number(value, decimals), values={"": value})


def of_summary(item: Summary | None, kind: str = "percent") -> Entry:
    """A mean with its spread; under it, for a score, the interval of the mean."""
    if item is None:
        return Entry("–")
    values = {"": item.mean, "std": item.std, "n": item.n, "low": item.low, "high": item.high}
    if kind == "phi":
        return Entry(phi(item), values=values)
    return Entry(percent(item), interval(item), values)


def of_difference(item: Difference) -> Entry:
    """A difference of means with its interval."""
    return Entry(number(item.mean, 2), interval(item), {"": item.mean, "low": item.low, "high": item.high})


_BESIDE = 2
"""So many metrics have a place in the main table; more get one of their own."""


def heads_of_others(others: Others) -> list[str]:
    """The heads of what was measured beside sharpness, where they are few."""
    return [metric.replace("_", " ") for metric in others] if len(others) <= _BESIDE else []


def of_others(others: Others, label: str) -> list[Entry]:
    """What was measured beside sharpness at a method's runs, an entry a metric, where they are few."""
    found = others.values() if len(others) <= _BESIDE else []
    return [of_summary(each.get(label), "phi") for each in found]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its files.
        title: What stands over it.
        heads: Column heads, of one or two lines.
        rows: A row each, of as many entries.
        note: What stands under it.
        left: How many of the first columns are text, set to the left.
        groups: Where a new group of rows begins.
        brief: Whether it is on the terminal too, if its section is.
        spare: Columns that give way, the first of them first, where the terminal has no room for all.
    """

    name: str
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    note: str = ""
    left: int = 1
    groups: frozenset[int] = frozenset()
    brief: bool = True
    spare: Sequence[int] = ()

    @property
    def lines(self) -> list[str]:
        """The heads on one line each."""
        return [" ".join(head.replace("-\n", "").split()) for head in self.heads]

    def records(self) -> list[dict[str, float | str]]:
        """A mapping per row, from `head` and `head kind` to the numbers."""
        return [
            {
                f"{head} {kind}".strip(): value
                for head, entry in zip(self.lines, row, strict=True)
                for kind, value in entry.numbers.items()
            }
            for row in self.rows
        ]


def starts(keys: Iterable[object]) -> frozenset[int]:
    """The rows at which a new group begins: those whose key is not the one before.

    Example:
        >>> sorted(starts(["SB", "SB", "LB", "LB", "LB"]))
        [2]
    """
    found = list(keys)
    return frozenset(place for place in range(1, len(found)) if found[place] != found[place - 1])


def tables_of_others(others: Others, heads: Mapping[str, str]) -> list[Table]:
    """A table of what was measured beside sharpness, a row per metric, where they are many.

    Args:
        others: The metrics, each by label.
        heads: The columns' heads by label.
    """
    if len(others) <= _BESIDE:
        return []
    rows = [
        [Entry(metric.replace("_", " ")), *[of_summary(found.get(label), "phi") for label in heads]]
        for metric, found in others.items()
    ]
    title = "Beside sharpness, mean ± standard deviation over n seeds"
    return [Table("beside", title, ["measure", *heads.values()], rows)]


@dataclass(frozen=True)
class Figure:
    """A figure, drawn when it is asked for.

    Attributes:
        name: Of its files.
        title: What stands over it.
        caption: What stands under it.
        draw: Draws it.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Drawing]


@dataclass(frozen=True)
class Section:
    """What a study shows under one title.

    Attributes:
        title: The title.
        sentences: What the numbers say.
        tables: Its tables.
        figures: Its figures.
        brief: Whether it is on the terminal too.
    """

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    brief: bool = False


def under_a_name(name: str, section: Section, brief: bool) -> Section:
    """A part's section under the part's name, with names of tables and figures that are its own.

    Args:
        name: Of the part.
        section: The section.
        brief: Whether it is on the terminal too.
    """
    files = re.sub(r"[^\w.=-]+", "_", name)
    return replace(
        section,
        title=f"{name}: {section.title}",
        tables=[replace(table, name=f"{files}-{table.name}") for table in section.tables],
        figures=[replace(figure, name=f"{files}-{figure.name}") for figure in section.figures],
        brief=brief,
    )
