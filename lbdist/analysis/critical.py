"""Steps to a score by the batch, and the critical batch in three ways, as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from lbdist.analysis import to_score
from lbdist.analysis.runs import Runs
from lbdist.analysis.statistics import geometric, summarise
from lbdist.analysis.to_score import CriticalBatch

SHARES = (0.25, 0.5, 0.75, 1.0)
"""The targets that are chosen: of the way from where plain runs are first evaluated to what all reach."""


def targets(plain: pd.DataFrame) -> list[float]:
    """Scores that every plain run reaches, and none where it is first evaluated, if there are such."""
    top, low = to_score.level(plain, plain["label"].unique()), float(to_score.first(plain).max())
    return [low + share * (top - low) for share in SHARES] if low < top else [top]


def curves(data: pd.DataFrame, goals: Sequence[float]) -> pd.DataFrame:
    """One row per method and goal.

    Returns:
        `label, remedy, batch, goal`; `steps` of each run (NaN: not reached); `early`, whether a run is there
        where it is first evaluated, so that its steps are an upper bound.
    """
    rows, first = [], to_score.first(data)
    for goal in goals:
        steps = to_score.reached(data, goal)
        for label in to_score.methods(data):
            group = data[data["label"] == label].drop_duplicates("cell")
            batch, remedy = int(group["global_batch_size"].iloc[0]), group["remedy"].iloc[0]
            own = [float(steps[cell]) for cell in group["cell"]]
            early = bool((first.reindex(group["cell"]) >= goal).any())
            known = {"label": label, "remedy": remedy, "goal": goal, "batch": batch}
            rows.append({**known, "steps": own, "early": early})
    return pd.DataFrame(rows)


def by_steps(found: pd.DataFrame, goal: float) -> CriticalBatch | None:
    """The critical batch by the steps of plain runs to one score; None if some are but bounds."""
    own = found[(found["goal"] == goal) & (found["remedy"] == "none")]
    if own["early"].any():
        return None
    pairs = [(row["batch"], steps) for _, row in own.iterrows() for steps in row["steps"]]
    return to_score.critical_batch(*zip(*pairs, strict=True)) if pairs else None


def noise(runs: Runs) -> pd.DataFrame:
    """The noise scale along SB: one row per epoch, `epoch` (its last for the end) and `noise`, a Summary."""
    cells = runs.counted[runs.counted["label"] == "SB"]
    rows = runs.measurements
    rows = rows[(rows["metric"] == "noise_scale") & rows["cell"].isin(cells.index) & rows["value"].notna()]
    epochs = rows["epoch"].fillna(rows["cell"].map(cells["epochs"]))
    found = [
        {"epoch": int(epoch), "noise": geometric(group)} for epoch, group in rows["value"].groupby(epochs)
    ]
    return pd.DataFrame(found, columns=["epoch", "noise"])


def branches(runs: Runs, tolerance: float) -> pd.DataFrame:
    """The critical batch by branching (Merrill et al., arXiv:2505.23971, section 3).

    From a model of SB, runs of as many samples go on at each batch; the critical batch is the largest one up
    to which no branch's training loss is above that at SB's batch by more than the tolerance.

    Returns:
        One row per epoch: `epoch`, `rises` over the branch at the smallest batch by batch (Summaries over the
        seeds), `batch`, and `most`, whether it is the largest that was tried.
    """
    cells = runs.cells
    branched = cells[cells["role"] == "branch"]
    own = branched[~branched["diverged"]].dropna(subset=["train_loss"])
    lost = branched[branched["diverged"]]
    found = []
    for epoch, group in own.groupby("origin_epoch"):
        by_seed = group.pivot_table(index="seed", columns="global_batch_size", values="train_loss")
        rises = {int(b): summarise(by_seed[b] - by_seed[by_seed.columns[0]]) for b in by_seed.columns}
        failed = set(lost[lost["origin_epoch"] == epoch]["global_batch_size"])
        kept = int(by_seed.columns[0])
        for batch, rise in rises.items():
            if batch in failed or not rise.mean <= tolerance:
                break
            kept = batch
        found.append({"epoch": int(epoch), "rises": rises, "batch": kept, "most": kept == max(rises)})
    return pd.DataFrame(found, columns=["epoch", "rises", "batch", "most"])


def along(runs: Runs, plain: pd.DataFrame, fits: dict[float, CriticalBatch | None]) -> pd.DataFrame:
    """The critical batch by the steps to each score, at the epoch at which SB reaches the score."""
    small = plain[plain["label"] == "SB"]
    rows = []
    for goal, item in fits.items():
        epoch = to_score.reached(small, goal, "epoch").mean()
        if item is not None and not math.isnan(epoch):
            rows.append({"epoch": float(epoch), "goal": goal, "fit": item})
    return pd.DataFrame(rows, columns=["epoch", "goal", "fit"])
