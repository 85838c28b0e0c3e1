"""Large-batch runs by the epoch of a small-batch run at which they begin (Keskar et al., Figure 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.numbers import interval, number, phi
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import (
    Entry,
    Figure,
    Section,
    Table,
    heads_of_others,
    of_number,
    of_others,
    of_summary,
    tables_of_others,
)
from lbdist.analysis.sections import beside, reading, solvers
from lbdist.analysis.statistics import difference, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def sections(runs: Runs) -> list[Section]:
    """The warm starts, the solvers, how to read it."""
    return [section(runs), beside.section(runs), solvers.section(runs), reading.section()]


def section(runs: Runs) -> Section:
    """One table and one figure over the epochs."""
    data = warm_starts(runs)
    sharp = runs.epsilon is not None
    heads = [
        "begins at",
        f"test\n{runs.score.head}",
        *([f"sharpness\n{runs.box}"] * sharp),
        *heads_of_others(runs.others),
    ]
    rows = [
        [
            Entry(row["label"]),
            of_summary(row["score"]),
            *([of_summary(row["phi"], "phi")] if sharp else []),
            *of_others(runs.others, row["name"]),
            of_number(row["score"].n),
        ]
        for _, row in data.iterrows()
    ]
    title = "LB by where it begins, mean ± standard deviation over n seeds; SB for scale"
    note = "A warm-started run has SB's epochs behind it and then takes as many of LB's as one from x0."
    table = Table("warm_start", title, [*heads, "n"], rows, note)
    caption = f"Final test {runs.score.name} of LB begun at the model of SB after so many epochs (0: at x0), "
    caption += "error bars ± one standard deviation over seeds; the line without marks is SB after as many"
    caption += f"; below, {runs.box}, full space, converged, and the line SB's at its end." if sharp else "."
    picture = Figure("warm_start", "LB begun at SB's models", caption, lambda: _draw(runs, data))
    figures = [picture] if any(row.n for row in data["score"]) else []
    tables = [table, *tables_of_others(runs.others, dict(zip(data["name"], data["label"], strict=True)))]
    return Section("Warm starts", _sentences(runs, data), tables, figures, brief=True)


def warm_starts(runs: Runs) -> pd.DataFrame:
    """SB, LB from x0 and from each epoch: `label, epoch` (NaN for SB), `score, phi` (Summaries), `scores`."""
    cells, table = runs.counted, []
    begun = cells["origin_epoch"].astype(float)
    groups = [("SB", math.nan, cells[cells["method"] == "SB"])]
    groups.append(("LB at x0", 0.0, cells[(cells["method"] != "SB") & begun.isna()]))
    groups += [
        (f"LB at SB's epoch {epoch:g}", epoch, cells[begun == epoch])
        for epoch in sorted(begun.dropna().unique())
    ]
    for label, epoch, group in groups:
        phis = runs.headline.reindex(group.index)
        name = next(iter(group["label"]), "")
        row = {
            "label": label,
            "name": name,
            "epoch": epoch,
            "score": runs.score.summarise(group["score"]),
            "phi": summarise(phis),
        }
        table.append({**row, "scores": list(group["score"])})
    return pd.DataFrame(table)


def _sentences(runs: Runs, data: pd.DataFrame) -> list[str]:
    warm = data[data["epoch"] > 0]
    warm = warm[[item.n > 0 for item in warm["score"]]]
    cold = data[data["epoch"] == 0].iloc[0]
    if warm.empty or not cold["score"].n:
        return ["No warm-started run is finished yet."]
    first = next(
        (row for _, row in warm.iterrows() if difference(row["scores"], cold["scores"]).sign == 1), None
    )
    if first is None:
        text = "No warm start makes LB clearly better than from x0 (95 % intervals)"
    else:
        gain = difference(first["scores"], cold["scores"])
        text = (
            f"From {number(first['epoch'])} epoch{'s' * (first['epoch'] > 1)} of SB on, a warm start makes "
            f"LB clearly better than from x0: by {number(gain.mean, 2)}{runs.score.points} "
            f"(95 % interval {interval(gain)})"
        )
    last = warm.iloc[-1]
    ends = [item for item in (cold["phi"], last["phi"]) if item.n]
    if len(ends) == 2:
        text += (
            f"; {runs.box} goes from {phi(ends[0])} at x0 to {phi(ends[1])} at epoch {number(last['epoch'])}"
        )
    return [text + "."]


def _draw(runs: Runs, data: pd.DataFrame) -> Drawing:
    marks = drawing.marks([])
    marks["SB"] = marks["SB"]._replace(marker="")
    warm = data[data["epoch"].notna()]

    def lines(column: str) -> list[drawing.Series]:
        found = [
            {"x": row["epoch"], "mean": row[column].mean, "std": row[column].std}
            for _, row in warm.iterrows()
        ]
        ends, small = (warm["epoch"].min(), warm["epoch"].max()), data.iloc[0][column]
        along = pd.DataFrame([{"x": x, "mean": small.mean, "std": math.nan} for x in ends])
        if column == "score" and len(curve):
            along = curve.rename(columns={"epoch": "x"}).assign(std=math.nan)
        return [
            drawing.Series(label, points.dropna(subset="mean"), marks[label])
            for label, points in (("LB", pd.DataFrame(found)), ("SB", along))
        ]

    curve = runs.curves[runs.curves["label"] == "SB"]
    panels = [(runs.score.axis, lines("score"))]
    if runs.epsilon is not None:
        panels.append((f"{runs.box} (log scale)", lines("phi")))
    return drawing.draw_panels(panels, "epoch of SB at which LB begins", log_y=(1,))
