"""What the advisor recommends, and why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from lbdist.analysis import critical, drawing
from lbdist.analysis.advice import Advice
from lbdist.analysis.numbers import interval, number
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import (
    Entry,
    Figure,
    Section,
    Table,
    of_difference,
    of_number,
    of_summary,
)
from lbdist.analysis.sections import critical_batch
from lbdist.analysis.statistics import difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

TITLE = "What to take"


def section(runs: Runs, found: Advice | None = None, rate: float | None = None) -> Section:
    """The recommendation in sentences, then the batches, the noise scale and the remedies behind it."""
    if found is None or not found.options or not any(option.rises for option in found.options):
        return Section(TITLE, ["Nothing is measured yet to recommend anything by."], brief=True)
    remedies = compared(runs)
    tables = [_batches(found, f" {runs.score.loss_unit}".rstrip())]
    if len(remedies):
        tables.append(_remedies(runs, remedies))
    figures = [_figure(found, f" ({runs.score.loss_unit})" if runs.score.loss_unit else "")]
    return Section(TITLE, _sentences(runs, found, rate, remedies), tables, figures, brief=True)


def _figure(found: Advice, unit: str) -> Figure:
    """The evidence for the batch: how far the loss rises with it, by each rule."""
    rules = list(dict.fromkeys(rule for option in found.options for rule in option.rises))
    counts = pd.Series([rise.n for option in found.options for rise in option.rises.values()])
    caption = (
        "Training loss of short runs from SB's model above that at SB's batch, by batch and by the rule that "
        f"the learning rate follows: means {drawing.bars(counts)}. Below the dashed line, the tolerance of "
        f"{found.tolerance:g}, a batch keeps up; {number(found.batch)} is recommended."
    )

    def draw() -> Drawing:
        marks = list(drawing.marks([str(place) for place in range(len(rules))]).values())[2:]
        lines = []
        for rule, mark in zip(rules, marks, strict=True):
            rises = {option.batch: option.rises[rule] for option in found.options if rule in option.rises}
            ends = {key: [getattr(rise, key) for rise in rises.values()] for key in ("mean", "std")}
            label = "learning rate as it is" if rule == "none" else f"lr_rule={rule}"
            lines.append(drawing.Series(label, pd.DataFrame({"x": list(rises), **ends}), mark))
        panels = [(f"rise of the training loss{unit}", lines)]
        figure = drawing.draw_panels(panels, "global batch (samples, log scale)", log=True)
        figure.axes[0].axhline(found.tolerance, color=drawing.MUTED, linestyle=(0, (4, 1.6)), linewidth=1)
        return figure

    return Figure("loss_rise", "What a larger batch costs in training loss", caption, draw)


def compared(runs: Runs) -> pd.DataFrame:
    """At the recommended batch, one row per remedy and setting: `label, setting, scores, score, gain`.

    `score` is a Summary on the validation split, `gain` the Difference to none; the best remedy
    first, and none and SB where they stand among them.
    """
    cells = runs.cells
    own = cells[cells["role"].isin(["search", "advised"])]
    rows: list[dict[str, Any]] = [
        {
            "label": "SB" if role == "search" else remedy,
            "setting": setting,
            "scores": list(group["score"]),
            "score": runs.score.summarise(group["score"]),
        }
        for (role, remedy, setting), group in own.groupby(["role", "remedy", "setting"])
    ]
    plain: list[float] = next((row["scores"] for row in rows if row["label"] == "none"), [])
    for row in rows:
        row["gain"] = difference(row["scores"], plain)
    rows.sort(key=lambda row: -row["score"].mean if row["score"].n else math.inf)
    return pd.DataFrame(rows)


def _batches(found: Advice, unit: str) -> Table:
    rules = list(dict.fromkeys(rule for option in found.options for rule in option.rises))
    heads = ["batch", "workers", "samples/s", *[f"loss rise{unit}\n{rule}" for rule in rules]]
    heads += ["keeps\nup", "peak MB"]
    rows = [
        [
            of_number(option.batch),
            of_number(option.workers),
            of_number(option.rate),
            *[critical_batch.loss(option.rises.get(rule)) for rule in rules],
            Entry("yes" if option.keeps_up else "no"),
            of_number(option.memory / 1e6),
        ]
        for option in found.options
    ]
    note = (
        "Loss rise: by how much the training loss of short runs from SB's model is above that of such runs "
        "at SB's batch, after as many samples, mean ± standard deviation over seeds, by the rule that the "
        "learning rate follows. Workers: on which it is fastest, the fewest of about equal ones."
    )
    return Table("options", "The batches to choose from", heads, rows, note, left=0)


def _remedies(runs: Runs, remedies: pd.DataFrame) -> Table:
    rows = [
        [Entry(row["label"]), Entry(row["setting"]), of_summary(row["score"]),
         Entry("–") if row["label"] == "none" else of_difference(row["gain"]), of_number(row["score"].n)]
        for _, row in remedies.iterrows()
    ]  # fmt: skip
    heads = [
        "remedy",
        "setting",
        f"validation\n{runs.score.head}",
        runs.score.in_points("gain on\nnone"),
        "n",
    ]
    note = "On a validation split of the training set, after few epochs: some remedies need more."
    title = "Remedies at the recommended batch, mean ± standard deviation over n seeds"
    return Table("remedies", title, heads, rows, note, left=2)


def _sentences(runs: Runs, found: Advice, rate: float | None, remedies: pd.DataFrame) -> list[str]:
    several = "s" * (found.workers > 1)
    share = math.ceil(found.batch / found.workers)
    text = f"Take a global batch of {number(found.batch)} on {found.workers} worker{several}"
    text += f" ({number(share)} each)" if found.workers > 1 else ""
    followed = (
        "the learning rate as it is" if found.rule == "none" else f"a learning rate by lr_rule={found.rule}"
    )
    text += f", {followed}" + ("" if rate is None else f" ({rate:.4g})")
    clear = [
        row for _, row in remedies.iterrows() if row["label"] not in ("none", "SB") and row["gain"].sign == 1
    ]
    if clear:
        best = clear[0]
        points = runs.score.points
        setting = f" ({best['setting']})" if best["setting"] else ""
        text += f", and {best['label']}{setting}, which gains {number(best['gain'].mean, 2)}{points} on none "
        text += f"(95 % interval {interval(best['gain'])})."
    elif len(remedies):
        text += ", and no remedy: none clearly gains."
    else:
        text += "."
    sentences = [text]
    if not found.measured:
        sentences = [f"Stay at batch {number(found.batch)}: no larger one was found to keep up."]
    sentences += _keeps_up(found)
    failing = next((option for option in found.options if not option.keeps_up), None)
    if failing is not None and failing.rises:
        sentences.append(f"Batch {number(failing.batch)} no longer keeps up.")
    elif failing is not None:
        sentences.append(
            f"Batch {number(failing.batch)} could not be tried: it failed, or its step does not fit."
        )
    elif failing is None:
        sentences.append(
            f"The largest batch that was tried, {number(found.options[-1].batch)}, still keeps up."
        )
    scores = {row["label"]: row["score"] for _, row in remedies.iterrows() if row["label"] in ("none", "SB")}
    if len(scores) == 2:
        none, small = (runs.score.of(number(scores[name].mean, 2)) for name in ("none", "SB"))
        sentences.append(f"Without a remedy it reaches {none} on the validation split, SB {small}.")
    noise = critical.noise(runs)
    if len(noise):
        last = noise.iloc[-1]
        sentences.append(
            f"The gradient noise scale is {number(last['noise'].mean)} after epoch {last['epoch']}, the "
            "quick estimate of where more samples stop helping."
        )
    if not math.isnan(found.most_share):
        sentences.append(f"Memory holds about {number(found.most_share)} samples per worker.")
    return [*_at_chance(runs, remedies), *sentences]


def _keeps_up(found: Advice) -> list[str]:
    """What the recommended batch gains, how its branches keep up, and how sure that is."""
    own = next(option for option in found.options if option.batch == found.batch)
    first = found.options[0]
    if not found.measured or own.batch == first.batch or first.rate != first.rate:
        return []
    rise = own.rises[own.rule]
    word = "above" if rise.mean > 0 else "below"
    spread = "" if math.isnan(rise.std) else f" ± {number(rise.std, 3)}"
    sentences = [
        f"It takes {number(own.rate / first.rate, 2)} times the samples a second of batch "
        f"{number(first.batch)}, and keeps up sample by sample: the training loss of its branches ends "
        f"{number(abs(rise.mean), 3)}{spread} {word} that at batch {number(first.batch)}."
    ]
    if rise.n < 2 or (rise.low < 0 < rise.high and rise.high > found.tolerance):
        sentences.append(
            f"That is not settled: {rise.n} seed{'s' * (rise.n != 1)} do not tell such a rise from the "
            f"tolerance of {found.tolerance:g}."
        )
    return sentences


def _at_chance(runs: Runs, remedies: pd.DataFrame) -> list[str]:
    """That nothing was learnt by which anything could be recommended."""
    best = max((row["score"].mean for _, row in remedies.iterrows() if row["score"].n), default=math.nan)
    if not runs.score.at_chance(best):
        return []
    most = runs.score.of(number(runs.score.chance or 0, 1))
    return [
        "Nothing can be recommended by these runs: the best of them reaches "
        f"{runs.score.of(number(best, 2))} on the validation split, and up to {most} is chance. Train "
        "longer (epochs), or see whether the network learns at all."
    ]
