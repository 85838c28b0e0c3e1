"""How many steps, samples and seconds runs take to a test score (Shallue et al., JMLR 2019, section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lbdist.analysis.runs import Runs
from lbdist.analysis.statistics import positive_fit


def points(runs: Runs) -> pd.DataFrame:
    """The test curves of the confirmed runs that did not diverge, and what each epoch of them consisted of.

    Returns:
        One row per run and epoch: `cell, label, remedy, global_batch_size, seed, epoch, step, score` (NaN
        where it was not evaluated), `steps` of the epoch, and the `batch` that they had.
    """
    cells = runs.counted[~runs.counted["diverged"]]
    rows = runs.rows[runs.rows["measurement"].isna() & runs.rows["cell"].isin(cells.index)]
    epochs = rows[rows["metric"] == "running_loss"].drop_duplicates(["cell", "epoch"], keep="last")
    found = epochs[["cell", "epoch", "step"]].sort_values(["cell", "epoch"], kind="stable")
    if found.empty:
        return pd.DataFrame(columns=["cell", "label", "remedy", "global_batch_size", "seed", "epoch", "step",
                                     "score", "steps", "batch"])  # fmt: skip
    for column in ("label", "remedy", "global_batch_size", "seed"):
        found[column] = found["cell"].map(cells[column])
    scores = rows[(rows["metric"] == runs.score.name) & (rows["split"] == "test") & rows["epoch"].notna()]
    scores = scores.drop_duplicates(["cell", "epoch"], keep="last").set_index(["cell", "epoch"])["value"]
    found["score"] = scores.reindex(pd.MultiIndex.from_frame(found[["cell", "epoch"]])).to_numpy()
    found["steps"] = found["step"] - found.groupby("cell")["step"].shift(fill_value=0)
    # a run whose batch grows has more steps per epoch than one that has its last batch from the start
    least = found.groupby("global_batch_size")["steps"].transform("min")
    found["batch"] = found["global_batch_size"] * least / found["steps"]
    return found.reset_index(drop=True)


def methods(data: pd.DataFrame) -> list[str]:
    """The methods of `points`: those without a remedy by their batch, then the others."""
    known = data.drop_duplicates("label").assign(other=lambda rows: rows["remedy"] != "none")
    return list(known.sort_values(["other", "global_batch_size", "label"])["label"])


def crossing(at: Sequence[float], scores: Sequence[float], target: float) -> float:
    """Where a curve first reaches a score, by the line between its points; NaN where it never does.

    A curve that begins above it is taken at its first point, which is an upper bound.

    Example:
        >>> crossing([10, 20, 30], [50.0, 60.0, 80.0], 70.0), crossing([10, 20], [50.0, 60.0], 70.0)
        (25.0, nan)
    """
    before: tuple[float, float] | None = None
    for place, score in zip(at, scores, strict=True):
        if math.isnan(score):
            continue
        if score >= target:
            if before is None:
                return float(place)
            x, y = before
            return float(x + (place - x) * (target - y) / (score - y))
        before = place, score
    return math.nan


def reached(data: pd.DataFrame, target: float, over: str = "step") -> pd.Series:
    """Where each run of `points` reaches a score, by its cell."""
    return pd.Series(
        {
            cell: crossing(list(group[over]), list(group["score"]), target)
            for cell, group in data.groupby("cell", sort=False)
        },
        dtype=float,
    )


def level(data: pd.DataFrame, labels: Iterable[str]) -> float:
    """The highest score that every run of these methods reaches; NaN without runs."""
    own = data[data["label"].isin(list(labels))]
    return float(own.groupby("cell")["score"].max().min()) if len(own) else math.nan


def first(data: pd.DataFrame) -> pd.Series:
    """The score of each run of `points` where it was first evaluated, by its cell."""
    return data.dropna(subset="score").groupby("cell", sort=False)["score"].first()


@dataclass(frozen=True)
class CriticalBatch:
    """steps = least (1 + critical / batch) (McCandlish et al., arXiv:1812.06162, equation 2.11).

    Attributes:
        least: Steps that no batch goes below.
        critical: The batch at which twice as many are needed, and twice the fewest samples.
        low: Lower end of its 95 % interval.
        high: Its upper end.
        error: Root mean square relative residual.
        batches: The smallest and the largest batch that were run.
    """

    least: float
    critical: float
    low: float
    high: float
    error: float
    batches: tuple[float, float]

    @property
    def inside(self) -> bool:
        """Whether its interval is inside the batches that were run, and it can be told."""
        return self.batches[0] <= self.low and self.high <= self.batches[1]


def critical_batch(batches: Iterable[float], steps: Iterable[float]) -> CriticalBatch | None:
    """The critical batch by the steps that runs of different batches take to one score.

    Args:
        batches: The batch of each run.
        steps: Its steps; runs that did not reach the score are left out.

    Returns:
        None for fewer than three different batches.

    Example:
        >>> sizes = [16.0, 32.0, 64.0, 128.0, 256.0]
        >>> found = critical_batch(sizes, [50 * (1 + 100 / size) for size in sizes])
        >>> round(found.least), round(found.critical)
        (50, 100)
    """
    x, y = np.asarray(list(batches), dtype=float), np.asarray(list(steps), dtype=float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(np.unique(x)) < 3:
        return None
    values, ends, error = positive_fit(lambda p: p[0] * (1 + p[1] / x), y, [y.min(), float(np.median(x))])
    low, high = (float(end) for end in ends[1])
    tried = float(x.min()), float(x.max())
    return CriticalBatch(float(values[0]), float(values[1]), low, high, error, tried)


def seconds(data: pd.DataFrame, steps: Mapping[tuple[str, int], float], label: str, full: int) -> pd.Series:
    """The time after each epoch of `points`, of runs of one method, on so many workers.

    Args:
        data: Its rows.
        steps: What a step takes, by method and batch: of SB, LB and batches between without a remedy by the
            name "" and their batch, and of the method at its own.
        label: The method.
        full: The method's own batch.

    Returns:
        Seconds since the start, in the order of the rows; NaN where no step of the method was timed.
    """
    plain = {batch: value for (name, batch), value in steps.items() if not name}
    own = steps.get((label, full), plain.get(full, math.nan))
    if not plain or math.isnan(own):
        return pd.Series(math.nan, index=data.index)
    sizes = sorted(plain)
    logs = np.log([plain[size] for size in sizes])

    def at(batch: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(np.interp(np.log(batch), np.log(sizes), logs)))

    factor = own / float(at(np.array([float(full)]))[0])
    each = data["steps"] * factor * at(data["batch"].to_numpy(dtype=float))
    return each.groupby(data["cell"]).cumsum()
