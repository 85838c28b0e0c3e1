"""Test score and sharpness against the global batch (Keskar et al., Figure 4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.numbers import number, phi
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import (
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
    """The sweep, the solvers, how to read it."""
    return [section(runs), beside.section(runs), solvers.section(runs), reading.section()]


def section(runs: Runs) -> Section:
    """One table and one figure over the batches."""
    data, title = sweep(runs), "Accuracy and sharpness by batch"
    if data.empty:
        return Section(title, ["No run is finished yet."], brief=True)
    sharp, fitted = runs.epsilon is not None, any(row.n for row in data["train"])
    head = ["global batch", *([f"train\n{runs.score.head}"] if fitted else []), f"test\n{runs.score.head}"]
    head += [f"sharpness\n{runs.box}"] if sharp else []
    head += heads_of_others(runs.others)
    rows = [
        [
            of_number(row["batch"]),
            *([of_summary(row["train"])] if fitted else []),
            of_summary(row["score"]),
            *([of_summary(row["phi"], "phi")] if sharp else []),
            *of_others(runs.others, row["label"]),
            of_number(row["steps"]),
            of_number(row["score"].n),
        ]
        for _, row in data.iterrows()
    ]
    over = "By global batch, mean ± standard deviation over n seeds"
    table = Table("batch_size", over, [*head, "steps", "n"], rows, left=0)
    bars = drawing.bars(pd.Series([row.n for row in data["score"]]))
    caption = f"Mean test {runs.score.name} {bars}"
    caption += f"; below, {runs.box} in the full space, converged." if sharp else "."
    found = runs.threshold
    if found is not None and found.fall > 0:
        caption += " Dotted: where the score begins to fall, by the best fit; shaded: its 95 % interval."
    picture = Figure("batch_size", "Against the global batch", caption, lambda: _draw(runs, data))
    figures = [picture] if any(row.n for row in data["score"]) else []
    heads = {row["label"]: f"batch {row['batch']:,}" for _, row in data.iterrows()}
    tables = [table, *tables_of_others(runs.others, heads)]
    return Section(title, _sentences(runs, data), tables, figures, brief=True)


def sweep(runs: Runs) -> pd.DataFrame:
    """One row per global batch.

    Returns:
        `batch`, `label`; `score`, `train` (on the training set) and `phi`, Summaries; `steps`; the runs'
        `scores`.
    """
    table = []
    for batch, group in runs.counted.groupby("global_batch_size"):
        sharp = runs.headline.reindex(group.index)
        row = {
            "batch": batch,
            "label": group["label"].iloc[0],
            "score": runs.score.summarise(group["score"]),
            "train": runs.score.summarise(group["train_score"]),
            "phi": summarise(sharp),
        }
        table.append({**row, "steps": group["steps"].mean(), "scores": list(group["score"])})
    return pd.DataFrame(table)


def _sentences(runs: Runs, data: pd.DataFrame) -> list[str]:
    measured = data[[row.n > 0 for row in data["score"]]]
    if len(measured) < 2:
        return ["Fewer than two batches have a finished run."]
    best = max(measured.index, key=lambda place: measured["score"][place].mean)
    row = measured.loc[best]
    said = runs.score.of(number(row["score"].mean, 2))
    sentences = [f"Test {runs.score.name} is highest at batch {number(row['batch'])} ({said})."]
    # the smallest batch from which on every larger one is clearly below the best
    worse = []
    for place in reversed(measured.index):
        if difference(row["scores"], measured["scores"][place]).sign != 1:
            break
        worse.append(measured["batch"][place])
    if worse:
        sentences.append(f"From batch {number(worse[-1])} on it is clearly lower (95 % intervals).")
    else:
        sentences.append("No larger batch is clearly lower (95 % intervals).")
    found = runs.threshold
    if found is not None and found.fall > 0:
        text = (
            f"A plateau that turns into a falling line fits best with the turn at batch {number(found.batch)}"
        )
        if not math.isnan(found.low):
            text += f" (95 % bootstrap interval {number(found.low)} to {number(found.high)})"
        points = runs.score.points
        sentences.append(f"{text}; from there it falls by {number(found.fall, 2)}{points} a doubling.")
    sharp = measured[[item.n > 0 and item.mean > 0 for item in measured["phi"]]]
    if len(sharp) > 1:
        sentences.append(_sharpness(runs, sharp))
    return sentences


def _sharpness(runs: Runs, data: pd.DataFrame) -> str:
    """From the smallest batch to the largest, and how well both are fitted where the highest lies between."""
    rows = [row for _, row in data.iterrows()]
    top = max(range(len(rows)), key=lambda place: rows[place]["phi"].mean)
    first, last = (f"{phi(rows[place]['phi'])} at batch {number(rows[place]['batch'])}" for place in (0, -1))
    if top in (0, len(rows) - 1):
        return f"{runs.box} goes from {first} to {last}."
    highest = f"{phi(rows[top]['phi'])} at batch {number(rows[top]['batch'])}"
    text = f"{runs.box} goes from {first} to {highest}, and down to {last}"
    end, there = (runs.score.of(number(rows[place]["train"].mean, 1)) for place in (-1, top))
    if rows[-1]["train"].n and rows[top]["train"].n and end != there:
        text += f", where as many epochs end at a training {runs.score.name} of {end} instead of {there}"
    return text + "."


def _draw(runs: Runs, data: pd.DataFrame) -> Drawing:
    mark = drawing.marks([])["SB"]

    def line(column: str) -> list[drawing.Series]:
        found = [
            {"x": row["batch"], "mean": row[column].mean, "std": row[column].std}
            for _, row in data.iterrows()
        ]
        return [drawing.Series("", pd.DataFrame(found).dropna(subset="mean"), mark)]

    panels = [(runs.score.axis, line("score"))]
    if runs.epsilon is not None:
        panels.append((f"{runs.box} (log scale)", line("phi")))
    figure = drawing.draw_panels(panels, "global batch (samples, log scale)", log=True, log_y=(1,))
    found = runs.threshold
    if found is not None and found.fall > 0:
        for axes in figure.axes:
            axes.axvline(found.batch, color=drawing.MUTED, linewidth=1, linestyle=(0, (1, 1.5)))
            if not math.isnan(found.low):
                axes.axvspan(found.low, found.high, color=drawing.MUTED, alpha=0.12, linewidth=0)
    return figure
