"""Landscapes: slices between models (Keskar et al., Figures 3 and 7) and planes around each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.derived import rise
from lbdist.analysis.numbers import number, three_digits
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Figure, Section, Table
from lbdist.analysis.sections import beside, reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_PATHS = {False: "α x + (1 − α) x(SB)", True: "sin(απ/2) x + cos(απ/2) x(SB)"}
_LOSS, _SCORE = "#0072B2", "#D55E00"


def sections(runs: Runs) -> list[Section]:
    """Slices to each method, planes, how to read them."""
    return [_slices(runs), _planes(runs), beside.section(runs), reading.section()]


def slices(runs: Runs) -> pd.DataFrame:
    """One row per point: `label` (of the other model), `curved, split, metric, alpha, mean, std, n`."""
    rows = runs.measurements
    rows = rows[
        rows["position"].notna() & rows["value"].notna() & rows["other_cell"].isin(runs.counted.index)
    ]
    rows = rows.assign(
        label=rows["other_cell"].map(runs.counted["label"]),
        curved=rows["curvilinear"] == True,  # noqa: E712
    )
    found = rows.groupby(["label", "curved", "split", "metric", "position"])["value"]
    table = found.agg(mean="mean", std="std", n="size").reset_index()
    return table.rename(columns={"position": "alpha"})


def planes(runs: Runs) -> pd.DataFrame:
    """One row per point: `label`, `seed`, `a`, `b` and the training `loss`."""
    rows = runs.rows[runs.rows["position_2"].notna() & (runs.rows["metric"] == "loss")]
    rows = rows[(rows["split"] == "train") & rows["cell"].isin(runs.counted.index) & rows["value"].notna()]
    return pd.DataFrame(
        {
            "label": rows["cell"].map(runs.counted["label"]),
            "seed": rows["cell"].map(runs.counted["seed"]),
            "a": rows["position"],
            "b": rows["position_2"],
            "loss": rows["value"],
        }
    )


def _slices(runs: Runs) -> Section:
    data, title = slices(runs), "Between the models"
    if data.empty:
        return Section(title, ["No slice is measured yet."], brief=True)
    rows, figures = [], []
    for label, group in data.groupby("label"):
        for curved, path in group.groupby("curved"):
            losses = path[(path["metric"] == "loss") & (path["split"] == "train")].set_index("alpha")["mean"]
            if losses.empty:
                continue
            ends = [float(losses.iloc[np.abs(losses.index - at).argmin()]) for at in (0, 1)]
            between = losses[(losses.index > 0) & (losses.index < 1)]
            barrier = float(between.max()) - max(ends) if len(between) else math.nan
            rises = [rise(losses, at) for at in (0, 1)]
            rows.append(
                [
                    Entry(str(label)),
                    Entry("curve" if curved else "line"),
                    *[Entry(three_digits(value), values={"": value}) for value in (*ends, barrier, *rises)],
                ]
            )
        name = f"slices-{label.lower().replace(' + ', '-').replace(' ', '-')}"
        caption = (
            f"Mean over {drawing.seeds_text(group['n'])}. Solid: training set; dashed: test set. "
            f"Circles: loss (left, logarithmic); squares: {runs.score.name} (right). SB at 0, {label} at 1. "
            "Batch norm takes the statistics of each evaluated batch."
        )
        draw = lambda group=group, label=label: _draw_slices(group, str(label), runs)  # noqa: E731
        figures.append(Figure(name, f"From SB to {label}", caption, draw))
    heads = ["to", "path", "loss\nat SB", "loss there", "barrier\nbetween", "rise at SB", "rise there"]
    note = (
        "Training loss, mean over seeds. Barrier: the highest loss between the two models over the higher of "
        "theirs. Rise: the mean of the loss at α ± 0.25 over that at the model; a sharper model rises more."
    )
    table = Table("slices", "Loss along paths from SB to the others", heads, rows, note, left=2)
    return Section(title, _sentences(rows), [table], figures, brief=True)


def _sentences(rows: list[list[Entry]]) -> list[str]:
    found = []
    for row in rows:
        there, own = float(row[6].values[""]), float(row[5].values[""])
        if row[1].text == "line" and own > 0 and there > 0:
            ratio, word = max(there / own, own / there), "more" if there > own else "less"
            found.append(
                f"Along the line the loss rises {number(ratio, 1)} times {word} around {row[0].text} than "
                "around SB."
            )
    return found


def _planes(runs: Runs) -> Section:
    data, title = planes(runs), "Around each model"
    if data.empty:
        return Section(title, ["No plane is measured."])
    seed = data["seed"].min()
    shown = data[data["seed"] == seed]
    caption = (
        f"Training loss over two random directions, each filter as long as the model's (seed {seed}); the "
        "cross is the model. One scale for all: the closer the lines, the sharper."
    )
    return Section(
        title, figures=[Figure("planes", "Planes around the models", caption, lambda: _draw_planes(shown))]
    )


def _draw_slices(data: pd.DataFrame, label: str, runs: Runs) -> Drawing:
    from matplotlib.figure import Figure as Canvas

    paths = sorted(data["curved"].unique())
    figure = Canvas(figsize=(7.2, 0.4 + 2.9 * len(paths)), layout="constrained")
    panels = figure.subplots(len(paths), 1, squeeze=False)[:, 0]
    for axis, curved in zip(panels, paths, strict=True):
        other = axis.twinx()
        path = data[data["curved"] == curved]
        for split, dashes in (("train", "-"), ("test", (0, (4, 1.6)))):
            for metric, panel, color, marker in (
                ("loss", axis, _LOSS, "o"),
                (runs.score.name, other, _SCORE, "s"),
            ):
                line = path[(path["split"] == split) & (path["metric"] == metric)].sort_values("alpha")
                if metric == "loss":
                    line = line[line["mean"] > 0]
                panel.plot(line["alpha"], line["mean"], color=color, linestyle=dashes, marker=marker,
                           markersize=3, linewidth=1.4, label=f"{metric}, {split}")  # fmt: skip
        axis.set_yscale("log")
        drawing.plain_ticks(axis.yaxis)
        axis.set_ylabel("loss", color=_LOSS)
        other.set_ylabel(runs.score.head, color=_SCORE)
        other.spines["right"].set_visible(True)
        other.grid(False)
        for at, name in ((0, "SB"), (1, label)):
            axis.axvline(at, color=drawing.MUTED, linewidth=0.9)
            axis.text(at, 1.01, name, transform=axis.get_xaxis_transform(), ha="center", fontweight="bold")
        axis.set_xlabel(f"α of {_PATHS[bool(curved)].replace(' x ', f' x({label}) ')}")
        lines = [*axis.get_lines()[:2], *other.get_lines()[:2]]
    figure.legend(lines, [str(line.get_label()) for line in lines], frameon=False, loc="outside upper center",
                  ncols=4, fontsize=8)  # fmt: skip
    return figure


def _draw_planes(data: pd.DataFrame) -> Drawing:
    from matplotlib.figure import Figure as Canvas

    labels = drawing.baselines_first(sorted(data["label"]))
    columns = min(3, len(labels))
    lines = math.ceil(len(labels) / columns)
    figure = Canvas(figsize=(7.2, 0.5 + 2.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    floor = data.loc[data["loss"] > 0, "loss"].min()
    top = data["loss"].max()
    levels = np.geomspace(floor, max(top, 1.001 * floor), 16)
    for axis in panels.flat[len(labels) :]:
        axis.set_visible(False)
    for axis, label in zip(panels.flat, labels, strict=False):
        grid = data[data["label"] == label].pivot(index="b", columns="a", values="loss").clip(lower=floor)
        filled = axis.contourf(grid.columns, grid.index, grid, levels=levels, norm="log", cmap="viridis")
        axis.contour(
            grid.columns, grid.index, grid, levels=levels, colors="white", linewidths=0.5, norm="log"
        )
        axis.plot(0, 0, marker="+", color="white", markersize=9)
        axis.set_title(str(label), fontsize=9, fontweight=drawing.weight(str(label)))
        axis.grid(False)
        axis.set_aspect("equal")
        axis.set_xlabel("one direction (filter lengths)")
        axis.label_outer()
    for axis in panels[:, 0]:
        axis.set_ylabel("the other direction")
    bar = figure.colorbar(filled, ax=panels, shrink=0.8)
    bar.set_label("training loss")
    bar.ax.minorticks_off()
    ticks = np.geomspace(levels[0], levels[-1], 5)
    bar.set_ticks(list(ticks), labels=[three_digits(tick) for tick in ticks])
    return figure
