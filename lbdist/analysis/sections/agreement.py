"""How far runs on different numbers of workers are apart."""

from __future__ import annotations

import math

import pandas as pd

from lbdist.analysis.numbers import number, three_digits
from lbdist.analysis.runs import Runs, Score
from lbdist.analysis.section import Entry, Section, Table
from lbdist.analysis.statistics import summarise


def section(runs: Runs) -> Section:
    """The pairs, in a sentence and in a table."""
    pairs = agreement(runs)
    heads = [
        "method", "seed", "workers", f"test {runs.score.head}", "running loss apart,\nfirst epoch",
        "running loss apart,\nlast epoch", "std over\nseeds",
    ]  # fmt: skip
    rows = [
        [
            Entry(pair["method"]),
            Entry(str(pair["seed"])),
            Entry(f"{pair['workers_a']} and {pair['workers_b']}"),
            Entry(
                f"{number(pair['score_a'], 2)} and {number(pair['score_b'], 2)}",
                values={"first": pair["score_a"], "second": pair["score_b"]},
            ),
            Entry(three_digits(pair["first_epoch"]), values={"": pair["first_epoch"]}),
            Entry(three_digits(pair["last_epoch"]), values={"": pair["last_epoch"]}),
            Entry(number(pair["seed_std"], 2), values={"": pair["seed_std"]}),
        ]
        for _, pair in pairs.iterrows()
    ]
    tables = (
        [Table("agreement", "Runs on different numbers of workers", heads, rows, brief=False)] if rows else []
    )
    brief = len(runs.counted) > 0
    return Section("Agreement between numbers of workers", [sentence(pairs, runs.score)], tables, brief=brief)


def agreement(runs: Runs) -> pd.DataFrame:
    """Runs that differ in nothing but their number of workers, in pairs.

    Returns:
        Columns `method`, `seed`; `workers_a` (the fewest) and `workers_b`; `score_a`, `score_b`, the
        final test scores; `first_epoch` and `last_epoch`, the relative difference of the running loss
        there; `seed_std`, the standard deviation of the method's test score over seeds, for scale.
    """
    rows, counted = runs.rows, runs.counted
    cells = runs.cells[runs.cells["stage"] != "search"]
    losses = rows[(rows["metric"] == "running_loss") & rows["epoch"].ge(1)].sort_values("step", kind="stable")

    def loss(cell: str) -> pd.Series:
        found = losses[losses["cell"] == cell].drop_duplicates("epoch", keep="last")
        return found.set_index("epoch")["value"].sort_index()

    table = []
    for (label, *_, seed), group in cells.groupby(["label", "setting", "global_batch_size", "seed"]):
        group = group.sort_values("num_workers").drop_duplicates("num_workers")
        first = group.iloc[0]
        for _, other in group.iloc[1:].iterrows():
            apart = (loss(other.name) / loss(first.name) - 1).abs().dropna()
            table.append(
                {
                    "method": label,
                    "seed": int(seed),
                    "workers_a": int(first["num_workers"]),
                    "workers_b": int(other["num_workers"]),
                    "score_a": float(first["score"]),
                    "score_b": float(other["score"]),
                    "first_epoch": float(apart.iloc[0]) if len(apart) else math.nan,
                    "last_epoch": float(apart.iloc[-1]) if len(apart) else math.nan,
                    "seed_std": summarise(counted.loc[counted["label"] == label, "score"]).std,
                }
            )
    columns = ["method", "seed", "workers_a", "workers_b", "score_a", "score_b"]
    return pd.DataFrame(table, columns=[*columns, "first_epoch", "last_epoch", "seed_std"])


def sentence(pairs: pd.DataFrame, score: Score) -> str:
    """What the pairs of `agreement` say of the number of workers."""
    if pairs.empty:
        return (
            "Each run used one number of workers, so agreement between numbers of workers was not measured."
        )
    texts = []
    for _, pair in pairs.iterrows():
        apart = abs(pair["score_a"] - pair["score_b"])
        text = (
            f"{pair['method']}, seed {pair['seed']}, on {pair['workers_a']} and {pair['workers_b']} workers: "
            f"test {score.name} {number(pair['score_a'], 2)} and {score.of(number(pair['score_b'], 2))}, "
            f"{number(apart, 2)}{score.points} apart"
        )
        if not math.isnan(pair["seed_std"]):
            text += f" (std over seeds {number(pair['seed_std'], 2)})"
        if not math.isnan(pair["first_epoch"]):
            text += (
                f"; running loss apart by {pair['first_epoch']:.1e} (relative) after the first epoch "
                f"and {pair['last_epoch']:.1e} after the last"
            )
        texts.append(text + ".")
    return " ".join(texts)
