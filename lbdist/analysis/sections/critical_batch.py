"""Steps to a score by the batch, and the critical batch in three ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lbdist.analysis import critical, drawing, to_score
from lbdist.analysis.numbers import number
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Figure, Section, Table, of_number, of_summary, starts
from lbdist.analysis.statistics import Summary, geometric, rank_correlation
from lbdist.analysis.to_score import CriticalBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def sections(runs: Runs, targets: Sequence[float] | None = None, tolerance: float = 0.01) -> list[Section]:
    """Steps to each score, then the critical batch along training."""
    data, title = to_score.points(runs), "Steps to a score"
    plain = data[data["remedy"] == "none"]
    if plain["global_batch_size"].nunique() < 2:
        return [Section(title, ["Fewer than two batches have a finished run."], brief=True)]
    goals = list(targets) if targets else critical.targets(plain)
    found = critical.curves(data, goals)
    fits = {goal: critical.by_steps(found, goal) for goal in goals}
    return [_steps(runs, found, goals, fits), _critical(runs, plain, fits, tolerance)]


def _reached(steps: Sequence[float], early: bool, factor: float = 1.0) -> Entry:
    """The geometric mean of the runs that reached a score, and how many did where not all did."""
    item = geometric(factor * np.array(steps))
    values = {"": item.mean, "std": item.std, "n": item.n, "of": len(steps)}
    if item.n == 0:
        return Entry("not reached", values=values)
    lost = f" ({item.n}/{len(steps)})" if item.n < len(steps) else ""
    return Entry(("≤ " if early else "") + number(item.mean) + lost, values=values)


def _steps(
    runs: Runs, found: pd.DataFrame, goals: Sequence[float], fits: dict[float, CriticalBatch | None]
) -> Section:
    heads = ["method", "batch", *[f"steps to\n{number(goal, 1)}" for goal in goals]]
    heads += [f"samples to\n{number(goals[-1], 1)}"]
    rows = []
    for label, group in found.groupby("label", sort=False):
        batch = int(group["batch"].iloc[0])
        entries = [_reached(row["steps"], row["early"]) for _, row in group.iterrows()]
        last = group.iloc[-1]
        plain = last["remedy"] == "none"
        samples = _reached(last["steps"], last["early"], batch) if plain else Entry("–")
        rows.append([Entry(str(label)), of_number(batch), *entries, samples])
    note = (
        f"First step at which the test curve is at the {runs.score.name}, by the line between its points; "
        "geometric mean over the runs that reach it, how many of them in brackets where not all "
        "do; ≤ where some are there when they are first evaluated."
    )
    table = Table("steps_to_score", f"Steps to a test {runs.score.head}, by method", heads, rows, note)
    plain = found[found["remedy"] == "none"]
    caption = (
        f"Steps to a test {runs.score.name} against the global batch, without a remedy: geometric means over "
        "the runs that reach it. Lines: steps = least × (1 + critical / batch), fitted."
    )
    figure = Figure("steps_to_score", "Steps to a score", caption, lambda: _draw_steps(runs, plain, fits))
    ends = plain[plain["goal"] == goals[-1]]
    first, last = (geometric(ends.iloc[place]["steps"]).mean for place in (0, -1))
    sentences = []
    if not (math.isnan(first) or math.isnan(last)):
        grown, fewer = ends.iloc[-1]["batch"] / ends.iloc[0]["batch"], first / last
        sentences.append(
            f"To {runs.score.of(number(goals[-1], 1))}, a batch {number(grown, 1)} times as large takes "
            f"{number(fewer, 2)} times fewer steps, and {number(grown / fewer, 2)} times the samples."
        )
    return Section("Steps to a score", sentences, [table], [figure], brief=True)


def _critical(
    runs: Runs, plain: pd.DataFrame, fits: dict[float, CriticalBatch | None], tolerance: float
) -> Section:
    by_steps, by_noise = critical.along(runs, plain, fits), critical.noise(runs)
    branched = critical.branches(runs, tolerance)
    title = "The critical batch"
    rows = []
    for _, row in by_steps.iterrows():
        fit: CriticalBatch = row["fit"]
        text, beyond = _told(fit)
        ends = f"{number(fit.low)} to {number(fit.high)}" if fit.inside else ""
        rows.append([Entry(f"steps to {number(row['goal'], 1)}"), of_number(row["epoch"], 1),
                     Entry(text, values={"": fit.critical, "low": fit.low, "high": fit.high}),
                     Entry(ends), Entry(beyond)])  # fmt: skip
    for _, row in by_noise.iterrows():
        item = row["noise"]
        ends = "" if math.isnan(item.low) else f"{number(item.low)} to {number(item.high)}"
        rows.append([Entry("gradient noise scale"), of_number(row["epoch"], 1), of_summary(item, "phi"),
                     Entry(ends), Entry("")])  # fmt: skip
    for _, row in branched.iterrows():
        beyond = "or more: the largest that was tried" if row["most"] else ""
        rows.append([Entry("branching"), of_number(row["epoch"], 1), of_number(row["batch"]), Entry(""),
                     Entry(beyond)])  # fmt: skip
    if not rows:
        return Section(title, ["Nothing of it is measured yet."], brief=True)
    note = (
        "Steps: the batch at which a score takes twice the fewest steps, by the fit above, at the epoch at "
        "which SB reaches the score. Noise scale: tr Σ / |G|² at SB's models (McCandlish et al. 2018), "
        "geometric mean over the seeds. Branching: the largest batch whose short run from SB's model, over "
        f"as many samples and with a scaled rate, ends at most {tolerance:g} above the training loss at "
        "SB's batch (Merrill et al. 2025; here the optimiser's state begins anew in every branch)."
    )
    heads = ["by", "epoch of SB", "critical batch", "95 % interval", ""]
    groups = starts(row[0].text.partition(" to ")[0] for row in rows)
    tables = [Table("critical_batch", "The critical batch along training, in samples", heads, rows, note,
                    groups=groups)]  # fmt: skip
    if len(branched):
        tables.append(_branches(branched))
    figures = []
    if len(by_steps) or len(by_noise):
        caption = (
            "The critical batch along SB: by the steps to a score (bars: 95 % interval of the fit, "
            "where it is among the batches that were run), by the noise scale (bars: 95 % interval over the "
            "seeds), and by branching; an arrow up where the largest batch that was tried still keeps up."
        )
        figures.append(Figure("critical_batch", title, caption, lambda: _draw(by_steps, by_noise, branched)))
    return Section(title, _sentences(by_steps, by_noise, branched), tables, figures, brief=True)


def _told(fit: CriticalBatch) -> tuple[str, str]:
    """A critical batch as text, and where it lies if that is not where batches were run."""
    least, most = fit.batches
    if fit.critical > most:
        return f"above {number(most)}", "beyond the batches that were run"
    if fit.critical < least:
        return f"below {number(least)}", "beyond the batches that were run"
    return number(fit.critical), "" if fit.inside else "its interval is beyond the batches that were run"


def _branches(branched: pd.DataFrame) -> Table:
    batches = sorted({batch for rises in branched["rises"] for batch in rises})
    rows = [[of_number(row["epoch"]), *[loss(row["rises"].get(batch)) for batch in batches]]
            for _, row in branched.iterrows()]  # fmt: skip
    heads = ["from epoch", *[f"batch {number(batch)}" for batch in batches]]
    title = "By how much branches' training loss is above that at SB's batch, mean ± standard deviation"
    return Table("branches", title, heads, rows, left=0, brief=False)


def loss(item: Summary | None) -> Entry:
    """A difference of losses with its spread."""
    if item is None or math.isnan(item.mean):
        return Entry("–")
    spread = "" if math.isnan(item.std) else f" ± {number(item.std, 4)}"
    return Entry(number(item.mean, 4) + spread, values={"": item.mean, "std": item.std, "n": item.n})


def _sentences(by_steps: pd.DataFrame, by_noise: pd.DataFrame, branched: pd.DataFrame) -> list[str]:
    sentences = []
    if len(by_steps):
        last: CriticalBatch = by_steps.iloc[-1]["fit"]
        ends = f" ({number(last.low)} to {number(last.high)})" if last.inside else ""
        sentences.append(
            f"By the steps to {number(by_steps.iloc[-1]['goal'], 1)} the critical batch is "
            f"{_told(last)[0]}{ends}."
        )
    inside = by_steps[[fit.inside for fit in by_steps["fit"]]] if len(by_steps) else by_steps
    for name, data in (("gradient noise scale", by_noise), ("batch by branching", branched)):
        if len(data) < 2:
            continue
        values = [row["noise"].mean if "noise" in data else float(row["batch"]) for _, row in data.iterrows()]
        begun, ended = (
            f"{number(values[place])} after epoch {data.iloc[place]['epoch']}" for place in (0, -1)
        )
        text = f"The {name} goes from {begun} to {ended}"
        if len(inside) >= 2:
            at = np.interp(inside["epoch"], data["epoch"], values)
            real = [fit.critical for fit in inside["fit"]]
            factor = geometric(at / np.array(real)).mean
            text += f"; it is {number(factor, 2)} times what the steps say at the same epochs (geometric "
            text += f"mean of {len(at)})"
            order = rank_correlation(at, real)
            if not math.isnan(order):
                text += f", in rank correlation {number(order, 2)} with it"
        sentences.append(text + ".")
    return sentences


def _draw_steps(runs: Runs, plain: pd.DataFrame, fits: dict[float, CriticalBatch | None]) -> Drawing:
    lines, style = [], list(drawing.marks([str(place) for place in range(8)]).values())[2:]
    goals = list(fits)
    for place, goal in enumerate(goals):
        own = plain[plain["goal"] == goal]
        items = [geometric(steps) for steps in own["steps"]]
        frame = pd.DataFrame({"x": own["batch"].to_numpy(), "mean": [i.mean for i in items],
                              "std": [i.std for i in items]}).dropna(subset="mean")  # fmt: skip
        mark = style[place % len(style)]._replace(line="none")
        lines.append(drawing.Series(runs.score.of(number(goal, 1)), frame, mark))
    panels = [("steps (log scale)", lines)]
    figure = drawing.draw_panels(panels, "global batch (samples, log scale)", log=True, log_y=(0,))
    axes = figure.axes[0]
    at = np.geomspace(plain["batch"].min(), plain["batch"].max(), 60)
    for place, goal in enumerate(goals):
        if (fit := fits[goal]) is not None:
            axes.plot(
                at, fit.least * (1 + fit.critical / at), color=style[place % len(style)].color, linewidth=0.9
            )
    drawing.plain_ticks(axes.yaxis)
    return figure


def _draw(by_steps: pd.DataFrame, by_noise: pd.DataFrame, branched: pd.DataFrame) -> Drawing:
    from matplotlib.figure import Figure as Drawn

    figure = Drawn(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()

    def bars(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> np.ndarray:
        below = [m - (m if math.isnan(a) else max(a, m / 1e3)) for m, a in zip(middle, low, strict=True)]
        above = [(m if math.isnan(b) else min(b, m * 1e3)) - m for m, b in zip(middle, high, strict=True)]
        return np.array([below, above])

    common: dict[str, Any] = {"capsize": 3, "markersize": 6, "linewidth": 1.4}
    by_steps = by_steps[[fit.inside for fit in by_steps["fit"]]] if len(by_steps) else by_steps
    if len(by_steps):
        fits = list(by_steps["fit"])
        middle = [fit.critical for fit in fits]
        ends = bars(middle, [fit.low for fit in fits], [fit.high for fit in fits])
        axes.errorbar(
            by_steps["epoch"],
            middle,
            yerr=ends,
            marker="o",
            color=drawing.INK,
            label="steps to a score",
            **common,
        )
    if len(by_noise):
        items = list(by_noise["noise"])
        middle = [item.mean for item in items]
        ends = bars(middle, [item.low for item in items], [item.high for item in items])
        axes.errorbar(
            by_noise["epoch"],
            middle,
            yerr=ends,
            marker="D",
            color="#0072B2",
            label="gradient noise scale",
            **common,
        )
    if len(branched):
        axes.plot(branched["epoch"], branched["batch"], marker="s", color="#D55E00", markersize=6,
                  linewidth=1.4, linestyle=(0, (4, 1.6)), label="branching")  # fmt: skip
        most = branched[branched["most"]]
        axes.plot(most["epoch"], 1.25 * most["batch"], "^", color="#D55E00", markersize=6)
    axes.set_yscale("log")
    drawing.plain_ticks(axes.yaxis)
    axes.set_xlabel("epoch of SB")
    axes.set_ylabel("batch (samples, log scale)")
    axes.legend(loc="best", frameon=False)
    return figure
