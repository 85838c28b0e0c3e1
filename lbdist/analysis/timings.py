"""What was timed, as tables: steps, collective calls, their scaling, and the model that is fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from lbdist.analysis import step_time
from lbdist.analysis.runs import Runs
from lbdist.analysis.step_time import Call, Step, StepTime
from lbdist.plan import method_label

TREE, RING = "measured, tree", "measured, ring"
"""The measured link by each algorithm."""


def timed(runs: Runs) -> pd.DataFrame:
    """One row per timed step.

    Returns:
        `label, plain` (without a remedy), `batch, workers, precision`, every metric of the timing (see
        `lbdist.training.timing.Timing`), and `spread`, the standard deviation over its blocks.
    """
    rows = runs.rows[(runs.rows["procedure"] == "timing") & runs.rows["measurement"].isna()]
    final = rows[rows["block"].isna()]
    found = final.pivot_table(index="cell", columns="metric", values="value", aggfunc="last")
    if "step_seconds" not in found:  # nothing was timed, or did not fit
        return pd.DataFrame()
    found = found[found["step_seconds"].notna()]
    identity = rows.drop_duplicates("cell").set_index("cell")
    named = zip(identity["method"], identity["remedy"], strict=True)
    found["label"] = pd.Series([method_label(*pair) for pair in named], index=identity.index)
    found["plain"] = identity["remedy"] == "none"
    found["batch"], found["workers"] = identity["global_batch_size"], identity["num_workers"]
    found["precision"] = identity["precision"]
    found["device"] = identity["device"].fillna("")
    blocks = rows[rows["metric"] == "block_seconds"].groupby("cell")["value"]
    found["spread"] = blocks.std().reindex(found.index)
    for name in ("joules", "utilisation"):  # where NVML tells
        found[name] = found.get(name, math.nan)
    order = ["plain", "workers", "batch", "label"]
    found = found.sort_values(order, ascending=[False, True, True, True]).reset_index(drop=True)
    return found.astype({"batch": int, "workers": int})


def collective_calls(runs: Runs) -> list[Call]:
    """The collective calls by themselves, the median of the blocks of each size and group."""
    rows = runs.rows[(runs.rows["metric"] == "collective_seconds") & runs.rows["bytes"].notna()]
    keys = ["num_workers", "bytes"]
    found = rows.groupby(keys)["value"].median()
    return [Call(int(workers), float(size), float(taken)) for (workers, size), taken in found.items()]


def steps_of(data: pd.DataFrame) -> list[Step]:
    """The timed steps without a remedy, as the model takes them."""
    plain = data[data["plain"]] if len(data) else data
    return [
        Step(row["batch"], row["workers"], row["step_seconds"], row["collective_calls"],
             row["collective_bytes"], max(row["all_reduce_seconds"], 1e-9))
        for _, row in plain.iterrows()
    ]  # fmt: skip


def model(runs: Runs) -> StepTime | None:
    """The model of a step, fitted to all that was timed; None where that is too little."""
    try:
        return step_time.fit(steps_of(timed(runs)), collective_calls(runs))
    except ValueError:
        return None


def efficiency(data: pd.DataFrame) -> pd.DataFrame:
    """Strong and weak scaling of the timed steps without a remedy.

    Returns:
        `strong`: the time of one worker over P times that of P, at the same global batch; `weak`: the time of
        one worker over that of P, at the same share of each; NaN where one of the two was not timed. By the
        index of the data.
    """
    plain = data[data["plain"]]
    known = {(row["batch"], row["workers"]): row["step_seconds"] for _, row in plain.iterrows()}

    def both(row: pd.Series) -> tuple[float, float]:
        batch, workers, taken = row["batch"], row["workers"], row["step_seconds"]
        share = batch // workers if batch % workers == 0 else -1
        alone = known.get((batch, 1), math.nan)
        return alone / (workers * taken), known.get((share, 1), math.nan) / taken

    found = [both(row) for _, row in plain.iterrows()]
    return pd.DataFrame(found, index=plain.index, columns=["strong", "weak"])


def middle(steps: Sequence[Step]) -> Step:
    """The step that is held out for the headline: the middle batch on the most workers."""
    most = max(step.workers for step in steps)
    own = sorted((step for step in steps if step.workers == most), key=lambda step: step.batch)
    return own[len(own) // 2]


def links_of(fitted: StepTime, interconnects: Mapping[str, Mapping[str, float]]) -> dict[str, StepTime]:
    """The model over each interconnect: the measured one by a tree and by a ring, the others by a tree."""
    measured = {TREE: fitted.through("tree"), RING: fitted.through("ring")}
    found = measured if fitted.value("alpha") else {}
    for name, link in interconnects.items():
        found[name] = fitted.over(float(link["seconds"]), 1 / float(link["bytes_per_second"]))
    return found
