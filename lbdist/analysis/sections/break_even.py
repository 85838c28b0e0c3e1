"""Whether a large batch pays: time to a score on P workers (Keskar et al., appendix C)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lbdist.analysis import drawing, timings, to_score
from lbdist.analysis.numbers import interval, number, seconds
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Figure, Section, Table, of_number, starts
from lbdist.analysis.statistics import Difference, Summary, difference, geometric
from lbdist.analysis.step_time import StepTime

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MEASURED = timings.TREE
"""The link of the model's panel and sentences (see `timings.links_of`)."""

DRAWN = 64
"""Workers of the panel that is drawn by the model."""


@dataclass(frozen=True)
class Clock:
    """What a step takes on so many workers, by method and batch (see `to_score.seconds`).

    Attributes:
        workers: The workers.
        steps: Seconds; the name "" is that of every batch without a remedy.
        alone: What a step of SB takes on one worker; NaN where that was not timed.
        link: Over which interconnect the model says them; empty where they were timed.
    """

    workers: int
    steps: dict[tuple[str, int], float]
    alone: float = math.nan
    link: str = ""

    @property
    def measured(self) -> bool:
        """Whether they were timed; else they are the model's."""
        return not self.link


@dataclass(frozen=True)
class Verdict:
    """A method against SB in the time to one score.

    Attributes:
        label: The method.
        clock: On how many workers.
        target: The score.
        steps: Its steps over SB's, with their interval.
        bound: What they must be below: a step's time of SB over its own; NaN where its batch changes.
        paper: The same by appendix C, B_SB / (f_SB(P) B), which takes the time of one worker to be in
            proportion to the batch, and its own efficiency to be 1.
        own: Its seconds.
        small: SB's.
        faster: SB's seconds over its own, with the interval of the steps.
        runs: Its runs that reached the score, of how many.
    """

    label: str
    clock: Clock
    target: float
    steps: Summary
    bound: float
    paper: float
    own: float
    small: float
    faster: Summary
    runs: tuple[int, int]


def sections(
    runs: Runs,
    fitted: StepTime | None = None,
    predicted: Sequence[int] = (),
    interconnects: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Section]:
    """The verdict: its sentences, the table by workers, the figure."""
    data, timed, title = to_score.points(runs), timings.timed(runs), "Does a large batch pay?"
    if data.empty or timed.empty or not {"SB", "LB"} <= set(data["label"]):
        return [Section(title, ["SB, LB and their steps are needed, and are not there yet."], brief=True)]
    clocks = list(measured_clocks(timed))
    goals = targets(data)
    found = [v for goal in goals.values() for clock in clocks for v in verdicts(data, clock, goal)]
    more = [workers for workers in predicted if workers > max(clock.workers for clock in clocks)]
    links = timings.links_of(fitted, interconnects or {}) if fitted is not None else {}
    further = [model_clock(timed, link, workers, name) for name, link in links.items() for workers in more]
    few = _without_between(data)
    modelled = [v for goal in goals.values() for clock in further for v in verdicts(few, clock, goal)]
    tables = [_table(runs, found)]
    if modelled:
        tables.append(_by_model(runs, modelled))
    drawn = [clocks[0], *clocks[-1:]] if len(clocks) > 1 else clocks
    drawn += [clock for clock in further if (clock.workers, clock.link) == (DRAWN, MEASURED)]
    caption = (
        f"Test {runs.score.name} against the time on P workers: steps of the runs times what a step takes, "
        f"evaluation not in it; {drawing.bands(data.groupby('label')['cell'].nunique())}."
    )
    if any(not clock.measured for clock in drawn):
        caption += " The last panel is the model's: nothing there was measured on as many workers."
    figure = Figure("time_to_score", f"Test {runs.score.name} against time", caption,
                    lambda: _draw(runs, data, drawn))  # fmt: skip
    return [
        Section(title, _sentences(runs, goals, found, modelled), figures=[figure], brief=True),
        Section("Time to a score", tables=tables, brief=True),
    ]


def _without_between(data: pd.DataFrame) -> pd.DataFrame:
    """SB, LB and the remedies, without the batches between."""
    return data[(data["remedy"] != "none") | data["label"].isin(["SB", "LB"])]


