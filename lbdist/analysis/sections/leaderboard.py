"""The leaderboard of methods, and the sentences that its numbers support."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.conclusion import conclusion
from lbdist.analysis.numbers import epsilon_text, seconds
from lbdist.analysis.runs import COSTS, Runs
from lbdist.analysis.section import (
    Entry,
    Figure,
    Section,
    Table,
    heads_of_others,
    of_difference,
    of_number,
    of_others,
    of_summary,
    tables_of_others,
)
from lbdist.analysis.statistics import Difference, difference, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def section(runs: Runs) -> Section:
    """The leaderboard: its conclusion, its table, what a run cost, its figure."""
    board = leaderboard(runs)
    figures = []
    if len(board) and any(summary.n for summary in board["score"]):
        data = leaderboard_data(runs, board)
        caption = f"Mean test {runs.score.name} {drawing.bars(data.loc[data['n'] > 0, 'n'])}. "
        caption += "Vertical lines mark SB (solid) and LB (dashed)."
        if data["phi"].notna().any():
            caption += (
                f" Right: sharpness {runs.box} in the full space, run to convergence; lower is flatter."
            )
        measured = data["phi"].notna().any()
        title = f"{runs.score.name.capitalize()}{' and flatness' if measured else ''} by method"
        draw = lambda: draw_leaderboard(data, runs.epsilon, runs.score.axis)  # noqa: E731
        figures.append(Figure("leaderboard", title, caption, draw))
    tables = []
    if len(board):
        heads = {label: label.replace(" + ", " +\n") for label in board["method"]}
        tables = [_table(runs, board), *tables_of_others(runs.others, heads), _costs(board)]
    return Section("Leaderboard", conclusion(runs, board), tables, figures, brief=True)


def leaderboard(runs: Runs) -> pd.DataFrame:
    """One row per method: SB, LB, then the remedies by test score.

    Returns:
        Columns `method`; `setting`, the hyperparameters that were chosen; `score`, a Summary; `gap`, the
        Difference SB - method; `n`, the runs in the means; the means `steps`, `gradient_evaluations`,
        `seconds`; `global_batch_size`, `num_workers`; `diverged`, the runs left out; `measured`, the
        sharpness values of the converged solver, and `not_converged`, those of them that did not converge
        or failed; `phi`, a Summary by box, full space and converged.
    """
    cells, values = runs.counted, runs.sharpness
    sb = cells.loc[cells["label"] == "SB", "score"]
    full = values[(values["space"] == "full") & (values["solver"] == "converged")]
    boxes = sorted(full["epsilon"].unique(), reverse=True)
    phis = {key: summarise(group) for key, group in full.groupby(["label", "epsilon"])["phi"]}
    table = []
    groups = dict(list(cells.groupby("label")))
    for label in runs.order():
        group = groups[label]
        own = values[(values["label"] == label) & (values["solver"] == "converged")]
        finished = group[~group["diverged"]]
        row: dict[str, Any] = {
            "method": label,
            "setting": group["setting"].iloc[0],
            "score": runs.score.summarise(group["score"]),
            "gap": Difference(*[math.nan] * 3) if label == "SB" else difference(sb, group["score"]),
            "phi": {box: phis.get((label, box), summarise([])) for box in boxes},
            **{cost: float(finished[cost].mean()) for cost in COSTS},
            "global_batch_size": int(group["global_batch_size"].iloc[0]),
            "num_workers": tuple(sorted(set(group["num_workers"]))),
            "diverged": int(group["diverged"].sum()),
            "measured": int(own["measured"].sum()),
        }
        row["n"] = row["score"].n
        row["not_converged"] = row["measured"] - int(own["converged"].sum())
        table.append(row)
    return pd.DataFrame(table)


def _table(runs: Runs, board: pd.DataFrame) -> Table:
    boxes = board["phi"].iloc[0]
    heads = ["method", f"test\n{runs.score.head}", runs.score.in_points("gap\nto SB")]
    heads += [f"sharpness\nφ({epsilon_text(box)})" for box in boxes]
    heads += [*heads_of_others(runs.others), "steps", "gradient\nevals", "seconds", "n"]
    diverged = bool(board["diverged"].any())
    heads += ["di-\nverged"] if diverged else []
    rows = [
        [
            Entry(row["method"], row["setting"]),
            of_summary(row["score"]),
            of_difference(row["gap"]),
            *[of_summary(row["phi"][box], "phi") for box in boxes],
            *of_others(runs.others, row["method"]),
            of_number(row["steps"]),
            of_number(row["gradient_evaluations"]),
            Entry(seconds(row["seconds"]), values={"": row["seconds"]}),
            of_number(row["n"]),
            *([of_number(row["diverged"])] if diverged else []),
        ]
        for _, row in board.iterrows()
    ]
    note = (
        "Mean ± sample standard deviation over n seeds; the small line under it is the 95 % t interval of "
        "the mean, and under the gap (SB minus the method; negative: above SB) Welch's 95 % interval. "
        f"{'φ: full space, converged solver. ' if boxes else ''}The small line under a method is the setting "
        "that was chosen on the validation split. Seconds are wall-clock on the hardware named below and "
        "compare only between runs that shared it alike."
    )
    title = "Mean ± standard deviation over n seeds" + ("; φ: full space, converged" if boxes else "")
    steps = heads.index("steps")
    spare = [place for place, box in enumerate(boxes, 3) if box != runs.epsilon] + [steps, steps + 1]
    return Table("leaderboard", title, heads, rows, note, spare=spare)


def _costs(board: pd.DataFrame) -> Table:
    rows = []
    measured = bool(board["measured"].any())
    for _, row in board.iterrows():
        reached = f"{row['measured'] - row['not_converged']} of {row['measured']}" if row["measured"] else "–"
        rows.append(
            [
                Entry(row["method"]),
                of_number(row["global_batch_size"]),
                Entry(" and ".join(map(str, row["num_workers"]))),
            ]
            + [Entry(reached, values={"": row["measured"] - row["not_converged"], "of": row["measured"]})]
            * measured
        )
    heads = ["method", "global batch", "workers", *["φ converged"] * measured]
    note = "“φ converged” counts the values of the converged solver in both spaces." if measured else ""
    return Table("runs", "Runs", heads, rows, note, brief=False)


def leaderboard_data(runs: Runs, board: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard's order: columns `label, mean, std, n, phi, phi_std`; φ is NaN where not measured."""
    data = []
    for _, row in board.iterrows():
        score, sharp = row["score"], row["phi"].get(runs.epsilon) if runs.epsilon is not None else None
        phi = {"phi": sharp.mean if sharp else math.nan, "phi_std": sharp.std if sharp else math.nan}
        data.append({"label": row["method"], "mean": score.mean, "std": score.std, "n": score.n, **phi})
    return pd.DataFrame(data, columns=["label", "mean", "std", "n", "phi", "phi_std"])


