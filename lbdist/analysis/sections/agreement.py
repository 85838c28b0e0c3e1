"""How far runs are apart that differ in nothing but their number of workers, or their precision, and how far
the last point of a run's curve, in its own precision, from its end, in float32.
"""

from __future__ import annotations

import math

import pandas as pd

from lbdist.analysis.numbers import number, three_digits
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Section, Table, of_number, of_summary
from lbdist.analysis.statistics import summarise

COLUMNS = (
    "method", "seed", "differs", "a", "b", "score_a", "score_b", "score_std",
    "phi_a", "phi_b", "phi_std", "first_epoch", "last_epoch",
)  # fmt: skip


def section(runs: Runs) -> Section:
    """The pairs, in a sentence and in a table."""
    pairs = agreement(runs)
    heads = [
        "method", "seed", "runs", f"test\n{runs.score.head}", "std over\nseeds", runs.box,
        "std over\nseeds", "loss apart,\nfirst epoch", "loss apart,\nlast epoch",
    ]  # fmt: skip
    rows = [
        [
            Entry(pair["method"]),
            Entry(str(pair["seed"])),
            Entry(_what(pair)),
            _both(pair["score_a"], pair["score_b"], number(pair["score_a"], 2), number(pair["score_b"], 2)),
            Entry(number(pair["score_std"], 2), values={"": pair["score_std"]}),
            _both(pair["phi_a"], pair["phi_b"], three_digits(pair["phi_a"]), three_digits(pair["phi_b"])),
            Entry(three_digits(pair["phi_std"]), values={"": pair["phi_std"]}),
            Entry(three_digits(pair["first_epoch"]), values={"": pair["first_epoch"]}),
            Entry(three_digits(pair["last_epoch"]), values={"": pair["last_epoch"]}),
        ]
        for _, pair in pairs.iterrows()
    ]
    title = "Runs on different numbers of workers, or in different precisions"
    tables = [Table("agreement", title, heads, rows, brief=False)] if rows else []
    ends = evaluated_twice(runs)
    sentences = [sentence(pairs, runs), of_precisions(ends, runs)]
    tables += [_precisions(ends, runs)] if len(ends) else []
    brief = len(runs.counted) > 0
    title = "Agreement between numbers of workers and precisions"
    return Section(title, [text for text in sentences if text], tables, brief=brief)


def evaluated_twice(runs: Runs) -> pd.DataFrame:
    """Confirmed runs whose end was evaluated in float32, and the last point of whose curve was not.

    Returns:
        By the cell: `label`, `precision` (of the point), of `score` and `loss` off the training set the
        `point_` and the `end_`, and how far these are apart: `score_apart`, and relatively `loss_apart`.
    """
    rows = runs.rows[runs.rows["measurement"].isna() & runs.rows["split"].eq("test")]
    cells = runs.counted[~runs.counted["diverged"]]
    found = cells[["label", "precision"]].copy()
    for name, metric in (("score", runs.score.name), ("loss", "loss")):
        chosen = rows[rows["metric"] == metric]
        point = chosen[chosen["epoch"].notna()].sort_values("epoch").drop_duplicates("cell", keep="last")
        end = chosen[chosen["epoch"].isna()].drop_duplicates("cell", keep="last").set_index("cell")
        found[f"point_{name}"] = point.set_index("cell")["value"].reindex(found.index)
        found[f"end_{name}"] = end["value"].reindex(found.index)
        found["exact"] = end["precision"].reindex(found.index).eq("float32")
    found["score_apart"] = (found["point_score"] - found["end_score"]).abs()
    found["loss_apart"] = (found["point_loss"] / found["end_loss"] - 1).abs()
    return found[found.pop("exact") & found["precision"].ne("float32")].dropna()


def of_precisions(ends: pd.DataFrame, runs: Runs) -> str:
    """In what curves and ends are evaluated, and how far these are apart."""
    if ends.empty:
        return ""
    score, reduced = runs.score, " and ".join(sorted(ends["precision"].unique()))
    apart, loss = ends["score_apart"].max(), ends["loss_apart"].max()
    return (
        f"Points of curves are evaluated in {reduced}, as the runs train, and ends in float32: after the "
        f"last epoch of {number(len(ends))} runs the two are apart by at most {number(apart, 2)}"
        f"{score.points} of test {score.name} and {loss:.1e} (relative) of test loss."
    )


def _precisions(ends: pd.DataFrame, runs: Runs) -> Table:
    """What `of_precisions` says, method by method."""
    heads = [
        "method", "precision\nof the curve", f"last point,\n{runs.score.head}",
        f"end in float32,\n{runs.score.head}", "apart,\nat most", "test loss apart\n(relative), at most", "n",
    ]  # fmt: skip
    rows = []
    for (label, precision), group in ends.groupby(["label", "precision"]):
        loss = group["loss_apart"].max()
        rows.append(
            [
                Entry(str(label)),
                Entry(str(precision)),
                of_summary(summarise(group["point_score"])),
                of_summary(summarise(group["end_score"])),
                of_number(group["score_apart"].max(), 2),
                Entry(three_digits(loss), values={"": loss}),
                of_number(len(group)),
            ]
        )
    title = "The last point of the curve, in the run's own precision, and its end, in float32"
    return Table("curve_and_end", title, heads, rows, brief=False)


