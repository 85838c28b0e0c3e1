"""Sharpness by solver and space: the paper's procedure run literally, beside the maximum."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lbdist.analysis.numbers import epsilon_text, number, phi
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Section, Table, starts
from lbdist.analysis.statistics import summarise

SOLVERS = ("paper", "converged")


def section(runs: Runs) -> Section:
    """One table; a sentence where nothing was measured."""
    table = sharpness_table(runs)
    if table.empty:
        return Section("Sharpness by solver and space", ["Sharpness was not measured."])
    return Section("Sharpness by solver and space", tables=[_table(table)], brief=True)


def sharpness_table(runs: Runs) -> pd.DataFrame:
    """One row per method, box and space: `paper` and `converged`, each a Summary of φ over runs.

    Beside each solver: how many values were measured, converged and failed, and its mean evaluations, as
    columns `paper_measured`, `paper_converged`, `paper_failed`, `paper_evaluations` and so on.
    """
    order = {label: place for place, label in enumerate(runs.order())}
    table = []
    for (epsilon, space, label), group in runs.sharpness.groupby(["epsilon", "space", "label"]):
        row: dict[str, Any] = {"method": label, "epsilon": epsilon, "space": space}
        for solver in SOLVERS:
            found = group[group["solver"] == solver]
            row[solver] = summarise(found["phi"])
            for column in ("measured", "converged", "failed"):
                row[f"{solver}_{column}"] = int(found[column].sum())
            row[f"{solver}_evaluations"] = found["evaluations"].mean()
        table.append(row)
    table.sort(key=lambda row: (-row["epsilon"], order[row["method"]], row["space"]))
    return pd.DataFrame(table)


def _table(table: pd.DataFrame) -> Table:
    spaces = sorted(table["space"].unique())
    used = [solver for solver in SOLVERS if table[f"{solver}_measured"].any()]
    columns = [(space, solver) for space in spaces for solver in used]
    rows, boxes = [], []
    for (epsilon, method), group in table.groupby(["epsilon", "method"], sort=False):
        boxes.append(epsilon)
        found = group.set_index("space")
        entries = [
            _entry(found.loc[space], solver) if space in found.index else Entry("–")
            for space, solver in columns
        ]
        rows.append([Entry(str(method)), Entry(epsilon_text(epsilon), values={"": epsilon}), *entries])
    heads = ["method", "ε", *[f"{space},\n{solver}" for space, solver in columns]]
    note = (
        "“Paper” is stock L-BFGS-B with 10 iterations, as published; it can stop where it starts and report "
        "a sharp minimiser as flat. “Converged” makes starts until independent ones agree on the maximum, or "
        "its budget is spent; a star marks a φ of which some run's did not agree, or failed. The small line: "
        "how many values met their solver's rule, and the mean evaluations of one. Subspace values are "
        "averaged over the draws of A within a run."
    )
    title = "Sharpness φ by solver: the paper's, run literally, and run to convergence"
    return Table("sharpness", title, heads, rows, note, groups=starts(boxes))


def _entry(row: pd.Series, solver: str) -> Entry:
    """φ of one solver, starred where the converged solver did not converge."""
    item, measured = row[solver], row[f"{solver}_measured"]
    if not measured:
        return Entry("–")
    reached, failed = row[f"{solver}_converged"], row[f"{solver}_failed"]
    star = "*" if solver == "converged" and reached < measured else ""
    small = f"{reached} of {measured}, {number(row[f'{solver}_evaluations'])} evaluations"
    values = {"": item.mean, "std": item.std, "n": item.n, "measured": measured, "converged": reached}
    values |= {"failed": failed, "evaluations": row[f"{solver}_evaluations"]}
    return Entry(phi(item) + star, small + (f", {failed} failed" if failed else ""), values)