def draw_leaderboard(data: pd.DataFrame, epsilon: float | None, axis: str = "test accuracy (%)") -> Drawing:
    """Test score of each method with SB and LB as reference lines and, where measured, its sharpness."""
    from matplotlib.figure import Figure

    phi = epsilon is not None and (data["phi"] > 0).any()
    height = 1.15 + 0.36 * len(data)
    figure = Figure(figsize=(7.2, height), layout="constrained")
    panels = figure.subplots(1, 2 if phi else 1, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.08})[0]
    style = drawing.marks(data["label"])
    places = np.arange(len(data))
    columns = [("mean", "std"), ("phi", "phi_std")]
    for axes, (column, spread) in zip(panels, columns, strict=False):
        log = column == "phi"
        for place, (_, row) in zip(places, data.iterrows(), strict=True):
            value, std = row[column], row[spread]
            if math.isnan(value) or (log and value <= 0):
                axes.text(
                    0.02,
                    place,
                    "no value",
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    color=drawing.MUTED,
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
                markeredgecolor=drawing.PAPER,
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
            drawing.log_axis(axes, [*positive["phi"], *ends])
            axes.set_xlabel(f"sharpness φ({epsilon_text(epsilon or 0)}) (log scale)")
        else:
            axes.margins(x=0.08)
            axes.set_xlabel(axis)
    panels[0].set_yticks(places, data["label"])
    for text in panels[0].get_yticklabels():
        text.set_fontweight(drawing.weight(text.get_text()))
    panels[0].set_ylim(len(data) - 0.4, -0.6)
    return figure
