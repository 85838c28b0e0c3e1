"""Models of the user's own, the flattest first."""

from __future__ import annotations

import itertools

import pandas as pd

from lbdist.analysis.numbers import epsilon_text, number, phi, three_digits
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Section, Table
from lbdist.analysis.sections import reading, rescaling, spectrum
from lbdist.analysis.statistics import summarise

_FIT = ("train_", "test_")


def sections(runs: Runs) -> list[Section]:
    """One table: what fits, how sharp each model is by solver, space and box, and what else was measured."""
    rows, title = runs.measurements, "Models, the flattest first"
    rows = rows[rows["position"].isna() & rows["file"].notna()]
    if rows.empty:
        return [Section(title, ["No model is measured yet."], brief=True)]
    names = rows.drop_duplicates("cell").set_index("cell")["file"]
    sharp = rows[rows["metric"] == "sharpness"]
    others = rows[rows["metric"] != "sharpness"].dropna(subset=["metric"])
    others = others.assign(metric=runs.names(others))
    boxes = sorted(sharp["epsilon"].unique(), reverse=True)
    metrics = sorted(others["metric"].unique(), key=lambda name: (not name.startswith(_FIT), name))
    order = _ranks(sharp).reindex(names.index).sort_values(na_position="last", kind="stable")
    main = {box: _headline(sharp, box) for box in boxes}
    heads = ["model", *[metric.replace("_", "\n", 1).replace("_", " ") for metric in metrics]]
    heads += [f"sharpness\nφ({epsilon_text(box)})" for box in boxes]
    table = []
    for cell in order.index:
        row = [Entry(str(names[cell]))]
        for metric in metrics:
            value = float(others[(others["cell"] == cell) & (others["metric"] == metric)]["value"].mean())
            row.append(Entry(three_digits(value), values={"": value}))
        table.append(row + [_sharpness(sharp[sharp["cell"] == cell], box, *main[box]) for box in boxes])
    said = "φ: " + ", ".join(main[boxes[0]]) + "; lower is flatter" if boxes else ""
    found = [Table("models", f"Models. {said}".rstrip(". ") + ".", heads, table, _NOTE)]
    ways = sorted({(space, solver) for space, solver in zip(sharp["space"], sharp["solver"], strict=True)})
    if len(ways) > 1:
        rows, groups = [], set()
        for box in boxes:
            groups.add(len(rows))
            for cell in order.index:
                own = sharp[sharp["cell"] == cell]
                entries = [_sharpness(own, box, space, solver) for space, solver in ways]
                named = [Entry(str(names[cell])), Entry(epsilon_text(box), values={"": box})]
                rows.append([*named, *entries])
        heads = ["model", "ε", *[f"{space},\n{solver}" for space, solver in ways]]
        groups.discard(0)
        whole = Table(
            "sharpness", "Sharpness φ by space and solver", heads, rows, _NOTE, groups=frozenset(groups)
        )
        found.append(whole)
    models = Section(title, _sentences(names, order, sharp), found, brief=True)
    others = [part.sections(runs, names) for part in (spectrum, rescaling)]
    return [models, *itertools.chain(*others), reading.section()]


_NOTE = (
    "φ: Metric 2.1, a lower bound on the maximum. “Paper” is the published procedure, run literally. A star "
    "marks a φ of “converged” on which independent starts did not agree. Subspaces: mean ± standard "
    "deviation over their draws."
)


def _headline(sharp: pd.DataFrame, box: float) -> tuple[str, str]:
    """The space and the solver that count most: the full space and `converged`, where they are measured."""
    own = sharp[sharp["epsilon"] == box]
    space = "full" if (own["space"] == "full").any() else "subspace"
    solver = "converged" if (own["solver"] == "converged").any() else "paper"
    return space, solver


def _ranks(sharp: pd.DataFrame) -> pd.Series:
    """The φ by which each model is ranked: the headline's, in the largest box."""
    if sharp.empty:
        return pd.Series(dtype=float)
    box = sharp["epsilon"].max()
    space, solver = _headline(sharp, box)
    own = sharp[(sharp["epsilon"] == box) & (sharp["space"] == space) & (sharp["solver"] == solver)]
    return own.groupby("cell")["value"].mean()


def _sharpness(sharp: pd.DataFrame, epsilon: float, space: str, solver: str) -> Entry:
    own = sharp[(sharp["epsilon"] == epsilon) & (sharp["space"] == space) & (sharp["solver"] == solver)]
    found = own["value"].dropna()
    if found.empty:
        return Entry("–")
    item = summarise(found)
    reached = int((own["converged"] == True).sum())  # noqa: E712
    star = "*" if solver == "converged" and reached < len(own) else ""
    values = {"": item.mean, "std": item.std, "n": item.n, "converged": reached}
    small = f"{reached} of {len(own)}, {number(own['evaluations'].mean())} evaluations"
    return Entry(phi(item) + star, small, values)


def _sentences(names: pd.Series, ranks: pd.Series, sharp: pd.DataFrame) -> list[str]:
    """Which is the flattest, and how much sharper the sharpest is."""
    order = ranks.dropna().sort_values()
    if order.empty:
        return []
    box = f"φ({epsilon_text(float(sharp['epsilon'].max()))})"
    flat, sharpest = order.index[0], order.index[-1]
    first = f"{names[flat]}: {box} {three_digits(order[flat])}."
    if len(order) == 1:
        return [first]
    text = f"The flattest of {len(order)} is {first[:-1]}; the sharpest is {names[sharpest]}, {box} "
    text += three_digits(order[sharpest])
    times = f", {number(order[sharpest] / order[flat], 1)} times as sharp." if order[flat] > 0 else "."
    return [text + times]
