"""Test score during training, and against sharpness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.drawing import seeds_text
from lbdist.analysis.numbers import epsilon_text
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Figure, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def section(runs: Runs) -> Section:
    """The figures that the runs have data for."""
    figures, points = [], scatter_data(runs)
    axis, name = runs.score.axis, runs.score.name
    curves = {split: runs.curves_on(split) for split in ("train", "test")}
    curves = {split: data for split, data in curves.items() if len(data)}
    if "test" in curves:
        where = "on the training set (left) and on the test set (right)"
        where = where if len(curves) > 1 else "on the test set"
        caption = (
            f"{name.capitalize()} against epoch, {where}, evaluated in the runs' own precision: lines are "
            f"means, {drawing.bands(curves['test']['n'])}."
        )
        title = f"{name.capitalize()} during training"
        figures.append(Figure("curves", title, caption, lambda: draw_curves(curves, axis)))
    epsilon = runs.epsilon
    if epsilon is not None and (points["phi"] > 0).any():
        hidden = int((points["phi"] <= 0).sum())
        caption = (
            f"Each point is one run ({seeds_text(points.groupby('label').size())} a method): test {name} "
            f"against {runs.box} in the full space, run to convergence."
        )
        if hidden:
            caption += f" {hidden} run{'s' * (hidden > 1)} with φ = 0 cannot be shown on a log axis."
        title = f"{name.capitalize()} against sharpness"
        figures.append(Figure("scatter", title, caption, lambda: draw_scatter(points, epsilon, axis)))
    return Section("During training, and at its end", figures=figures)


def scatter_data(runs: Runs) -> pd.DataFrame:
    """One row per run that has both: columns `label, seed, score, phi`, φ in the headline's box."""
    cells = runs.with_headline
    return cells.dropna(subset=["score", "phi"])[["label", "seed", "score", "phi"]].reset_index(drop=True)


def draw_curves(curves: Mapping[str, pd.DataFrame], axis: str = "test accuracy (%)") -> Drawing:
    """Score against epoch, a panel a split, a line per method, named at the right end of the last panel."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    panels = figure.subplots(1, len(curves), sharex=True, squeeze=False)[0]
    last = list(curves.values())[-1]
    style = drawing.marks(last["label"])
    shown = sorted(last["label"].unique(), key=lambda label: label in ("SB", "LB"))  # SB and LB on top
    ends: list[tuple[str, float, float]] = []
    for axes, (split, data) in zip(panels, curves.items(), strict=True):
        for place, label in enumerate(shown):
            line = data[data["label"] == label].sort_values("epoch")
            drawing.draw_curve(axes, line, style[label], label, place, max(1, len(line) // 6))
            if data is last:
                ends.append((label, float(line["epoch"].iloc[-1]), float(line["mean"].iloc[-1])))
        axes.set_xlabel("epoch")
        axes.set_ylabel(axis.replace("test", split))
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawing.name_ends(panels[-1], ends, style, len(panels))
    return figure


def draw_scatter(data: pd.DataFrame, epsilon: float, axis: str = "test accuracy (%)") -> Drawing:
    """Test score against sharpness, a point per run; runs whose φ is 0 have no place on a log axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    style = drawing.marks(data["label"])
    shown = data[data["phi"] > 0]
    order = shown.groupby("label")["score"].mean().sort_values(ascending=False).index
    for label in order:
        runs = shown[shown["label"] == label]
        mark = style[label]
        axes.plot(
            runs["phi"],
            runs["score"],
            linestyle="none",
            marker=mark.marker,
            markersize=8 * mark.size,
            color=mark.color,
            alpha=0.9,
            markeredgecolor=drawing.PAPER,
            markeredgewidth=0.8,
            label=label,
        )
    if len(shown):
        drawing.log_axis(axes, shown["phi"])
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelspacing=0.9)
        for text in legend.get_texts():
            text.set_fontweight(drawing.weight(text.get_text()))
    axes.margins(y=0.08)
    axes.set_xlabel(f"sharpness φ({epsilon_text(epsilon)}) (dimensionless, log scale): sharper to the right")
    axes.set_ylabel(axis)
    return figure