def targets(data: pd.DataFrame) -> dict[str, float]:
    """The verdict's scores by who reaches them: what every run of SB and LB reaches, and every one of SB."""
    both, small = to_score.level(data, ["SB", "LB"]), to_score.level(data, ["SB"])
    return {"SB and LB": both} if both == small else {"SB and LB": both, "SB": small}


def measured_clocks(timed: pd.DataFrame) -> Iterator[Clock]:
    """What was timed, on each number of workers."""
    one = timed[(timed["label"] == "SB") & (timed["workers"] == 1)]["step_seconds"]
    alone = float(one.iloc[0]) if len(one) else math.nan
    for workers, group in timed.groupby("workers"):
        found = {
            ("" if row["plain"] else row["label"], int(row["batch"])): float(row["step_seconds"])
            for _, row in group.iterrows()
        }
        yield Clock(int(workers), found, alone)


def model_clock(timed: pd.DataFrame, fitted: StepTime, workers: int, link: str) -> Clock:
    """What the model says of the best of up to so many workers over a link.

    A remedy takes as many times a plain step as on the most workers that were timed.
    """
    most = timed[timed["workers"] == timed["workers"].max()]
    plain = {int(row["batch"]): float(row["step_seconds"]) for _, row in most[most["plain"]].iterrows()}
    found = {("", batch): fitted.best(batch, workers) for batch in plain}
    for _, row in most[~most["plain"]].iterrows():
        batch = int(row["batch"])
        if batch in plain:
            found[row["label"], batch] = found["", batch] * float(row["step_seconds"]) / plain[batch]
    return Clock(workers, found, link=link)


def verdicts(data: pd.DataFrame, clock: Clock, target: float) -> Iterator[Verdict]:
    """Each method against SB; a run that does not reach the score is left out of means."""
    steps, small = to_score.reached(data, target), _seconds(data, clock, "SB", target)
    labels = data.drop_duplicates("cell").set_index("cell")["label"]
    batches = data.groupby("label")["global_batch_size"].first()
    sb_steps, sb_batch = steps[labels == "SB"], int(batches["SB"])
    one = clock.steps.get(("", sb_batch), math.nan)
    for label in to_score.methods(data):
        if label == "SB":
            continue
        own, batch = _seconds(data, clock, label, target), int(batches[label])
        counts = int(own.notna().sum()), len(own)
        plain = clock.steps.get(("", batch), math.nan)
        changes = data[data["label"] == label].groupby("epoch")["batch"].first().nunique() > 1
        bound = math.nan if changes else one / clock.steps.get((label, batch), plain)
        efficiency = clock.alone / (clock.workers * one)
        paper = math.nan if changes else sb_batch / (efficiency * batch)
        yield Verdict(
            label,
            clock,
            target,
            _ratio(steps[labels == label], sb_steps),
            bound,
            paper,
            geometric(own).mean,
            geometric(small).mean,
            _ratio(small, own),
            counts,
        )


def _seconds(data: pd.DataFrame, clock: Clock, label: str, target: float) -> pd.Series:
    own = data[data["label"] == label]
    times = to_score.seconds(own, clock.steps, label, int(own["global_batch_size"].iloc[0]))
    return to_score.reached(own.assign(seconds=times), target, "seconds")


def _ratio(a: pd.Series, b: pd.Series) -> Summary:
    """The ratio of two geometric means, with Welch's interval on a log scale."""
    first, second = a.dropna(), b.dropna()
    apart: Difference = difference(np.log(first), np.log(second))
    return Summary(math.exp(apart.mean), math.nan, min(len(first), len(second)), math.exp(apart.low),
                   math.exp(apart.high))  # fmt: skip


