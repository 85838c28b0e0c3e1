"""Two studies side by side: their methods, their claims, and what can be told apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.claims import claims
from lbdist.analysis.numbers import interval, listed, number
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Figure, Section, Table, of_difference, of_summary
from lbdist.analysis.statistics import Difference, difference, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def sections(a: Runs, b: Runs) -> list[Section]:
    """What the two have in common; the difference is B minus A.

    Args:
        a: The runs of a study.
        b: Those of another.
    """
    data = compared(a, b)
    return [_methods(a, b, data), *_claims(a, b)]


def compared(a: Runs, b: Runs) -> pd.DataFrame:
    """One row per method that either has, in the order of B, then of A.

    Returns:
        Columns `label`; `a`, `b`, the Summaries of the score; `more`, the Difference B - A; `phi_a`, `phi_b`
        in the headline's box; `sharper`, the Difference of their logarithms; `same`, whether all runs are the
        same ones.
    """
    rows = []
    shared = a.epsilon if a.epsilon == b.epsilon else None
    labels = list(dict.fromkeys([*b.order(), *a.order()])) if len(a.cells) and len(b.cells) else []
    for label in labels:
        cells = [side.counted[side.counted["label"] == label] for side in (a, b)]
        scores = [own["score"].dropna() for own in cells]
        phis = [side.headline.reindex(own.index).dropna() for side, own in zip((a, b), cells, strict=True)]
        phis = [found if shared is not None else found[:0] for found in phis]
        logs = [np.log(found[found > 0]) for found in phis]
        rows.append(
            {
                "label": label,
                "a": a.score.summarise(scores[0]),
                "b": b.score.summarise(scores[1]),
                "more": difference(scores[1], scores[0]),
                "phi_a": summarise(phis[0]),
                "phi_b": summarise(phis[1]),
                "sharper": difference(logs[1], logs[0]),
                "same": len(scores[0]) > 0 and set(cells[0].index) == set(cells[1].index),
            }
        )
    return pd.DataFrame(rows)


def _methods(a: Runs, b: Runs, data: pd.DataFrame) -> Section:
    title = "Methods"
    if a.score.name != b.score.name:
        text = f"A is scored by {a.score.name}, B by {b.score.name}: there is nothing to compare."
        return Section(title, [text], brief=True)
    if data.empty:
        return Section(title, ["There are no finished runs in both."], brief=True)
    measured = any(row["phi_a"].n or row["phi_b"].n for _, row in data.iterrows())
    heads = [
        "method",
        f"A: test\n{a.score.head}",
        f"B: test\n{a.score.head}",
        a.score.in_points("B minus\nA"),
    ]
    heads += [f"A:\n{a.box}", f"B:\n{a.box}", "B over A,\ntimes"] if measured else []
    heads += ["n"]
    rows = [
        [
            Entry(row["label"], "the same runs" if row["same"] else ""),
            of_summary(row["a"]),
            of_summary(row["b"]),
            of_difference(row["more"]),
            *([of_summary(row["phi_a"], "phi"), of_summary(row["phi_b"], "phi")] if measured else []),
            *([_times(row["sharper"])] if measured else []),
            Entry(f"{row['a'].n}, {row['b'].n}", values={"A": row["a"].n, "B": row["b"].n}),
        ]
        for _, row in data.iterrows()
    ]
    note = (
        "Mean ± sample standard deviation over n runs; the small line is the 95 % interval, Welch's: of the "
        "difference, and of the logarithms for the ratio. Seeds are not paired."
    )
    table = Table("methods", "Mean ± standard deviation over n runs", heads, rows, note, spare=[4, 5])
    figures = []
    both = data[[row["a"].n > 0 and row["b"].n > 0 for _, row in data.iterrows()]]
    if len(both):
        caption = (
            f"Difference in test {a.score.name}, B minus A, with its 95 % interval where there are seeds."
        )
        figures.append(Figure("differences", "B minus A", caption, lambda: _draw(both, a)))
    return Section(title, _sentences(a, data), [table], figures, brief=True)


def _times(item: Difference) -> Entry:
    """A ratio from a difference of logarithms."""
    if math.isnan(item.mean):
        return Entry("–")
    ends = (math.exp(item.low), math.exp(item.high)) if not math.isnan(item.low) else (math.nan, math.nan)
    return Entry(number(math.exp(item.mean), 2), interval(Difference(math.exp(item.mean), *ends)),
                 {"": math.exp(item.mean), "low": ends[0], "high": ends[1]})  # fmt: skip


def _sentences(a: Runs, data: pd.DataFrame) -> list[str]:
    """Which methods differ, by their intervals."""
    both = [row for _, row in data.iterrows() if row["a"].n and row["b"].n]
    signs = {row["label"]: row["more"].sign for row in both if not row["same"]}
    found = []
    for sign, word in ((1, "higher"), (-1, "lower")):
        if names := [label for label, own in signs.items() if own == sign]:
            found.append(f"Test {a.score.name} is {word} in B for {listed(names)}.")
    if names := [label for label, own in signs.items() if own == 0]:
        found.append(f"No clear difference for {listed(names)}.")
    if names := [label for label, own in signs.items() if own is None]:
        found.append(f"Single runs, which settle nothing, for {listed(names)}.")
    if names := [row["label"] for row in both if row["same"]]:
        found.append(f"The same runs in both: {listed(names)}.")
    if names := [row["label"] for _, row in data.iterrows() if not (row["a"].n and row["b"].n)]:
        found.append(f"Only in one of them: {listed(names)}.")
    return found


def _claims(a: Runs, b: Runs) -> list[Section]:
    """The claims of the paper that both have numbers for."""
    ours = {claim.text: claim for claim in claims(a)} if len(a.cells) else {}
    theirs = {claim.text: claim for claim in claims(b)} if len(b.cells) else {}
    shared = [text for text in ours if text in theirs]
    if not shared:
        return []
    rows = [
        [Entry(text, ours[text].rule), Entry(ours[text].verdict), Entry(theirs[text].verdict),
         Entry(ours[text].ours), Entry(theirs[text].ours)]
        for text in shared
    ]  # fmt: skip
    other = [text for text in shared if ours[text].verdict != theirs[text].verdict]
    said = f"{len(other)} of {len(shared)} claims of the paper have another verdict in B"
    said += f": {listed([f'“{text}”' for text in other])}." if other else "."
    heads = ["claim", "A", "B", "A: numbers", "B: numbers"]
    table = Table("claims", "Claims of the paper", heads, rows, left=5, spare=[3, 4])
    return [Section("Claims of the paper", [said], [table], brief=True)]


def _draw(data: pd.DataFrame, runs: Runs) -> Drawing:
    """Each method's difference with its interval, around zero."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7.2, 1.1 + 0.34 * len(data)), layout="constrained")
    axes = figure.add_subplot()
    style = drawing.marks(data["label"])
    for place, (_, row) in enumerate(data.iterrows()):
        item, mark = row["more"], style[row["label"]]
        ends = [[item.mean - item.low], [item.high - item.mean]] if not math.isnan(item.low) else None
        axes.errorbar(item.mean, place, xerr=ends, color=mark.color, marker=mark.marker,
                      markersize=7 * mark.size, capsize=3, linewidth=1.4)  # fmt: skip
    axes.axvline(0, color=drawing.MUTED, linewidth=1)
    axes.set_yticks(range(len(data)), list(data["label"]))
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"B minus A: {runs.score.axis}")
    return figure
