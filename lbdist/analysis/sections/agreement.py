"""How far runs are apart that differ in nothing but their number of workers, or their precision."""

from __future__ import annotations

import math

import pandas as pd

from lbdist.analysis.numbers import number, three_digits
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Section, Table
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
    brief = len(runs.counted) > 0
    return Section(
        "Agreement between numbers of workers and precisions", [sentence(pairs, runs)], tables, brief=brief
    )


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