def _by_model(runs: Runs, found: Sequence[Verdict]) -> Table:
    """How many times as fast as SB each method is by the model, a column per number of workers."""
    sizes = sorted({v.clock.workers for v in found})
    known = {(v.clock.link, v.target, v.label, v.clock.workers): v for v in found}
    kinds = dict.fromkeys((v.clock.link, v.target, v.label) for v in found if v.runs[0])
    rows = []
    for link, goal, label in kinds:
        own = [known[link, goal, label, workers].faster for workers in sizes]
        times = [Entry(number(item.mean, 2), values=_ends(item)) for item in own]
        rows.append([Entry(link), Entry(label), of_number(goal, 2), *times])
    heads = ["link", "method", f"to test\n{runs.score.head}", *[f"P =\n{number(p)}" for p in sizes]]
    title = "By the model, not measured: times as fast as SB, each on as many of P workers as are best for it"
    note = "Only methods of which some run reaches the score."
    groups = starts((link, goal) for link, goal, _ in kinds)
    return Table("break_even_model", title, heads, rows, note, left=2, groups=groups, brief=False)


def _table(runs: Runs, found: Sequence[Verdict]) -> Table:
    heads = [
        "method",
        f"to test\n{runs.score.head}",
        "P",
        "runs",
        "steps\nof SB's",
        "must be\nbelow",
        "appen-\ndix C",
    ]
    heads += ["SB\ns", "its own\ns", "times\nas fast", "95 %\ninterval", "SB\nworker-h", "its own\nworker-h"]
    rows, found = [], [v for v in found if v.runs[0]]
    for v in found:
        hours = [v.clock.workers * taken / 3600 for taken in (v.small, v.own)]
        rows.append(
            [
                Entry(v.label),
                of_number(v.target, 2),
                of_number(v.clock.workers),
                Entry("{} of {}".format(*v.runs), values={"": v.runs[0], "of": v.runs[1]}),
                Entry(number(v.steps.mean, 2), interval(v.steps), _ends(v.steps)),
                of_number(v.bound, 2),
                of_number(v.paper, 2),
                Entry(seconds(v.small), values={"": v.small}),
                Entry(seconds(v.own), values={"": v.own}),
                Entry(number(v.faster.mean, 2), values=_ends(v.faster)),
                Entry(interval(v.faster)),
                *[Entry("–" if math.isnan(hour) else f"{hour:.2g}", values={"": hour}) for hour in hours],
            ]
        )
    note = (
        "A method is faster than SB where its steps over SB's, I / I_SB, are below a step's time of SB "
        "over its own. Appendix C has B_SB / (f_SB(P) B) for that, with f_SB(P) as it was measured; it "
        "takes one worker's time to be in proportion to the batch, and the efficiency of a large batch to "
        "be 1. Steps of runs that reached the score, geometric means; where some did not, a mean is over "
        "those that did. Methods of which no run reaches it are left out. Intervals are over the seeds. "
        "Times are of steps alone, without start and evaluation."
    )
    keys = [(v.target, v.clock.workers) for v in found]
    title = "Time to a test score, SB over each method"
    return Table("break_even", title, heads, rows, note, groups=starts(keys), spare=[12, 11])


def _ends(item: Summary) -> dict[str, float]:
    return {"": item.mean, "low": item.low, "high": item.high}


def _sentences(
    runs: Runs, goals: dict[str, float], found: Sequence[Verdict], modelled: Sequence[Verdict]
) -> list[str]:
    sentences = []
    most = max(v.clock.workers for v in found)
    for who, goal in goals.items():
        own = [v for v in found if v.target == goal]
        text = runs.score.of(number(goal, 2))
        large = [v for v in own if v.label == "LB"]
        if any(v.runs[0] < v.runs[1] for v in large[:1]):
            sentences.append(
                f"Every run of {who} reaches {text}, but {large[0].runs[0]} of {large[0].runs[1]} of LB: "
                "there is no time to compare."
            )
        elif large:
            last = next(v for v in large if v.clock.workers == most)
            several = "s" * (most > 1)
            sentences.append(
                f"To {text}, which every run of {who} reaches, LB takes {number(last.steps.mean, 2)} of "
                f"SB's steps; on {most} worker{several} it is {_times(last.faster)}: {seconds(last.own)} s "
                f"against {seconds(last.small)}."
            )
            sentences.append(_where(large))
            for link in dict.fromkeys(v.clock.link for v in modelled if v.clock.link != timings.RING):
                further = [v for v in modelled if (v.label, v.target, v.clock.link) == ("LB", goal, link)]
                sentences.append(_from(further, link))
        others = [v for v in own if v.label != "LB" and v.clock.workers == most and v.runs[0] == v.runs[1]]
        if others:
            best = max(others, key=lambda v: v.faster.mean)
            several = "s" * (most > 1)
            sentences.append(
                f"Of the other methods that always reach it, {best.label} is the fastest on {most} "
                f"worker{several}: {_times(best.faster)}."
            )
    return sentences


