"""The Hessian's spectrum: its density, its largest eigenvalues, and how many are large."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.numbers import epsilon_text
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Figure, Section, Table, of_summary
from lbdist.analysis.statistics import Summary, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_DECADES = 8
"""How far below its peak a density is drawn."""


def sections(runs: Runs, names: pd.Series | None = None) -> list[Section]:
    """A figure of the density and a table of what is large; nothing where no spectrum was measured.

    Args:
        runs: The runs of a study.
        names: What their cells are called; None for the confirmed ones' methods.
    """
    rows = runs.at_ends(names)
    rows = rows[rows["value"].notna()]
    above, density = (rows[rows["metric"] == metric] for metric in ("eigenvalues_above", "density"))
    if above.empty and density.empty:
        return []
    labels = drawing.baselines_first(rows["label"])
    thresholds = sorted(above["position"].unique())
    table = []
    for label in labels:
        own = rows[rows["label"] == label]
        row = [Entry(label)]
        row += [of_summary(_mean(own, metric), "phi") for metric in ("lambda_max", "trace", "trace_error")]
        for threshold in thresholds:
            counts = above[(above["label"] == label) & (above["position"] == threshold)]
            entry = of_summary(summarise(counts["value"]), "phi")
            exact = bool((counts["converged"] == True).all())  # noqa: E712
            row.append(Entry(entry.text + "*" * (not exact), values=entry.values))
        table.append(row)
    heads = ["model", "λmax", "trace", "its error", *[f"above\n{threshold:g}" for threshold in thresholds]]
    note = (
        "Mean ± standard deviation over seeds. Above: how many eigenvalues are larger; a star: estimated "
        "from the density, not counted. The error is the standard error of the trace's estimate."
    )
    tables = [Table("spectrum", "Large eigenvalues", heads, table, note)]
    figures = []
    if len(density):
        counts = density.groupby("label")["cell"].nunique()
        caption = (
            "Density of the Hessian's eigenvalues (stochastic Lanczos quadrature), the mean over "
            f"{drawing.seeds_text(counts)}. Each curve integrates to 1, nearly all of it at zero."
        )
        draw = functools.partial(_draw, density, labels)
        figures = [Figure("spectrum", "Spectral density", caption, draw)]
    return [Section("The Hessian's spectrum", [], tables, figures)]


def _mean(rows: pd.DataFrame, metric: str) -> Summary | None:
    """Its mean over cells; None where it was not measured."""
    found = rows[(rows["metric"] == metric) & rows["position"].isna()]
    return None if found.empty else summarise(found.groupby("cell")["value"].mean())


def _draw(density: pd.DataFrame, labels: list[str]) -> Drawing:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FuncFormatter

    figure = Canvas(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    style = drawing.marks(labels)
    grid = np.linspace(density["position"].min(), density["position"].max(), 1000)
    for label in labels:
        own = density[density["label"] == label]
        if own.empty:
            continue
        curves = [
            np.interp(grid, cell["position"], cell["value"], left=0, right=0)
            for _, cell in own.sort_values("position").groupby("cell")
        ]
        mark, mean = style[label], np.mean(curves, 0)
        axes.plot(
            grid, np.where(mean > 0, mean, np.nan), color=mark.color, linestyle=mark.line,
            linewidth=1.4, marker=mark.marker, markevery=100, markersize=4, label=label,
        )  # fmt: skip
    peak = float(density["value"].max())
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: epsilon_text(value)))
    axes.set_ylim(peak * 10.0**-_DECADES, 3 * peak)
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("density")
    axes.legend(frameon=False)
    return figure
