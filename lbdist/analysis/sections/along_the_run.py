"""Sharpness against the loss along the runs of SB and LB (Keskar et al., Figure 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.derived import changes, points
from lbdist.analysis.numbers import epsilon_text, interval, number, three_digits
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Figure, Section, Table, of_number, of_summary, starts
from lbdist.analysis.sections import beside, reading, solvers
from lbdist.analysis.statistics import summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def sections(runs: Runs) -> list[Section]:
    """The runs, the solvers at their ends, how to read it."""
    return [section(runs), beside.section(runs), solvers.section(runs), reading.section()]


def section(runs: Runs) -> Section:
    """One table and one figure."""
    data, title = points(runs), "Sharpness along the run"
    if data.empty:
        return Section(title, ["Nothing is measured yet."], brief=True)
    box = f"φ({epsilon_text(data['epsilon'].max())})"
    rows = [
        [
            Entry(label),
            of_number(epoch),
            of_summary(summarise(group["loss"]), "phi"),
            of_summary(runs.score.summarise(group["score"])),
            of_summary(summarise(group["phi"]), "phi"),
            of_number(len(group)),
        ]
        for label in drawing.baselines_first(data["label"])
        for epoch, group in data[data["label"] == label].groupby("epoch")
    ]
    heads = [
        "method",
        "epoch",
        runs.score.loss("train loss"),
        f"test\n{runs.score.head}",
        f"sharpness\n{box}",
        "n",
    ]
    note = f"Mean ± standard deviation over n seeds; {box}: full space, converged."
    table = Table(
        "along", "Sharpness along the run", heads, rows, note, groups=starts(row[0].text for row in rows)
    )
    caption = (
        f"{box}, full space, converged, at the models after some epochs; one thin line a run, the thick line "
        "their mean by epoch. Left: against the training loss, which falls to the right. Right: against the "
        "epoch."
    )
    picture = Figure(
        "sharpness_vs_loss", "Sharpness against the loss", caption, lambda: _draw(data, box, runs)
    )
    return Section(title, sentences(data, box), [table], [picture], brief=True)


def sentences(data: pd.DataFrame, box: str) -> list[str]:
    """How sharpness changes along each run."""
    found = []
    for label, change in changes(data).items():
        if not change.n:
            continue
        run = data[data["label"] == label]
        ends = run["epoch"].min(), run["epoch"].max()
        first, last = (run.loc[run["epoch"] == end, "phi"].mean() for end in ends)
        word = "rises" if change.mean > 1 else "falls"
        clear = "" if change.n < 2 or change.low > 1 or change.high < 1 else " (not clearly)"
        factor = max(change.mean, 1 / change.mean)
        text = f"{label}: {box} {word}{clear} by a factor of {number(factor, 1)} along the run, from "
        text += f"{three_digits(first)} to {three_digits(last)}"
        within = f" (95 % interval of the last over the first: {interval(change)})" if change.n > 1 else ""
        found.append(text + within + ".")
    return found


def _draw(data: pd.DataFrame, box: str, runs: Runs) -> Drawing:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    figure = Canvas(figsize=(7.2, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = drawing.baselines_first(data["label"])
    style = drawing.marks(labels)
    for axes, x in zip(panels, ("loss", "epoch"), strict=True):
        for label in labels:
            mark, own = style[label], data[(data["label"] == label) & (data["phi"] > 0)]
            for _, run in own.groupby("cell"):
                run = run.sort_values("epoch")
                axes.plot(
                    run[x], run["phi"], color=mark.color, linestyle=mark.line, linewidth=0.7, alpha=0.45
                )
            mean = own.groupby("epoch")[["loss", "phi"]].mean().reset_index()
            axes.plot(mean[x], mean["phi"], color=mark.color, linestyle=mark.line, linewidth=2.0,
                      marker=mark.marker, markersize=6 * mark.size, markeredgecolor=drawing.PAPER,
                      markeredgewidth=0.7, label=label)  # fmt: skip
    logarithmic = [axes.yaxis for axes in panels]
    for axes in panels:
        axes.set_yscale("log")
    panels[0].set_ylabel(f"sharpness {box} (log scale)")
    if (data["loss"] > 0).all():
        panels[0].set_xscale("log")
        logarithmic.append(panels[0].xaxis)
    for axis in logarithmic:
        drawing.plain_ticks(axis)
    panels[0].invert_xaxis()
    panels[0].set_xlabel("training loss (falls to the right)")
    panels[1].set_xlabel("epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[1].legend(frameon=False)
    return figure
