"""The settings tried on the validation split, and whether a shortened search ranks as long runs do."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lbdist.analysis.numbers import number, percent
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Section, Table, of_number
from lbdist.analysis.statistics import rank_correlation


def section(runs: Runs) -> Section:
    """The search's table."""
    table = search_table(runs)
    title = "Search on the validation split"
    if table.empty:
        return Section(title, ["No hyperparameter was searched."])
    groups = frozenset(
        place
        for place in range(1, len(table))
        if table["method"].iloc[place] != table["method"].iloc[place - 1]
    )
    rows = [
        [
            Entry(row["method"]),
            Entry(row["setting"] or "–"),
            Entry(percent(row["score"]), values={"": row["score"].mean, "std": row["score"].std}),
            of_number(row["score"].n),
            Entry(str(row["diverged"] or "–"), values={"": row["diverged"]}),
            Entry("chosen" if row["chosen"] else ""),
        ]
        for _, row in table.iterrows()
    ]
    heads = ["method", "setting", f"validation {runs.score.head}", "n", "diverged", "chosen"]
    shown = Table("search", "Settings, best first within a method", heads, rows, left=2, groups=groups)
    return Section(title, _shortened(runs, table), [shown])


def search_table(runs: Runs) -> pd.DataFrame:
    """The settings that were tried, best first within a method.

    Returns:
        Columns `method`, `setting`, `score` (a Summary over the search's seeds), `diverged`, and `chosen`:
        whether the confirmed runs use this setting.
    """
    chosen = set(runs.counted[["label", "setting"]].itertuples(index=False, name=None))
    searched = runs.cells[runs.cells["role"] == "search"]
    table = [
        {
            "method": label,
            "setting": setting,
            "score": runs.score.summarise(group["score"]),
            "diverged": int(group["diverged"].sum()),
            "chosen": (label, setting) in chosen,
        }
        for (label, setting), group in searched.groupby(["label", "setting"])
    ]
    table.sort(key=lambda row: (row["method"], -np.nan_to_num(row["score"].mean, nan=-math.inf)))
    return pd.DataFrame(table, columns=["method", "setting", "score", "diverged", "chosen"])


def _shortened(runs: Runs, table: pd.DataFrame) -> list[str]:
    """What a reader must know of search runs that are shorter than the confirmed ones."""
    search = runs.cells[runs.cells["role"] == "search"]
    short, full = search["epochs"].max(), runs.counted["epochs"].max()
    if math.isnan(short) or math.isnan(full) or short >= full:
        return []
    sentences = [
        f"Search runs took {number(short)} of {number(full)} epochs, and a short search favours weak "
        "remedies."
    ]
    means = runs.counted.groupby("label")["score"].mean()
    chosen = table[table["chosen"]]
    pairs = [(row["score"].mean, means[row["method"]]) for _, row in chosen.iterrows()]
    correlation = rank_correlation(*zip(*pairs, strict=True)) if len(pairs) > 2 else math.nan
    if math.isnan(correlation):
        return [*sentences, "Too few remedies were searched to say how short and long runs rank them."]
    return [
        *sentences,
        f"Over the {len(pairs)} remedies, the ranks of the short runs (validation) and of the confirmed ones "
        f"(test) correlate by {number(correlation, 2)} (Spearman; 1: the same order).",
    ]
