"""What a step takes by batch and workers, what it consists of, and a model of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lbdist.analysis import drawing, step_time, timings
from lbdist.analysis.numbers import interval, number, three_digits
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Figure, Section, Table, of_number, starts
from lbdist.analysis.statistics import Difference, Summary, summarise
from lbdist.analysis.step_time import PHASES, SHOWN, Call, Step, StepTime

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


GOOD = 0.15
"""By which share a prediction may be off to be called one."""

UNITS = {
    "t": ("ms", 1e3, "a step however small, compute alone"),
    "c": ("µs a sample", 1e6, "compute of a large batch"),
    "s": ("times", 1.0, "compute in a group over alone"),
    "o": ("ms", 1e3, "a step in a group, more"),
    "k": ("times", 1.0, "waited for, of the collective calls by themselves"),
    "alpha": ("µs", 1e6, "latency of a message"),
    "beta": ("ns a byte", 1e9, "a byte over a link"),
}


def sections(
    runs: Runs,
    fitted: StepTime | None = None,
    predicted: Sequence[int] = (),
    interconnects: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Section]:
    """What was measured, then what is modelled."""
    data = timings.timed(runs)
    if data.empty:
        return [Section("Throughput", ["No step was timed yet."], brief=True)]
    found = [_measured(data, fitted)]
    if fitted is not None:
        found.append(_modelled(data, timings.collective_calls(runs), fitted, predicted, interconnects or {}))
    return found


def _measured(data: pd.DataFrame, fitted: StepTime | None) -> Section:
    plain, several = data[data["plain"]], data["workers"].max() > 1
    tables = [_steps(plain, timings.efficiency(data))]
    if not data["plain"].all():
        tables.append(_remedies(data))
    sentences = _gains(data)
    ratio = summarise(data["disturbance"])
    within = "" if ratio.n < 2 else f", 95 % interval {interval(_percent(ratio), 1)}"
    sentences.append(
        f"The stopwatch changes a step by {number(100 * ratio.mean, 1)} % (mean over {ratio.n} "
        f"configurations, each in blocks with and without it in turn{within})."
    )
    caption = (
        "Samples a second against the global batch, a line per number of workers; bars are ± one standard"
    )
    caption += " deviation over the blocks." + ("" if fitted is None else " Thin lines: the model.")
    figures = [Figure("throughput", "Throughput", caption, lambda: _draw_rates(data, fitted))]
    if several:
        text = "What a step without a remedy consists of, by its global batch and workers."
        figures.append(Figure("phases", "A step's phases", text, lambda: _draw_phases(data)))
    return Section("Throughput", sentences, tables, figures, brief=True)


def _percent(item: Summary) -> Difference:
    return Difference(100 * item.mean, 100 * item.low, 100 * item.high)


def _steps(plain: pd.DataFrame, gains: pd.DataFrame) -> Table:
    """Of each batch and number of workers without a remedy, what a step takes and consists of."""
    heads = ["batch", "workers", "samples/s", "step ms"]
    heads += [
        "data",
        "for-\nward",
        "back-\nward",
        "all-re-\nduce",
        "opti-\nmiser",
        "other",
        "all-reduce\nhidden",
    ]
    heads += ["strong\nscaling", "weak\nscaling", "peak\nMB", "utilisa-\ntion %"]
    energy = plain["joules"].notna().any()
    heads += ["joules a\n1,000"] if energy else []
    rows = []
    for place, row in plain.iterrows():
        alone = row["workers"] == 1
        rows.append(
            [
                of_number(row["batch"]),
                of_number(row["workers"]),
                of_number(row["samples_per_second"]),
                _step(row),
                *[_milliseconds(row[f"{phase}_seconds"]) for phase in PHASES],
                _milliseconds(row["all_reduce_hidden_seconds"]),
                *[of_number(math.nan if alone else gains[kind][place], 2) for kind in ("strong", "weak")],
                of_number(row["peak_memory"] / 1e6),
                of_number(100 * row["utilisation"]),
                *([of_number(1000 * row["joules"] / row["batch"], 1)] if energy else []),
            ]
        )
    note = (
        "A step is the median over blocks, ± their standard deviation; its phases (ms) are means over the "
        "workers, timed in blocks of their own. All-reduce is what a step waits for, batch norm's "
        "statistics included; hidden, what the sum of a large gradient takes beside the backward pass. "
        "Strong scaling: the time of one worker over P times that of P, at this batch; weak: the time of "
        "one worker over that of P, at this batch a worker times P. Memory is of the largest worker, "
        "utilisation of the CPU time or of NVML, energy of NVML."
    )
    devices = sorted(
        {f"{row['device']} in {row['precision']}" for _, row in plain.iterrows() if row["device"]}
    )
    note += f" Timed on {' and '.join(devices)}." if devices else ""
    groups, spare = starts(plain["workers"]), [*range(len(heads) - 1, 13, -1), 10]
    return Table("steps", "A training step, timed", heads, rows, note, left=0, groups=groups, spare=spare)


def _remedies(data: pd.DataFrame) -> Table:
    """What a remedy makes of LB's step."""
    plain = {(r["batch"], r["workers"]): r["step_seconds"] for _, r in data[data["plain"]].iterrows()}
    rows = []
    for _, row in data[~data["plain"]].iterrows():
        times = row["step_seconds"] / plain.get((row["batch"], row["workers"]), math.nan)
        rows.append([Entry(row["label"]), of_number(row["workers"]), _step(row), of_number(times, 2),
                     *[_milliseconds(row[f"{phase}_seconds"]) for phase in PHASES]])  # fmt: skip
    heads = [
        "method",
        "workers",
        "step ms",
        "of a plain\nstep",
        *[SHOWN.get(phase, phase) for phase in PHASES],
    ]
    groups = starts(data[~data["plain"]]["workers"])
    return Table("remedy_steps", "A step with a remedy, timed", heads, rows, groups=groups)


