"""The rescaling audit: which measures move under a change of parameters that is the same function."""

from __future__ import annotations

import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.numbers import epsilon_text, number, three_digits
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Section, Table

_STILL = 1.01
"""The largest value over the smallest below which a measure counts as one that does not move."""


def sections(runs: Runs, names: pd.Series | None = None) -> list[Section]:
    """A table of what each measure gives at each factor; nothing where that was not measured.

    Args:
        runs: The runs of a study.
        names: What their cells are called; None for the confirmed ones' methods.
    """
    rows = runs.at_ends(names)
    found = rows[rows["metric"].fillna("").str.startswith("rescaled_")]
    found = found[found["value"].notna() & found["position"].notna()]
    if found.empty:
        return []
    found = found.assign(
        measure=[_name(*of) for of in zip(found["metric"], found["epsilon"], found["space"], strict=True)],
    )
    factors = sorted(found["position"].unique())
    table: list[list[Entry]] = []
    moved: dict[str, bool] = {}
    groups = set()
    for label in drawing.baselines_first(found["label"]):
        groups.add(len(table))
        model = found[found["label"] == label]
        for measure, own in model.groupby("measure", sort=False):
            at = own.groupby("position")["value"].mean().reindex(factors)
            sure = own.groupby("position")["converged"].apply(lambda told: not (told == False).any())  # noqa: E712
            ratio = float(at.max() / at.min()) if at.min() > 0 else float("nan")
            moved[measure] = moved.get(measure, False) or not ratio < _STILL
            entries = [
                Entry(three_digits(value) + "*" * (not sure.get(factor, True)), values={"": value})
                for factor, value in at.items()
            ]
            moves = Entry("–" if ratio < _STILL else f"{number(ratio, 1)} times", values={"": ratio})
            table.append([Entry(label), Entry(measure), *entries, moves])
    groups.discard(0)
    heads = ["model", "measure", *[f"× {factor:g}" for factor in factors], "moves"]
    note = (
        "One layer is multiplied by a factor and the next divided by it, so that the function is the same "
        "(Dinh et al. 2017). Means over seeds. Moves: the largest value over the smallest. A star: the "
        "solver's starts did not agree."
    )
    shown = Table("rescaling", "Measures at rescaled models", heads, table, note, 2, frozenset(groups))
    return [Section("Which measures a rescaling moves", _sentences(moved), [shown])]


def _name(metric: str, epsilon: float, space: str | None) -> str:
    name = metric.removeprefix("rescaled_").replace("_", " ")
    if pd.notna(epsilon):
        name = f"{name} φ({epsilon_text(epsilon)})"
    return f"{name}, {space}" if isinstance(space, str) else name


def _sentences(moved: dict[str, bool]) -> list[str]:
    said = []
    for whether, text in ((True, "moves"), (False, "does not move")):
        names = [name for name, does in moved.items() if does is whether]
        if names:
            said.append(f"The same function, rescaled, {text}: {'; '.join(names)}.")
    return said
