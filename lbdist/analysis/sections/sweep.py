"""The points of a sweep side by side, then what each of them shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from lbdist.analysis import drawing
from lbdist.analysis.numbers import epsilon_text, number, percent
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import (
    Entry,
    Figure,
    Section,
    Table,
    of_difference,
    of_number,
    of_summary,
    starts,
    under_a_name,
)
from lbdist.analysis.sections import leaderboard, paper, reading
from lbdist.analysis.statistics import difference, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Part = tuple[Mapping[str, Any], Runs, Sequence[Section]]
"""A point's values by their keys, its runs, and what it shows of them."""


def sections(parts: Mapping[str, Part]) -> list[Section]:
    """The comparison, then each part's own sections under its name."""
    data = compared(parts)
    if data.empty:
        return [Section("The points of the sweep", ["No run is confirmed yet."], brief=True)]
    keys = list(next(iter(parts.values()))[0])
    runs = next(own for _, own, _ in parts.values() if len(own.cells))
    epsilon = next((own.epsilon for _, own, _ in parts.values() if own.epsilon is not None), None)
    figures = []
    if len(keys) == 1 and all(_is_number(point[keys[0]]) for point, _, _ in parts.values()):
        caption = f"By {keys[0]}: mean test {runs.score.name} "
        caption += f"{'and sharpness in the full space, run to convergence, ' if epsilon else ''}"
        caption += f"{drawing.bars(data['n'])}."
        draw = lambda: _draw(data, keys[0], epsilon, runs.score.axis)  # noqa: E731
        figures.append(Figure("sweep", f"By {keys[0]}", caption, draw))
    title = f"By {' and '.join(keys)}"
    table = _table(data, keys, epsilon, runs)
    shown = [
        under_a_name(name, section, brief=False)
        for name, (_, own, found) in parts.items()
        for section in paper.of_part(own, found)
    ]
    return [Section(title, _sentences(data, runs), [table], figures, brief=True), *shown, reading.section()]


def compared(parts: Mapping[str, Part]) -> pd.DataFrame:
    """One row per point and method that has a score.

    Returns:
        Columns `part`, `point`, `label`; `score` and `phi`, in the headline's box, each a Summary; `gap`, the
        Difference SB - method; `values`, the scores; and `n`.
    """
    rows = []
    for name, (point, runs, _) in parts.items():
        board = leaderboard.leaderboard(runs) if len(runs.cells) else pd.DataFrame()
        for _, row in board.iterrows():
            values = runs.counted.loc[runs.counted["label"] == row["method"], "score"].dropna()
            if len(values):
                phi = row["phi"].get(runs.epsilon, summarise([]))
                found = {key: row[key] for key in ("score", "gap", "n")}
                found |= {"label": row["method"], "phi": phi, "values": list(values)}
                rows.append({"part": name, "point": point, **found})
    return pd.DataFrame(rows)


def _table(data: pd.DataFrame, keys: Sequence[str], epsilon: float | None, runs: Runs) -> Table:
    rows = [
        [
            *[_value(row["point"][key]) for key in keys],
            Entry(row["label"]),
            of_summary(row["score"]),
            of_difference(row["gap"]),
            *([of_summary(row["phi"], "phi")] if epsilon is not None else []),
            of_number(row["n"]),
        ]
        for _, row in data.iterrows()
    ]
    heads = [*keys, "method", f"test\n{runs.score.head}", runs.score.in_points("gap to\nSB")]
    heads += [*([f"sharpness\nφ({epsilon_text(epsilon)})"] if epsilon is not None else []), "n"]
    note = (
        "The gap is to SB at the same point. These are test scores: a point that is chosen by them is chosen "
        "on the test set."
    )
    title = "Mean ± standard deviation over n seeds" + ("; φ: full space, converged" if epsilon else "")
    return Table("sweep", title, heads, rows, note, left=len(keys) + 1, groups=starts(data["part"]))


def _value(value: Any) -> Entry:
    return Entry(f"{value:g}" if _is_number(value) else str(value), values={"": value})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sentences(data: pd.DataFrame, runs: Runs) -> list[str]:
    """Where SB and LB score best, whether seeds tell that from the next best, and how the gap changes."""
    found, single = [], "which single runs do not tell from"
    for label in ("SB", "LB"):
        own = data[data["label"] == label]
        if len(own) < 2:
            continue
        means = own["score"].map(lambda score: score.mean)
        (_, best), (_, second), *_ = own.loc[means.sort_values(ascending=False).index].iterrows()
        sign = difference(best["values"], second["values"]).sign
        than = "above" if sign == 1 else "which the seeds do not tell from"
        scores = [runs.score.of(percent(row["score"])) for row in (best, second)]
        found.append(
            f"{label} scores best at {best['part']}: {scores[0]}, {than if sign is not None else single} "
            f"{scores[1]} at {second['part']}."
        )
    gaps = {
        row["part"]: row["gap"].mean
        for _, row in data[data["label"] == "LB"].iterrows()
        if not math.isnan(row["gap"].mean)
    }
    if len(gaps) > 1:
        least, most = min(gaps, key=lambda part: gaps[part]), max(gaps, key=lambda part: gaps[part])
        found.append(
            f"The gap of LB to SB goes from {number(gaps[least], 2)}{runs.score.points} at {least} to "
            f"{number(gaps[most], 2)} at {most}."
        )
    return found


def _draw(data: pd.DataFrame, key: str, epsilon: float | None, axis: str) -> Drawing:
    """Test score and sharpness against a key, a line per method."""
    style = drawing.marks(data["label"])

    def lines(column: str) -> list[drawing.Series]:
        found = []
        for label in drawing.baselines_first(data["label"]):
            own = data[data["label"] == label]
            points = [(row["point"][key], row[column].mean, row[column].std) for _, row in own.iterrows()]
            frame = pd.DataFrame(points, columns=["x", "mean", "std"]).sort_values("x").dropna(subset="mean")
            if len(frame):
                found.append(drawing.Series(label, frame, style[label]))
        return found

    panels = [(axis, lines("score"))]
    if epsilon is not None:
        panels.append((f"sharpness φ({epsilon_text(epsilon)})", lines("phi")))
    values = [row["point"][key] for _, row in data.iterrows()]
    log = min(values) > 0 and max(values) >= 4 * min(values)
    return drawing.draw_panels(panels, key, log=log, log_y=(1,))
