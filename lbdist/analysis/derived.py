"""Tables of measured rows that both a section and a claim need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lbdist.analysis.runs import EQUAL_LOSS, Runs
from lbdist.analysis.statistics import Difference, Summary, difference, geometric


def paired(table: pd.DataFrame, column: str, one: str, other: str) -> pd.DataFrame:
    """A column of two methods by seed, where both have it.

    Args:
        table: A row per run: `label`, `seed` and the column.
        column: Which.
        one: A method's label, and the first column of the result.
        other: Another's.
    """
    by = {key: table[table["label"] == key].set_index("seed")[column] for key in (one, other)}
    return pd.DataFrame(by).dropna()


def ratio(table: pd.DataFrame, column: str, over: str, under: str) -> Summary:
    """The geometric mean over seeds of one method's value over another's; see `paired`."""
    both = paired(table, column, over, under)
    return geometric(both[over] / both[under].where(both[under] > 0))


FAR = 1.25
"""How many times SB's training loss LB's is, from which on it is far above."""


REACHED = 1.05
"""How many times SB's training loss is still SB's."""


@dataclass(frozen=True)
class Undertrained:
    """What LB's training loss says of its gap to SB.

    Attributes:
        losses: The means of LB's and SB's training loss.
        equal: SB's score minus that of LB trained to SB's loss; None where no run came to it.
    """

    losses: tuple[float, float]
    equal: Difference | None

    @property
    def closed(self) -> bool:
        """Whether LB that is trained to SB's loss is not clearly below SB."""
        return self.equal is not None and self.equal.sign in (0, -1)


def undertrained(runs: Runs) -> Undertrained | None:
    """What is known where LB ends with a training loss far above SB's, by more than seeds vary; else None."""
    cells = runs.counted
    sb, lb = (cells.loc[cells["label"] == label, "train_loss"].dropna() for label in ("SB", "LB"))
    apart = difference(lb, sb)
    if sb.empty or lb.empty or not lb.mean() > FAR * sb.mean() or apart.sign == 0:
        return None
    scores = {key: cells.loc[cells["label"] == key, "score"].dropna() for key in ("SB", EQUAL_LOSS)}
    reached = cells.loc[cells["label"] == EQUAL_LOSS, "train_loss"].mean() <= REACHED * sb.mean()
    equal = difference(scores["SB"], scores[EQUAL_LOSS]) if reached else None
    return Undertrained((float(lb.mean()), float(sb.mean())), equal)


def points(runs: Runs) -> pd.DataFrame:
    """One row per run and epoch: `label, cell, seed, epoch`; training `loss`, test `score`, φ and its box."""
    rows, cells = runs.measurements, runs.counted
    rows = rows[rows["cell"].isin(cells.index[~cells["diverged"]])]
    phis = rows[(rows["metric"] == "sharpness") & (rows["space"] == "full") & (rows["solver"] == "converged")]
    phis = phis[(phis["epsilon"] == phis["epsilon"].max()) & phis["value"].notna()]
    names = runs.names(rows)
    losses, scores = rows[names == "train_loss"], rows[names == f"test_{runs.score.name}"]

    def at(found: pd.DataFrame) -> pd.Series:
        epoch = found["epoch"].astype(float).fillna(found["cell"].map(cells["epochs"]))
        index = pd.MultiIndex.from_arrays([found["cell"], epoch])
        values = pd.Series(found["value"].to_numpy(float), index=index)
        return values.groupby(level=[0, 1]).mean()  # two measurements may have one of them each

    table = pd.DataFrame({"phi": at(phis), "loss": at(losses), "score": at(scores)})
    table = table.dropna(subset=["phi", "loss"])
    table.index.names = ["cell", "epoch"]
    table = table.reset_index()
    table["label"], table["seed"] = table["cell"].map(cells["label"]), table["cell"].map(cells["seed"])
    table["epsilon"] = phis["epsilon"].max() if len(phis) else float("nan")
    return table.sort_values(["label", "seed", "epoch"]).reset_index(drop=True)


def changes(data: pd.DataFrame) -> dict[str, Summary]:
    """By method, φ at the end of a run over φ at its first point: the geometric mean over seeds."""
    found = {}
    for label, group in data.groupby("label"):
        runs = [run.sort_values("epoch") for _, run in group.groupby("cell") if len(run) > 1]
        found[str(label)] = geometric(run["phi"].iloc[-1] / run["phi"].iloc[0] for run in runs)
    return found


def rises(runs: Runs) -> pd.DataFrame:
    """One row per seed and method: how far the training loss rises on the line, at SB (`own`) and `there`."""
    rows = runs.measurements
    rows = rows[rows["position"].notna() & rows["value"].notna() & rows["position_2"].isna()]
    rows = rows[(rows["metric"] == "loss") & (rows["split"] == "train")]
    rows = rows[rows["other_cell"].isin(runs.counted.index)]
    rows = rows[rows["curvilinear"] != True]  # noqa: E712
    found = []
    for cell, group in rows.groupby("other_cell"):
        losses = group.set_index("position")["value"].sort_index()
        own = {"own": rise(losses, 0), "there": rise(losses, 1)}
        found.append({"label": runs.counted["label"][cell], "seed": runs.counted["seed"][cell], **own})
    return pd.DataFrame(found, columns=["label", "seed", "own", "there"])


def rise(losses: pd.Series, at: float) -> float:
    """How far the loss rises a quarter to both sides, in the mean; NaN where the slice does not reach."""
    if losses.index.min() > at - 0.25 or losses.index.max() < at + 0.25:
        return math.nan
    here, left, right = np.interp([at, at - 0.25, at + 0.25], losses.index, losses)
    return float((left + right) / 2 - here)
