"""The figures of a study. For each, one function computes the data and one draws it.

Nothing touches pyplot's global state, so figures can be drawn in any thread and without a display.
Colours are Okabe and Ito's (2008), told apart by every kind of colour vision; markers and line styles repeat
what colour says.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from lbdist.analysis.tables import (
    counted_cells,
    epsilon_text,
    headline_epsilon,
    leaderboard,
    phi_column,
    sharpness_values,
)
from lbdist.storage import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER = "#16191d", "#5a626c", "#d8dce1", "#ffffff"
"""The colours that a page may replace by its own; see `report.py`."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 9,
    "text.parse_math": False,  # names of remedies are the user's
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "svg.fonttype": "path",
}


class Mark(NamedTuple):
    """How a method is drawn in every figure of a study."""

    color: str
    marker: str
    line: Any
    width: float
    size: float = 1.0


class Drawn(NamedTuple):
    """A figure with the words that belong under it."""

    figure: Figure
    title: str
    caption: str


def marks(labels: Iterable[str]) -> dict[str, Mark]:
    """Each method's colour, marker and line: SB solid with circles, LB dashed with squares, then remedies."""
    colors = ["#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    shapes = ["^", "D", "v", "P", "X", "<", ">"]  # 5 and 7 have no common factor: 35 remedies differ
    found = {"SB": Mark(INK, "o", "-", 2.0), "LB": Mark("#D55E00", "s", (0, (4, 1.6)), 2.0)}
    remedies = sorted(set(labels) - set(found))
    for place, label in enumerate(remedies):
        shape = shapes[place % 7]
        found[label] = Mark(
            colors[place % 5], shape, "-", 1.3, {"D": 0.85, "P": 1.2, "X": 1.2}.get(shape, 1.05)
        )
    return found


def seeds_text(counts: Iterable[int]) -> str:
    """How many seeds a figure's means are over: `3 seeds`, `1 seed`, `2 to 3 seeds`."""
    found = sorted(set(counts))
    if not found:
        return "no seeds"
    if len(found) == 1:
        return f"{found[0]} seed{'s' * (found[0] > 1)}"
    return f"{found[0]} to {found[-1]} seeds"


# ---------------------------------------------------------------- the data


def curve_data(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy during training: columns `label, epoch, mean, std, n`, one row a method and epoch."""
    cells = counted_cells(rows)
    cells = cells[~cells["diverged"]]
    found = rows[
        (rows["metric"] == "accuracy")
        & (rows["split"] == "test")
        & rows["epoch"].notna()
        & rows["value"].notna()
    ]
    found = found[found["cell"].isin(cells.index)]
    found = found.sort_values("step", kind="stable").drop_duplicates(["cell", "epoch"], keep="last")
    found = found.assign(label=found["cell"].map(cells["label"]))
    data = found.groupby(["label", "epoch"])["value"].agg(mean="mean", std="std", n="size").reset_index()
    return data.astype({"epoch": int})


def scatter_data(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a run that has both: columns `label, seed, accuracy, phi`, φ full and converged."""
    cells = counted_cells(rows)
    values = sharpness_values(rows)
    kept = (values["epsilon"] == headline_epsilon(values)) & (values["space"] == "full")
    found = values[kept & (values["solver"] == "converged")]
    found = found.assign(accuracy=found["cell"].map(cells["accuracy"]))
    found = found.astype({"accuracy": float, "phi": float}).dropna(subset=["accuracy", "phi"])
    return found[["label", "seed", "accuracy", "phi"]].reset_index(drop=True)


def leaderboard_data(rows: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard's order: columns `label, mean, std, n, phi, phi_std`; φ is NaN where not measured."""
    board = leaderboard(rows)
    epsilon = headline_epsilon(sharpness_values(rows))
    data = []
    for _, row in board.iterrows():
        accuracy = row["accuracy"]
        sharpness = row[phi_column(epsilon)] if epsilon is not None else None
        data.append(
            {
                "label": row["method"],
                "mean": accuracy.mean,
                "std": accuracy.std,
                "n": accuracy.n,
                "phi": sharpness.mean if sharpness else math.nan,
                "phi_std": sharpness.std if sharpness else math.nan,
            }
        )
    return pd.DataFrame(data, columns=["label", "mean", "std", "n", "phi", "phi_std"])


# ---------------------------------------------------------------- the drawings


def draw_curves(data: pd.DataFrame) -> Figure:
    """Test accuracy against epoch, a line a method, named at its right end."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.3), layout="constrained")
    axes = figure.add_subplot()
    style = marks(data["label"])
    ends: list[tuple[str, float, float]] = []
    shown = sorted(data["label"].unique(), key=lambda label: label in ("SB", "LB"))  # SB and LB on top
    for place, label in enumerate(shown):
        line = data[data["label"] == label].sort_values("epoch")
        mark = style[label]
        every = max(1, len(line) // 8)
        axes.plot(
            line["epoch"],
            line["mean"],
            color=mark.color,
            linestyle=mark.line,
            linewidth=mark.width,
            marker=mark.marker,
            markersize=5 * mark.size,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            markevery=(place % every, every),  # staggered, so that marks of close lines do not coincide
            label=label,
            zorder=3 + place,
        )
        if line["std"].notna().any():
            low, high = line["mean"] - line["std"].fillna(0), line["mean"] + line["std"].fillna(0)
            axes.fill_between(line["epoch"], low, high, color=mark.color, alpha=0.15, linewidth=0)
        ends.append((label, float(line["epoch"].iloc[-1]), float(line["mean"].iloc[-1])))
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(x=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _name_ends(axes, ends, style)
    return figure


def _name_ends(axes: Axes, ends: list[tuple[str, float, float]], style: dict[str, Mark]) -> None:
    """Writes each line's name beside the axes at its end's height, moved apart where lines end close."""
    from matplotlib.lines import Line2D

    bottom, top = axes.get_ylim()
    right = axes.get_xlim()[1]
    ends = sorted(ends, key=lambda end: end[2])
    wanted = np.array([(end[2] - bottom) / (top - bottom) for end in ends])
    space = min(0.062, 1 / len(ends))
    heights = wanted.copy()
    for _ in range(200):  # push neighbours apart until each has its space
        apart = np.diff(heights)
        close = apart < space - 1e-9
        if not close.any():
            break
        push = np.where(close, (space - apart) / 2, 0)
        heights[:-1] -= push
        heights[1:] += push
        heights += max(0, -heights[0]) - max(0, heights[-1] - 1)
    beside = axes.get_yaxis_transform()
    for (label, epoch, _), start, height in zip(ends, wanted, heights, strict=True):
        mark = style[label]
        values = [bottom + part * (top - bottom) for part in (start, height)]
        from_x = 1.0 if epoch == right else 1.005
        axes.add_line(
            Line2D([from_x, 1.025], values, transform=beside, clip_on=False, color=mark.color, linewidth=0.9)
        )
        axes.add_line(
            Line2D([1.04], values[1:], transform=beside, clip_on=False, color=mark.color, marker=mark.marker,
                   markersize=5, linestyle="none")
        )  # fmt: skip
        axes.text(1.06, values[1], label, transform=beside, va="center", fontweight=_weight(label))


def _weight(label: str) -> str:
    return "bold" if label in ("SB", "LB") else "normal"


def _log_axis(axes: Axes, values: Iterable[float]) -> None:
    """A log x axis around positive values, with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def outward(value: float, up: bool) -> float:
        """The nearest of 1, 2, 5 times a power of ten beyond a value."""
        decade = 10.0 ** math.floor(math.log10(value))
        steps = [step * decade for step in (1, 2, 5, 10)]
        return min(s for s in steps if s >= value) if up else max(s for s in steps if s <= value)

    low, high = outward(min(values) / 1.15, False), outward(max(values) * 1.15, True)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    wide = high / low >= 50
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=2)


def draw_scatter(data: pd.DataFrame, epsilon: float) -> Figure:
    """Test accuracy against sharpness, a point a run; runs whose φ is 0 have no place on a log axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    style = marks(data["label"])
    shown = data[data["phi"] > 0]
    order = shown.groupby("label")["accuracy"].mean().sort_values(ascending=False).index
    for label in order:
        runs = shown[shown["label"] == label]
        mark = style[label]
        axes.plot(
            runs["phi"],
            runs["accuracy"],
            linestyle="none",
            marker=mark.marker,
            markersize=8 * mark.size,
            color=mark.color,
            alpha=0.9,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            label=label,
        )
    if len(shown):
        _log_axis(axes, shown["phi"])
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelspacing=0.9)
        for text in legend.get_texts():
            text.set_fontweight(_weight(text.get_text()))
    axes.margins(y=0.08)
    axes.set_xlabel(f"sharpness φ({epsilon_text(epsilon)}) (dimensionless, log scale): sharper to the right")
    axes.set_ylabel("test accuracy (%)")
    return figure


def draw_leaderboard(data: pd.DataFrame, epsilon: float | None) -> Figure:
    """Test accuracy of each method with SB and LB as reference lines and, where measured, its sharpness."""
    from matplotlib.figure import Figure

    phi = epsilon is not None and (data["phi"] > 0).any()
    height = 1.15 + 0.36 * len(data)
    figure = Figure(figsize=(7.2, height), layout="constrained")
    panels = figure.subplots(1, 2 if phi else 1, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.08})[0]
    style = marks(data["label"])
    places = np.arange(len(data))
    columns = [("mean", "std"), ("phi", "phi_std")]
    for axes, (column, spread) in zip(panels, columns, strict=False):
        log = column == "phi"
        for place, (_, row) in zip(places, data.iterrows(), strict=True):
            value, std = row[column], row[spread]
            if math.isnan(value) or (log and value <= 0):
                axes.text(
                    0.02, place, "no value", transform=axes.get_yaxis_transform(), va="center", color=MUTED
                )
                continue
            mark = style[row["label"]]
            std = 0.0 if math.isnan(std) else std
            below = min(std, 0.999 * value) if log else std
            axes.errorbar(
                value,
                place,
                xerr=[[below], [std]],
                color=mark.color,
                marker=mark.marker,
                markersize=7 * mark.size,
                markeredgecolor=PAPER,
                markeredgewidth=0.7,
                capsize=3 if std else 0,
                linewidth=1.4,
                zorder=3,
            )
            reference = row["label"] in ("SB", "LB")
            if reference:
                axes.axvline(value, color=mark.color, linestyle=mark.line, linewidth=1, alpha=0.75, zorder=2)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if log:
            positive = data[data["phi"] > 0]
            ends = positive["phi"] + positive["phi_std"].fillna(0)
            _log_axis(axes, [*positive["phi"], *ends])
            axes.set_xlabel(f"sharpness φ({epsilon_text(epsilon or 0)}) (log scale)")
        else:
            axes.margins(x=0.08)
            axes.set_xlabel("test accuracy (%)")
    panels[0].set_yticks(places, data["label"])
    for text in panels[0].get_yticklabels():
        text.set_fontweight(_weight(text.get_text()))
    panels[0].set_ylim(len(data) - 0.4, -0.6)
    return figure


def figures(rows: pd.DataFrame) -> dict[str, Drawn]:
    """Every figure that the rows have data for: `leaderboard`, `curves`, `scatter`.

    Args:
        rows: The rows of one study.
    """
    import matplotlib

    drawn: dict[str, Drawn] = {}
    board, curves, runs = leaderboard_data(rows), curve_data(rows), scatter_data(rows)
    epsilon = headline_epsilon(sharpness_values(rows))
    with matplotlib.rc_context(STYLE):
        if board["mean"].notna().any():
            n = board.loc[board["n"] > 0, "n"]
            caption = f"Mean test accuracy {_bars(n)}. Vertical lines mark SB (solid) and LB (dashed)."
            if board["phi"].notna().any():
                caption += (
                    f" Right: sharpness φ({epsilon_text(epsilon or 0)}) in the full space, "
                    "run to convergence; lower is flatter."
                )
            drawn["leaderboard"] = Drawn(
                draw_leaderboard(board, epsilon), "Accuracy and flatness by method", caption
            )
        if len(curves):
            caption = f"Test accuracy against epoch: lines are means, {_bands(curves['n'])}."
            drawn["curves"] = Drawn(draw_curves(curves), "Test accuracy during training", caption)
        if epsilon is not None and (runs["phi"] > 0).any():
            hidden = int((runs["phi"] <= 0).sum())
            n = runs.groupby("label").size()
            caption = (
                f"Each point is one run ({seeds_text(n)} a method): test accuracy against "
                f"φ({epsilon_text(epsilon)}) in the full space, run to convergence."
            )
            if hidden:
                caption += f" {hidden} run{'s' * (hidden > 1)} with φ = 0 cannot be shown on a log axis."
            drawn["scatter"] = Drawn(draw_scatter(runs, epsilon), "Accuracy against sharpness", caption)
    return drawn


def _bars(counts: pd.Series) -> str:
    seeds = seeds_text(counts)
    return f"of {seeds}" if max(counts) == 1 else f"over {seeds}; error bars are ± one standard deviation"


def _bands(counts: pd.Series) -> str:
    if max(counts) == 1:
        return "each of 1 seed, so there is no band"
    return f"bands are ± one standard deviation over {seeds_text(counts)}"


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG document; the same figure gives the same text."""
    return _render(figure, format="svg", salt=name).decode()


def _render(figure: Figure, salt: str, **options: Any) -> bytes:
    import matplotlib

    sink = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        metadata: dict[str, Any] = {"Date": None} if options["format"] == "svg" else {}
        figure.savefig(sink, metadata=metadata, **options)
    return sink.getvalue()


def save_figures(rows: pd.DataFrame, folder: str | Path | Store) -> list[str]:
    """Writes every figure as PNG (150 dots an inch) and SVG, each file whole or not at all.

    Args:
        rows: The rows of one study.
        folder: The study's folder, in which they go to `figures`.

    Returns:
        The files' names, two a figure.
    """
    store, names = Store.of(folder), []
    formats: dict[str, Callable[[Figure, str], bytes]] = {
        "png": lambda figure, name: _render(figure, format="png", salt=name, dpi=150),
        "svg": lambda figure, name: svg(figure, name).encode(),
    }
    for name, drawn in figures(rows).items():
        drawn.figure.supxlabel(textwrap.fill(drawn.caption, 118), x=0.01, ha="left", fontsize=8, color=MUTED)
        for suffix, render in formats.items():
            names.append(f"figures/{name}.{suffix}")
            store.write(names[-1], render(drawn.figure, name))
    return names
