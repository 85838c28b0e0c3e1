"""What training costs by lbdist and by others: samples a second, the start, memory, the hardware's limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.numbers import number
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Figure, Section, Table, of_number, of_summary
from lbdist.analysis.statistics import summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

OURS = "lbdist"


def sections(runs: Runs) -> list[Section]:
    """The table, the figure, and what they say."""
    data, title = speeds(runs), "Samples a second"
    if data.empty:
        return [Section(title, ["No run is finished yet."], brief=True)]
    heads = [
        "procedure", "batch", "workers", "precision", "samples/s", "of lbdist's\nbest", "start\ns",
        "whole\ns", "peak\nMB", "of\nlimit", f"test\n{runs.score.head}", "n",
    ]  # fmt: skip
    rows = [
        [
            Entry(row["procedure"]),
            of_number(row["batch"]),
            of_number(row["workers"]),
            Entry(row["precision"]),
            of_summary(row["rate"], "phi"),
            of_number(row["mean"] / row["best"], 2),
            of_number(row["start"].mean, 2),
            of_number(row["whole"].mean, 2),
            of_number(row["memory"].mean),
            of_number(row["share"].mean, 2),
            of_summary(row["score"]),
            of_number(row["rate"].n),
        ]
        for _, row in data.iterrows()
    ]
    note = (
        "Samples of a median epoch but the first, what is evaluated after it included, on the training and "
        "the test set; start: by how much longer the first took; whole: a cell from the building of its "
        "network to its end, with a last evaluation in float32 where it trains in less, and lbdist's files, "
        "of which the others write none; peak: the process's memory; limit: products as fast as a large "
        "matrix product or convolution, parameters moved as fast as a large copy, measured here. A bare loop "
        "has a thread for each worker."
    )
    changes = data[["workers", "batch"]].ne(data[["workers", "batch"]].shift()).any(axis=1)
    groups = frozenset(place for place, new in enumerate(changes) if new and place)
    over = "Each procedure alone on the machine, mean ± standard deviation over n runs"
    table = Table("benchmark", over, heads, rows, note, groups=groups)
    bars = drawing.bars(pd.Series([rate.n for rate in data["rate"]]))
    caption = f"Mean samples a second by procedure, {bars}."
    figure = Figure("benchmark", "Samples a second", caption, lambda: _draw(data))
    return [Section(title, sentences(data), [table], [figure], brief=True)]


def speeds(runs: Runs) -> pd.DataFrame:
    """One row per procedure, batch and number of workers, in the order of the study.

    Columns: `procedure, batch, workers, precision`; `rate`, `start`, `whole` (seconds of a cell; NaN in rows
    of earlier versions), `memory` (MB), `share` and `score` (Summaries); `mean`, of the rate; `others`,
    whether it is not lbdist; `best`, lbdist's rate at the same batch and workers, NaN where it has none.
    """
    rows = runs.rows
    rows = rows[rows["procedure"].notna() & rows["epoch"].isna()]
    found = rows.pivot_table(index="cell", columns="metric", values="value", aggfunc="last")
    if found.empty:
        return pd.DataFrame()
    identity = rows.drop_duplicates("cell").set_index("cell")
    identity = identity[["procedure", "global_batch_size", "num_workers", "precision"]]
    found = found.join(identity)
    found = found.reindex(columns=found.columns.union(["whole_seconds"]))
    found["workers"] = found[["num_workers", "threads"]].max(axis=1)  # one of them is 1
    table = []
    for keys, group in found.groupby(["workers", "global_batch_size", "procedure"], sort=True):
        table.append(
            {
                "workers": int(keys[0]),
                "batch": int(keys[1]),
                "procedure": keys[2],
                "precision": group["precision"].iloc[0],
                "rate": summarise(group["samples_per_second"]),
                "start": summarise(group["startup_seconds"]),
                "whole": summarise(group["whole_seconds"]),
                "memory": summarise(group["peak_memory"] / 1e6),
                "share": summarise(group["share_of_limit"]),
                "score": runs.score.summarise(group[runs.score.name]),
            }
        )
    data = pd.DataFrame(table)
    data["mean"] = [rate.mean for rate in data["rate"]]
    data["others"] = ~data["procedure"].str.startswith(OURS)
    ours = data["mean"].where(~data["others"])
    data["best"] = ours.groupby([data["workers"], data["batch"]]).transform("max")
    order = ["workers", "batch", "others", "mean"]
    return data.sort_values(order, ascending=[True, True, True, False]).reset_index(drop=True)


def sentences(data: pd.DataFrame) -> list[str]:
    """What lbdist's rate is beside the others', and what workers and batches do to it."""
    found: list[str] = []
    fewest = data[(data["workers"] == data["workers"].min()) & data["others"] & data["best"].notna()]
    for batch, group in reversed(list(fewest.groupby("batch"))):
        ratios = [
            f"{number(row['best'] / row['mean'], 2)} times those of {row['procedure']}"
            for _, row in group.sort_values("mean").iterrows()
        ]
        found.append(f"Samples a second at batch {number(batch)}: lbdist takes {', '.join(ratios)}.")
    found += _whole(data[data["workers"] == data["workers"].min()])
    ours = (
        data.dropna(subset="best")
        .drop_duplicates(["workers", "batch"])
        .set_index(["workers", "batch"])["best"]
    )
    batches = sorted({batch for _, batch in ours.index})
    for workers in sorted({workers for workers, _ in ours.index} - {1}):
        gains = {
            batch: ours[workers, batch] / ours[1, batch]
            for batch in batches
            if (1, batch) in ours.index and (workers, batch) in ours.index
        }
        if gains:
            each = " and ".join(f"{number(g, 2)} times at batch {number(b)}" for b, g in gains.items())
            text = f"{workers} workers take the samples of one {each}."
            if gains[max(gains)] > gains[min(gains)]:
                text += (
                    " A step has the same collective calls at any batch, so a small one pays more a sample: "
                    "this is why people want large batches."
                )
            found.append(text)
    return found


def _whole(data: pd.DataFrame) -> list[str]:
    """What a whole cell takes beside others in the same precision."""
    found = []
    for batch, group in reversed(list(data.groupby("batch"))):
        ratios = [
            f"{number(own['whole'].mean / other['whole'].mean, 2)} times {other['procedure']}"
            + ("" if precision in other["procedure"] else f" in {precision}")
            for precision, alike in group.groupby("precision")
            for _, other in alike[alike["others"]].iterrows()
            for _, own in alike[~alike["others"]].iterrows()
            if other["whole"].n and own["whole"].n
        ]
        if ratios:
            found.append(
                f"A whole cell at batch {number(batch)}, evaluated each epoch and with its files, takes "
                f"lbdist {', '.join(ratios)}."
            )
    return found


def _draw(data: pd.DataFrame) -> Drawing:
    """A panel for each batch and number of workers, a bar for each procedure."""
    from matplotlib.figure import Figure as Drawn
    from matplotlib.ticker import MaxNLocator

    panels = list(data.groupby(["workers", "batch"]))
    figure = Drawn(
        figsize=(7.2, 0.5 + sum(0.35 + 0.3 * len(group) for _, group in panels)), layout="constrained"
    )
    heights = [1 + len(group) for _, group in panels]
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, ((workers, batch), group) in zip(axes, panels, strict=True):
        group = group.iloc[::-1]
        colors = ["#0072B2" if not other else drawing.LINE for other in group["others"]]
        spread = [0.0 if rate.n < 2 else rate.std for rate in group["rate"]]
        axis.barh(group["procedure"], group["mean"], xerr=spread, color=colors, edgecolor=drawing.MUTED)
        for place, mean in enumerate(group["mean"]):
            axis.annotate(number(mean), (mean, place), (5, 0), textcoords="offset points", va="center")
        on = f"{workers} worker{'s' * (workers > 1)} or thread{'s' * (workers > 1)}"
        axis.set_title(f"batch {number(batch)}, {on}", loc="left", fontsize=9)
        axis.grid(axis="y", visible=False)
    axes[-1].xaxis.set_major_locator(MaxNLocator(6))
    axes[-1].set_xlim(0, 1.12 * data["mean"].max())
    axes[-1].set_xlabel("samples a second")
    return figure