def _step(row: pd.Series) -> Entry:
    values = {"": 1e3 * row["step_seconds"], "std": 1e3 * row["spread"]}
    spread = "" if math.isnan(row["spread"]) else f" ± {three_digits(values['std'])}"
    return Entry(three_digits(values[""]) + spread, values=values)


def _milliseconds(seconds: float) -> Entry:
    return Entry(three_digits(1e3 * seconds), values={"": 1e3 * seconds})


def _gains(data: pd.DataFrame) -> list[str]:
    """What batch and workers do to the rate."""
    plain = data[data["plain"]]
    sentences = []
    for workers, group in plain.groupby("workers"):
        small, large = group.iloc[0], group.iloc[-1]
        gain = large["samples_per_second"] / small["samples_per_second"]
        several = "s" * (workers > 1)
        sentences.append(
            f"On {workers} worker{several}, batch {number(large['batch'])} takes {number(gain, 2)} times the "
            f"samples a second of batch {number(small['batch'])}."
        )
        if workers > 1:
            gains = timings.efficiency(plain)["strong"]
            first, last = gains.get(small.name, math.nan), gains.get(large.name, math.nan)
            sentences.append(
                f"Parallel efficiency there is {number(first, 2)} at batch {number(small['batch'])} and "
                f"{number(last, 2)} at batch {number(large['batch'])}."
            )
    return sentences