def _both(first: float, second: float, a: str, b: str) -> Entry:
    text = "–" if math.isnan(first + second) else f"{a} and {b}"
    return Entry(text, values={"first": first, "second": second})


def agreement(runs: Runs) -> pd.DataFrame:
    """Runs that differ in nothing but their number of workers, or their precision, in pairs.

    Returns:
        Columns `method`, `seed`; `differs`, `workers` or `precision`, and what it is in the two runs, `a` (of
        workers the fewest, of precisions that of the run in the tables) and `b`; `score_a` and `score_b`, the
        final test scores; `phi_a` and `phi_b`, the headline's sharpness where it was measured;
        `score_std` and `phi_std`, the standard deviations of the method over seeds, for scale; `first_epoch`
        and `last_epoch`, the relative difference of the running loss there.
    """
    rows, counted = runs.rows, runs.counted
    alike = runs.cells["role"].isin(["confirm", "workers", "precision"])
    cells = runs.cells[alike].fillna({"precision": ""})
    losses = rows[(rows["metric"] == "running_loss") & rows["epoch"].ge(1)].sort_values("step", kind="stable")
    phi = runs.sharpness_of(cells.index)

    def loss(cell: str) -> pd.Series:
        found = losses[losses["cell"] == cell].drop_duplicates("epoch", keep="last")
        return found.set_index("epoch")["value"].sort_index()

    table = []
    for (label, *_, seed), group in cells.groupby(["label", "setting", "global_batch_size", "seed"]):
        if len(group) == 1:
            continue
        group = group.assign(checked=group["role"] != "confirm").sort_values(["checked", "num_workers"])
        group = group.drop_duplicates(["num_workers", "precision"])
        main, others = group.iloc[0], group.iloc[1:]
        for place, (_, other) in enumerate(others.iterrows(), 1):
            first = main
            if other["num_workers"] != main["num_workers"]:  # of those before it, the one of its precision
                alike = group.iloc[:place]
                alike = alike[alike["precision"] == other["precision"]]
                first = alike.iloc[0] if len(alike) else main
            differs = "workers" if first["num_workers"] != other["num_workers"] else "precision"
            pair = [first, other]
            if differs == "workers":
                pair.sort(key=lambda cell: cell["num_workers"])
            one, two = pair
            apart = (loss(two.name) / loss(one.name) - 1).abs().dropna()
            own = counted[counted["label"] == label]
            values: list[str | float] = [
                differs,
                *(str(cell["num_workers" if differs == "workers" else differs]) for cell in pair),
                *(one["score"], two["score"], summarise(own["score"]).std),
                *(phi.get(one.name, math.nan), phi.get(two.name, math.nan)),
                summarise(phi.reindex(own.index)).std,
                *((apart.iloc[0], apart.iloc[-1]) if len(apart) else (math.nan, math.nan)),
            ]
            table.append([label, int(seed), *values])
    return pd.DataFrame(table, columns=COLUMNS)


def _what(pair: pd.Series) -> str:
    joined = f"{pair['a']} and {pair['b']}"
    return f"on {joined} workers" if pair["differs"] == "workers" else f"in {joined}"


def sentence(pairs: pd.DataFrame, runs: Runs) -> str:
    """What the pairs of `agreement` say."""
    score, texts = runs.score, []
    for _, pair in pairs.iterrows():
        apart = abs(pair["score_a"] - pair["score_b"])
        text = (
            f"{pair['method']}, seed {pair['seed']}, {_what(pair)}: test {score.name} "
            f"{number(pair['score_a'], 2)} and {score.of(number(pair['score_b'], 2))}, "
            f"{number(apart, 2)}{score.points} apart"
        )
        if not math.isnan(pair["score_std"]):
            text += f" (std over seeds {number(pair['score_std'], 2)})"
        if not math.isnan(pair["phi_a"] + pair["phi_b"]):
            text += f"; {runs.box} {three_digits(pair['phi_a'])} and {three_digits(pair['phi_b'])}"
            if not math.isnan(pair["phi_std"]):
                text += f" (std {three_digits(pair['phi_std'])})"
        if not math.isnan(pair["first_epoch"]):
            text += (
                f"; running loss apart by {pair['first_epoch']:.1e} (relative) after the first epoch "
                f"and {pair['last_epoch']:.1e} after the last"
            )
        texts.append(text + ".")
    for differs, words in (("workers", "numbers of workers"), ("precision", "precisions")):
        if not (pairs["differs"] == differs).any():
            texts.append(f"Agreement between {words} was not measured: each run used one.")
    return " ".join(texts)