def _times(item: Summary) -> str:
    """How fast, with the interval where there is one."""
    within = "" if math.isnan(item.low) else f" (95 % interval {interval(item)})"
    return f"{number(item.mean, 2)} times as fast as SB{within}"


def _where(measured: Sequence[Verdict]) -> str:
    """On which of the numbers of workers that were timed LB is faster, all of them at work."""
    faster = [v.clock.workers for v in measured if v.faster.mean > 1]
    listed = " and ".join(str(v.clock.workers) for v in measured)
    if not faster:
        return f"With all of P workers at work, LB is not faster than SB for any P that was timed ({listed})."
    if len(faster) == len(measured):
        return f"With all of P workers at work, LB is faster than SB for every P that was timed ({listed})."
    found = " and ".join(map(str, faster))
    return (
        f"With all of P workers at work, LB is faster than SB for P = {found}, of {listed} that were timed."
    )


def _from(modelled: Sequence[Verdict], link: str) -> str:
    """From how many workers on LB is faster by the model, each with as many as are best for it."""
    first = None
    for verdict in sorted(modelled, key=lambda v: v.clock.workers, reverse=True):
        if verdict.faster.mean <= 1:
            break
        first = verdict
    most = max(v.clock.workers for v in modelled)
    over = "" if link == MEASURED else f" over {link}"
    head = f"By the model{over}, with as many of P workers as are best for each, LB is"
    if first is None:
        some = "any P" if all(v.faster.mean <= 1 for v in modelled) else "all P from some on,"
        return f"{head} not faster for {some} up to {number(most)}."
    last = max(modelled, key=lambda v: v.clock.workers)
    ends = list(dict.fromkeys(number(v.faster.mean, 2) for v in (first, last)))
    start, times = first.clock.workers, " and ".join(ends)
    return f"{head} faster from P = {start} on, up to {number(most)} ({times} times as fast at the ends)."


def _draw(runs: Runs, data: pd.DataFrame, clocks: Sequence[Clock]) -> Drawing:
    """A panel for each number of workers, a line for each method."""
    from matplotlib.figure import Figure as Drawn

    figure = Drawn(figsize=(7.2, 0.9 + 2.6 * len(clocks)), layout="constrained")
    panels = figure.subplots(len(clocks), 1, squeeze=False)[:, 0]
    shown = sorted(_without_between(data)["label"].unique(), key=lambda label: label in ("SB", "LB"))
    style = drawing.marks(shown)
    for axes, clock in zip(panels, clocks, strict=True):
        for place, label in enumerate(shown):
            own = data[data["label"] == label]
            times = to_score.seconds(own, clock.steps, label, int(own["global_batch_size"].iloc[0]))
            points = own.assign(seconds=times).dropna(subset=["seconds", "score"])
            if points.empty:
                continue
            groups = points.groupby("epoch")
            ends = {"mean": groups["score"].mean(), "std": groups["score"].std()}
            frame = pd.DataFrame({**ends, "at": groups["seconds"].mean()}).rename_axis(None)
            frame = frame.rename(columns={"at": "epoch"})
            drawing.draw_curve(axes, frame, style[label], label, place, max(1, len(frame) // 8))
        axes.set_xscale("log")
        drawing.plain_ticks(axes.xaxis)
        several, how = (
            "s" * (clock.workers > 1),
            "measured steps" if clock.measured else "model, not measured",
        )
        axes.set_title(f"{clock.workers} worker{several} ({how})", loc="left", fontsize=9)
        axes.set_ylabel(runs.score.axis)
    panels[-1].set_xlabel("seconds of training steps (log scale)")
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda at: (labels[at] != "SB", labels[at] != "LB", labels[at]))
    figure.legend([handles[at] for at in order], [labels[at] for at in order], loc="outside upper center",
                  ncols=3, frameon=False)  # fmt: skip
    return figure