def _modelled(
    data: pd.DataFrame,
    calls: Sequence[Call],
    fitted: StepTime,
    predicted: Sequence[int],
    interconnects: Mapping[str, Mapping[str, float]],
) -> Section:
    steps = timings.steps_of(data)
    tables = [_parameters(fitted)]
    sentences = [
        f"The model of a step is off by {number(100 * fitted.error, 1)} % (root mean square over "
        f"{len(steps)} configurations)."
    ]
    if not math.isnan(fitted.call_error):
        sentences.append(
            f"Latency and bandwidth fit the collective calls by themselves within "
            f"{number(100 * fitted.call_error)} %."
        )
    guesses = step_time.held_out(steps, calls)
    errors = [guess / step.seconds - 1 for guess, step in zip(guesses, steps, strict=True)]
    known = [(abs(e), s) for e, s in zip(errors, steps, strict=True) if not math.isnan(e)]
    if known:
        chosen = timings.middle(steps)
        error = dict(zip(((s.batch, s.workers) for s in steps), errors, strict=True))[
            chosen.batch, chosen.workers
        ]
        within = sum(e <= GOOD for e, _ in known)
        several = "s" * (chosen.workers > 1)
        sentences.append(
            f"Fitted without the step of batch {number(chosen.batch)} on {chosen.workers} worker{several}, "
            f"it predicts it {number(100 * abs(error), 1)} % too {'high' if error > 0 else 'low'}; of "
            f"{len(known)} configurations, each left out in turn, {within} are predicted within "
            f"{100 * GOOD:.0f} %."
        )
        tables.append(_left_out(steps, guesses, errors))
    figures = []
    groups = "k" in fitted.parameters
    if predicted and groups:
        batches = sorted({step.batch for step in steps})
        ends = [batches[0], batches[-1]]
        links = timings.links_of(fitted, interconnects)
        tables.append(_predictions(ends, links, predicted))
        caption = (
            f"Parallel efficiency of a step at batch {number(ends[0])} and {number(ends[1])}, by the model: "
            "points are measured, all lines are not. Links other than the measured one are nominal: what "
            "study.interconnects says of a message and of a link."
        )
        figures.append(Figure("efficiency", "Predicted efficiency (model)", caption,
                              lambda: _draw_efficiency(data, ends, links, predicted)))  # fmt: skip
    elif predicted:
        sentences.append("No group was timed, so nothing is said of more workers.")
    return Section("A step, modelled", sentences, tables, figures, brief=True)


def _parameters(fitted: StepTime) -> Table:
    rows = []
    for name, item in fitted.parameters.items():
        unit, factor, meaning = UNITS[name]
        low, high = (factor * end for end in (item.low, item.high))
        interval = "" if math.isnan(low) else f"{three_digits(low)} to {three_digits(high)}"
        values = {"": factor * item.value, "low": low, "high": high}
        rows.append([Entry(name), Entry(three_digits(factor * item.value), values=values), Entry(interval),
                     Entry(unit), Entry(meaning)])  # fmt: skip
    note = (
        "step(B, P) = s compute(B / P) + o + k communication(P), compute(b) = (t^q + (c b)^q)^(1/q) with q "
        f"= {fitted.q:g}, chosen by the residuals; communication is that of a {fitted.algorithm}. Intervals "
        "are 95 % t intervals on a log scale, by the Jacobian."
    )
    heads = ["parameter", "value", "95 % interval", "unit", "what it is"]
    return Table("step_model", "The model's parameters", heads, rows, note, brief=False)


def _left_out(steps: Sequence[Step], guesses: Sequence[float], errors: Sequence[float]) -> Table:
    rows = [
        [of_number(s.batch), of_number(s.workers), _milliseconds(s.seconds), _milliseconds(guess),
         of_number(100 * error, 1)]
        for s, guess, error in zip(steps, guesses, errors, strict=True)
    ]  # fmt: skip
    heads = ["batch", "workers", "measured ms", "predicted ms", "off by %"]
    return Table("held_out", "Each step, by a model that has not seen it", heads, rows, left=0, brief=False)


def _predictions(ends: Sequence[int], links: Mapping[str, StepTime], predicted: Sequence[int]) -> Table:
    rows = []
    for name, model in links.items():
        for workers in predicted:
            both = [model.seconds(batch, workers) for batch in ends]
            rows.append([Entry(name), of_number(workers), *map(_milliseconds, both),
                         *[of_number(model.efficiency(batch, workers), 4) for batch in ends]])  # fmt: skip
    heads = ["link", "workers", *[f"step ms, batch {number(batch)}" for batch in ends],
             *[f"f(P), batch {number(batch)}" for batch in ends]]  # fmt: skip
    note = "Where there are more workers than samples in a batch, the others stay idle."
    groups = starts(name for name in links for _ in predicted)
    title = "By the model, not measured: what a step takes on more workers"
    return Table("predicted", title, heads, rows, note, groups=groups, brief=False)


