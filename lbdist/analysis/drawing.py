"""How figures look and are written; what they show is in `sections`.

Nothing touches pyplot's global state, so figures can be drawn in any thread and without a display.
Colours are Okabe and Ito's (2008), told apart by every kind of colour vision; markers and line styles repeat
what colour says.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
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


def baselines_first(labels: Iterable[str]) -> list[str]:
    """Different labels, SB and LB before the others."""
    return sorted(dict.fromkeys(labels), key=lambda label: (label != "SB", label != "LB"))


def seeds_text(counts: Iterable[int]) -> str:
    """How many seeds a figure's means are over: `3 seeds`, `1 seed`, `2 to 3 seeds`."""
    found = sorted(set(counts))
    if not found:
        return "no seeds"
    if len(found) == 1:
        return f"{found[0]} seed{'s' * (found[0] > 1)}"
    return f"{found[0]} to {found[-1]} seeds"


def name_ends(
    axes: Axes, ends: list[tuple[str, float, float]], style: dict[str, Mark], beside_each_other: int = 1
) -> None:
    """Writes each line's name beside the axes at its end's height, moved apart where lines end close.

    Args:
        axes: Where.
        ends: Each line's name, and the point at which it ends.
        style: How lines are drawn.
        beside_each_other: How many panels share the figure's width.
    """
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
    scale = 2.0 * beside_each_other - 1.0  # in shares of a panel's width
    for (label, epoch, _), start, height in zip(ends, wanted, heights, strict=True):
        mark = style[label]
        values = [bottom + part * (top - bottom) for part in (start, height)]
        from_x = 1.0 if epoch == right else 1 + 0.005 * scale
        common: dict[str, Any] = {"transform": beside, "clip_on": False, "color": mark.color}
        axes.add_line(Line2D([from_x, 1 + 0.025 * scale], values, linewidth=0.9, **common))
        common |= {"marker": mark.marker, "markersize": 5, "linestyle": "none"}
        axes.add_line(Line2D([1 + 0.04 * scale], values[1:], **common))
        axes.text(1 + 0.06 * scale, values[1], label, transform=beside, va="center", fontweight=weight(label))


def draw_curve(axes: Axes, line: pd.DataFrame, mark: Mark, label: str, place: int, every: int) -> None:
    """A line with its band of one standard deviation: columns `epoch, mean, std`.

    Args:
        axes: Where.
        line: The points.
        mark: How.
        label: Its name in a legend.
        place: Which of the lines it is, by which its marks are staggered; later ones lie on top.
        every: Points from one mark to the next.
    """
    line = line.sort_values("epoch")
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


def weight(label: str) -> str:
    """SB and LB stand out."""
    return "bold" if label in ("SB", "LB") else "normal"


def log_axis(axes: Axes, values: Iterable[float]) -> None:
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


def plain_ticks(axis: Axis) -> None:
    """Ticks as plain numbers on a logarithmic axis that has its data: 1, 2 and 5 times powers of ten.

    On a long axis they are the powers alone.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    short = high < 200 * low  # more numbers than that run into each other
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def bars(counts: pd.Series) -> str:
    """What a caption says of error bars."""
    seeds = seeds_text(counts)
    return f"of {seeds}" if max(counts) == 1 else f"over {seeds}; error bars are ± one standard deviation"


def bands(counts: pd.Series) -> str:
    """What a caption says of bands."""
    if max(counts) == 1:
        return "each of 1 seed, so there is no band"
    return f"bands are ± one standard deviation over {seeds_text(counts)}"


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG document, in which marks say their values; the same figure gives the same text."""
    said = _said_by_marks(figure)
    head, *groups = render(figure, format="svg", salt=name).decode().split('<g id="marks-')
    found = [head]
    for group in groups:
        number, _, rest = group.partition('"')
        own, end, others = rest.partition("</g>")
        line, *marks = re.split(r"(?=<use )", own)
        titles = (f"><title>{html.escape(text, quote=False)}</title></use>" for text in said[int(number)])
        marks = [mark.replace("/>", title, 1) for mark, title in zip(marks, titles, strict=True)]
        found.append(f'<g id="marks-{number}"{line}{"".join(marks)}{end}{others}')
    return "".join(found)


def _said_by_marks(figure: Figure) -> list[list[str]]:
    """What each mark of each line of a figure stands for; the lines are `marks-0` and so on in its SVG."""
    said: list[list[str]] = []
    for axes in figure.axes:
        axes.get_xlim()  # by which the limits are set that transforms go by
        names = {id(bars[0]): bars.get_label() for bars in axes.containers if isinstance(bars, tuple)}
        x_is, y_is = _reads(axes.xaxis), _reads(axes.yaxis)
        for line in axes.lines:
            drawn = line.get_marker() not in ("None", "", " ", None, "|", "_")  # the last are ends of bars
            if not drawn or line.get_transform() != axes.transData:
                continue
            every = line.get_markevery()
            chosen = slice(every[0], None, every[1]) if isinstance(every, tuple) else slice(None, None, every)
            points = np.asarray(line.get_xydata(), float)[chosen].reshape(-1, 2)
            with np.errstate(invalid="ignore", divide="ignore"):
                there = np.isfinite(axes.transData.transform(points)).all(axis=1)  # else it has no mark
            name = str(names.get(id(line)) or line.get_label())
            start = "" if name.startswith("_") or name == "None" else f"{name}: "
            line.set_gid(f"marks-{len(said)}")
            said.append([start + ", ".join(filter(None, (x_is(x), y_is(y)))) for x, y in points[there]])
    return said


def _reads(axis: Axis) -> Callable[[float], str]:
    """How a value on an axis is read: with the axis's name, or as what stands there, as in a list."""
    from matplotlib.ticker import FixedLocator

    name = axis.get_label_text()
    if not name and isinstance(axis.get_major_locator(), FixedLocator):
        places = list(axis.get_majorticklocs())
        listed = dict(zip(places, axis.get_major_formatter().format_ticks(places), strict=True))
        return lambda value: listed.get(value, "")
    name = re.sub(r"[ (,]*\(?log scale\).*", "", name)
    return lambda value: f"{name} {value:,.4g}".strip()


def render(figure: Figure, salt: str, **options: Any) -> bytes:
    """A figure in a format of matplotlib's; the same figure gives the same bytes."""
    import matplotlib

    sink = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        metadata: dict[str, Any] = {"Date": None} if options["format"] == "svg" else {}
        figure.savefig(sink, metadata=metadata, **options)
    return sink.getvalue()


class Series(NamedTuple):
    """A line of `draw_panels`: columns `x, mean, std` of a frame, std NaN where there is one run."""

    label: str
    data: pd.DataFrame
    mark: Mark


def draw_panels(
    panels: Sequence[tuple[str, Sequence[Series]]],
    x_label: str,
    *,
    log: bool = False,
    log_y: Sequence[int] = (),
) -> Figure:
    """Panels above each other that share their x axis, with error bars of one standard deviation.

    Args:
        panels: The y axis's name and the lines of each.
        x_label: The x axis's name.
        log: Whether x is on a log axis, with a tick at each of its values.
        log_y: Panels whose y axis is logarithmic; values that are not positive have no place on it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    figure = Figure(figsize=(7.2, 0.6 + 2.5 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axis, (name, lines)) in enumerate(zip(axes, panels, strict=True)):
        for line in lines:
            data, mark = line.data, line.mark
            low = data["std"].fillna(0.0)
            if place in log_y:
                data = data[data["mean"] > 0]
                low = np.minimum(low, 0.9 * data["mean"])
            axis.errorbar(
                data["x"],
                data["mean"],
                yerr=np.array([low.reindex(data.index), data["std"].fillna(0.0)])
                if data["std"].notna().any()
                else None,
                color=mark.color,
                marker=mark.marker,
                linestyle=mark.line,
                linewidth=1.4,
                markersize=6 * mark.size,
                markeredgecolor=PAPER,
                markeredgewidth=0.7,
                capsize=3,
                label=line.label,
            )
        if place in log_y:
            axis.set_yscale("log")
            plain_ticks(axis.yaxis)
        axis.set_ylabel(name)
        if len(lines) > 1:
            axis.legend(loc="best", frameon=False)
    last, values = axes[-1], sorted({x for _, lines in panels for line in lines for x in line.data["x"]})
    if log:
        last.set_xscale("log")
        last.xaxis.set_major_locator(FixedLocator(values))
        last.xaxis.set_minor_locator(NullLocator())
        last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    else:
        last.xaxis.set_major_locator(MaxNLocator(integer=all(float(x).is_integer() for x in values)))
    last.set_xlabel(x_label)
    return figure
