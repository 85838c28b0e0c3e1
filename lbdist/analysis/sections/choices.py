"""How far the sharpness moves with what the paper leaves open: batch norm, the solver, how A is drawn."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lbdist.analysis.derived import ratio
from lbdist.analysis.numbers import epsilon_text, interval, number
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Section, Table, of_summary, starts
from lbdist.analysis.statistics import Summary, summarise

BATCH_NORM, DRAW, SOLVER = "batch norm", "A", "solver"


def sections(runs: Runs) -> list[Section]:
    """One table; nothing where nothing was measured once more."""
    data = variants(runs)
    if data.empty:
        return []
    score = any(row["score"]["SB"].n for _, row in data.iterrows())
    heads = ["choice", "taken as", "φ of SB", "φ of LB", "LB over SB"]
    heads += [f"{label} test\n{runs.score.head}" for label in ("SB", "LB")] if score else []
    rows = []
    for _, row in data.iterrows():
        more: Summary = row["ratio"]
        rows.append(
            [
                Entry(row["choice"]),
                Entry(row["taken"]),
                *[of_summary(row["phi"][label], "phi") for label in ("SB", "LB")],
                Entry(
                    number(more.mean, 1 if more.mean >= 2 else 2),
                    interval(more, 1),
                    {"": more.mean, "low": more.low, "high": more.high},
                ),
                *([of_summary(row["score"][label]) for label in ("SB", "LB")] if score else []),
            ]
        )
    epsilon = epsilon_text(float(runs.choices["epsilon"].max()))
    note = (
        f"φ({epsilon}), mean ± standard deviation over n seeds; LB over SB: geometric mean of the seeds' "
        "ratios, under it its 95 % interval. Batch norm and solver: full space; A: one subspace, converged, "
        "running statistics. “batch” normalises by each evaluated batch, as the authors' Keras layer did, "
        "“running” by the averages of training, “recalibrated” by those of the whole training set."
    )
    table = Table(
        "choices", "Where the paper is silent", heads, rows, note, left=2, groups=starts(data["choice"])
    )
    return [Section("What the paper leaves open", _sentences(data), [table], brief=True)]


def variants(runs: Runs) -> pd.DataFrame:
    """One row per choice: `choice, taken`, `phi` and `score` by method (Summaries), `ratio`, LB over SB."""
    rows = runs.choices
    if rows.empty:
        return pd.DataFrame()
    rows = rows.assign(seed=rows["cell"].map(runs.counted["seed"]), name=runs.names(rows))
    phis = rows[rows["metric"] == "sharpness"]
    full, drawn = phis[phis["space"] == "full"], phis[phis["space"] == "subspace"]
    found = [_row(runs, BATCH_NORM, mode, group, rows) for mode, group in full.groupby("batch_norm")]
    found += [_row(runs, DRAW, convention, group) for convention, group in drawn.groupby("convention")]
    same = runs.sharpness
    same = same[(same["space"] == "full") & (same["epsilon"] == phis["epsilon"].max())]
    for solver, group in same.groupby("solver"):
        group = group.rename(columns={"phi": "value"})
        found.append(_row(runs, SOLVER, str(solver), group))
    return pd.DataFrame(found)


def _row(
    runs: Runs, choice: str, taken: str, phis: pd.DataFrame, rows: pd.DataFrame | None = None
) -> dict[str, Any]:
    scores: dict[str, Summary] = {}
    for label in ("SB", "LB"):
        values: list[float] = []
        if rows is not None:
            own = (rows["label"] == label) & (rows["name"] == f"test_{runs.score.name}")
            values = list(rows.loc[own & (rows["batch_norm"] == taken), "value"])
        scores[label] = summarise(values)
    return {
        "choice": choice,
        "taken": taken,
        "phi": {label: summarise(phis.loc[phis["label"] == label, "value"]) for label in scores},
        "score": scores,
        "ratio": ratio(phis, "value", "LB", "SB"),
    }


def _sentences(data: pd.DataFrame) -> list[str]:
    """Under which choices LB stays the sharper one."""
    settled = [(f"{row['choice']}: {row['taken']}", row["ratio"].low > 1) for _, row in data.iterrows()]
    sharper = [name for name, is_sharper in settled if is_sharper]
    others = [name for name, is_sharper in settled if not is_sharper]
    text = f"LB is the sharper one under {len(sharper)} of {len(settled)} choices (95 % intervals)"
    return [text + (f"; not, or not clearly, under {', '.join(others)}." if others else ".")]