def _draw_rates(data: pd.DataFrame, fitted: StepTime | None) -> Drawing:
    plain = data[data["plain"]]
    style = list(drawing.marks([str(place) for place in range(8)]).values())[2:]
    lines = []
    for place, (workers, group) in enumerate(plain.groupby("workers")):
        rate = group["samples_per_second"]
        std = rate * group["spread"] / group["step_seconds"]
        frame = pd.DataFrame({"x": group["batch"], "mean": rate, "std": std})
        several = "s" * (workers > 1)
        mark = style[place % len(style)]
        lines.append(drawing.Series(f"{workers} worker{several}", frame, mark._replace(line="none")
                                    if fitted else mark))  # fmt: skip
    panels = [("samples a second (log scale)", lines)]
    figure = drawing.draw_panels(panels, "global batch (samples, log scale)", log=True, log_y=(0,))
    if fitted is not None:
        axes = figure.axes[0]
        batches = np.geomspace(plain["batch"].min(), plain["batch"].max(), 60)
        for place, workers in enumerate(sorted(plain["workers"].unique())):
            rates = [batch / fitted.seconds(batch, int(workers)) for batch in batches]
            axes.plot(batches, rates, color=style[place % len(style)].color, linewidth=0.9)
        drawing.plain_ticks(axes.yaxis)
    return figure


def _draw_phases(data: pd.DataFrame) -> Drawing:
    """A bar per configuration, of which each phase is a part."""
    from matplotlib.figure import Figure as Drawn

    plain = data[data["plain"]].iloc[::-1]
    figure = Drawn(figsize=(7.2, 1.2 + 0.28 * len(plain)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"batch {number(row['batch'])}, {row['workers']} worker{'s' * (row['workers'] > 1)}"
             for _, row in plain.iterrows()]  # fmt: skip
    colors = ["#56B4E9", "#0072B2", "#009E73", "#D55E00", "#E69F00", drawing.LINE]
    left = np.zeros(len(plain))
    for phase, color in zip(PHASES, colors, strict=True):
        share = (
            100 * plain[f"{phase}_seconds"] / sum(plain[f"{name}_seconds"] for name in PHASES)
        ).to_numpy()
        axes.barh(names, share, left=left, color=color, edgecolor=drawing.PAPER, linewidth=0.5,
                  label=SHOWN.get(phase, phase))  # fmt: skip
        left += share
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of a step (%)")
    figure.legend(loc="outside upper center", ncols=len(PHASES), frameon=False)
    return figure


def _draw_efficiency(
    data: pd.DataFrame, ends: Sequence[int], links: Mapping[str, StepTime], predicted: Sequence[int]
) -> Drawing:
    from matplotlib.figure import Figure as Drawn

    figure = Drawn(figsize=(7.2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(ends), sharey=True, squeeze=False)[0]
    measured = data.assign(strong=timings.efficiency(data)["strong"])
    colors = ["#D55E00", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00"]
    workers = sorted({1, 2, 4, *predicted})
    for axes, batch in zip(panels, ends, strict=True):
        for place, (name, model) in enumerate(links.items()):
            line: Any = (0, (1, 1.5)) if name.endswith("ring") else (0, (4, 1.6))
            values, color = [model.efficiency(batch, count) for count in workers], colors[place % len(colors)]
            axes.plot(workers, values, color=color, linestyle=line, linewidth=1.4, label=name)
        own = measured[measured["plain"] & (measured["batch"] == batch)]
        axes.plot(own["workers"], own["strong"], "o", color=drawing.INK, markersize=6, label="measured")
        axes.set_xscale("log", base=2)
        axes.set_title(f"batch {number(batch)}", loc="left", fontsize=9)
        axes.set_xlabel("workers (log scale)")
        axes.set_yscale("log")
        drawing.plain_ticks(axes.yaxis)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_ylabel("efficiency f(P), by the model (log scale)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure
