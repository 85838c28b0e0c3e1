"""What a leaderboard's numbers support, in sentences: the gap, its cost in flatness, what buys it back."""

from __future__ import annotations

import math
import re

import pandas as pd

from lbdist.analysis.derived import paired, ratio, undertrained
from lbdist.analysis.numbers import interval, listed, number, percent, three_digits
from lbdist.analysis.runs import Runs
from lbdist.analysis.statistics import Difference, difference


def conclusion(runs: Runs, table: pd.DataFrame) -> list[str]:
    """The sentences.

    Args:
        runs: The runs.
        table: Their leaderboard, from top to bottom.
    """
    return _Conclusion(runs, table).sentences()


def _size(item: Difference) -> str:
    return number(abs(item.mean), 1 if abs(item.mean) >= 1 else 2)


def _within(item: Difference) -> str:
    """The interval of a difference in brackets, or why there is none."""
    if item.sign is None:
        return "(single runs: no interval)"
    return f"(95 % interval {interval(item, 1 if abs(item.mean) >= 1 else 2)})"


class _Conclusion:
    """The numbers that sentences are made of, by method."""

    def __init__(self, runs: Runs, table: pd.DataFrame) -> None:
        self.runs, self.table, self.score = runs, table, runs.score
        cells = runs.counted
        self.scores = {label: group["score"].dropna() for label, group in cells.groupby("label")}
        labels = cells["label"].reindex(runs.headline.index)
        self.sharpness = {label: group.dropna() for label, group in runs.headline.groupby(labels)}
        plain = set(cells.loc[cells["remedy"] == "none", "label"])
        own = [] if table.empty else list(table["method"])
        self.remedies = [label for label in own if label not in plain and len(self.scores[label])]
        self.what, self.units = f"test {self.score.name}", self.score.points
        self.points = f"{self.units} of ".lstrip()

    def sentences(self) -> list[str]:
        """The sentences that there are numbers for."""
        if self.table.empty:
            return ["No run is confirmed yet."]
        missing = [label for label in ("SB", "LB") if label not in self.scores or self.scores[label].empty]
        if missing:
            return self._without(missing)
        gap = difference(self.scores["SB"], self.scores["LB"])
        cost = self._flatness("LB", "SB")
        best = self.remedies[0] if self.remedies else None
        found = [self._gap(gap) + ".", *self._chance(best), *([f"LB is {cost}."] if cost else [])]
        if best is None:
            return [*found, "No remedy was measured."]
        found += [self._best(best, gap), *self._edge(best), *self._flattest(best)]
        lost = int(self.table["diverged"].sum())
        if lost:
            found.append(f"{lost} run{'s' * (lost > 1)} diverged and {'are' if lost > 1 else 'is'} left out "
                         "of means.")  # fmt: skip
        return found

    def _without(self, missing: list[str]) -> list[str]:
        measured = [
            f"{row['method']} {self.score.of(percent(row['score']))} (n = {row['n']})"
            for _, row in self.table.iterrows()
            if row["n"]
        ]
        return [
            f"There is no finished run of {' and '.join(missing)}, so there is no gap to measure.",
            *([f"Test {self.score.name}: " + ", ".join(measured) + "."] if measured else []),
        ]

    def _gap(self, gap: Difference) -> str:
        """Whether LB loses to SB."""
        if gap.sign is None:
            where = "below" if gap.mean > 0 else "above"
            return (
                f"LB's {self.what} is {_size(gap)}{self.units} {where} SB's in single runs, "
                "which cannot be told from chance: more seeds are needed"
            )
        if gap.sign == 0:
            return (
                f"No clear gap: SB minus LB is {number(gap.mean, 2)} {self.points}{self.what}, "
                f"95 % interval {interval(gap)}, which includes zero"
            )
        if gap.mean > 0:
            return self._loses(gap)
        more = "more accurate" if self.score.name == "accuracy" else "better"
        return f"No gap to close: LB is {_size(gap)}{self.units} {more} than SB {_within(gap)}"

    def _loses(self, gap: Difference) -> str:
        """That LB loses, and whether its training loss says more of it."""
        text = f"{_size(gap)} {self.points}{self.what} to SB {_within(gap)}"
        why = undertrained(self.runs)
        if why is None:
            return f"LB loses {text}"
        lb, sb = map(three_digits, why.losses)
        losses = f"its training loss is {lb}, SB's {sb}"
        if why.equal is None:
            return (
                f"LB loses {text}, and may be undertrained: {losses} (study.equal_loss=10 trains it to SB's)"
            )
        if not why.closed:
            return f"LB loses {text}; {losses}, and trained to SB's it still loses {_size(why.equal)}"
        where = "below" if why.equal.mean > 0 else "above"
        return (
            f"LB is undertrained, so that it loses {text}: {losses}, and trained to SB's it ends "
            f"{_size(why.equal)}{self.units} {where} SB {_within(why.equal)}"
        )

    def _chance(self, best: str | None) -> list[str]:
        """Which of the compared scores are no better than one answer for all samples."""
        names = [
            name for name in ("SB", "LB", best) if name and self.score.at_chance(self.scores[name].mean())
        ]
        if not names:
            return []
        many, most = len(names) > 1, number(self.score.chance or 0, 1)
        return [
            f"{listed(names)} {'are' if many else 'is'} at chance: up to {self.score.of(most)} is no "
            "more than one answer for all samples gives, so that nothing is settled by it."
        ]

    def _edge(self, best: str) -> list[str]:
        """That the best setting is at the edge of what was searched."""
        cells = self.runs.cells
        searched = cells.loc[(cells["role"] == "search") & (cells["label"] == best), "setting"]
        chosen = self.table.loc[self.table["method"] == best, "setting"].iloc[0]
        found = []
        for key, value in _numbers(chosen).items():
            tried = sorted({_numbers(setting).get(key, value) for setting in searched})
            if len(tried) > 1 and value in (tried[0], tried[-1]):
                found.append(f"{key}={value:g} of {tried[0]:g} to {tried[-1]:g}")
        if not found:
            return []
        where = ", ".join(found)
        return [f"What was chosen for {best} is at the edge of its search ({where}): more may be beyond."]

    def _best(self, best: str, gap: Difference) -> str:
        """What the best remedy gains, and how flat it is."""
        gain = difference(self.scores[best], self.scores["LB"])
        flat = self._flatness(best, "LB")
        return self._gain(best, gain, gap) + (f"; it is {flat}" if flat else "") + "."

    def _gain(self, best: str, gain: Difference, gap: Difference) -> str:
        if gain.mean <= 0 or gain.sign == 0:
            amount = ("+" if gain.mean > 0 else "") + number(gain.mean, 2) + self.units
            return f"No remedy clearly gains on LB: the best, {best}, differs by {amount} {_within(gain)}"
        if not (gap.mean > 0 and gap.sign != 0):
            most = "most accurate" if self.score.name == "accuracy" else "best"
            return f"{best} is the {most} remedy, {_size(gain)}{self.units} above LB {_within(gain)}"
        over = difference(self.scores[best], self.scores["SB"])
        if over.mean < 0:
            share = number(100 * gain.mean / gap.mean)
            return f"{best} buys back {share} % of the gap, {_size(gain)}{self.units} {_within(gain)}"
        text = f"{best} buys back the whole gap"
        return text + (
            f" and ends {_size(over)}{self.units} above SB {_within(over)}" if over.sign != 0 else ""
        )

    def _flattest(self, best: str) -> list[str]:
        """The flattest remedy, where that is another one."""
        measured = [label for label in self.remedies if len(self.sharpness.get(label, []))]
        flattest = min(measured, key=lambda label: self.sharpness[label].mean(), default=best)
        if flattest == best:
            return []
        compared = self._flatness(flattest, "LB")
        scored = self.score.of(number(self.scores[flattest].mean(), 2))
        text = f"The flattest remedy is {flattest}" + (f", {compared}" if compared else "")
        return [f"{text}, at {scored} {self.what}."]

    def _flatness(self, label: str, other: str) -> str:
        """How a method's φ compares with another's, seed by seed; empty where either is missing."""
        table = self.runs.with_headline
        both = paired(table, "phi", label, other)
        if both.empty:
            return ""
        more = ratio(table, "phi", label, other)
        means = f"{three_digits(both[label].mean())} against {three_digits(both[other].mean())}"
        against = f"{other} ({self.runs.box} {means}{self._unconverged(label, other)})"
        word = "sharp" if more.mean > 1 else "flat"
        times, low, high = more.mean, more.low, more.high
        if word == "flat":
            times, low, high = 1 / times, 1 / high, 1 / low
        digits = 0 if times >= 10 else 1 if times >= 1.1 else 2
        amount = f"{number(times, digits)} times as {word} as {against}"
        if math.isnan(low):
            return f"{amount}, in single runs, which settle nothing"
        if low <= 1:
            ends = f"{number(low, 1)} to {number(high, 1)}"
            return (
                f"not clearly sharper or flatter than {against}: {number(times, 1)} times as {word}, {ends}"
            )
        return amount

    def _unconverged(self, *labels: str) -> str:
        """How many of the compared maxima are not known to be any."""
        found = self.runs.sharpness
        here = (found["space"] == "full") & (found["solver"] == "converged")
        here &= (found["epsilon"] == self.runs.epsilon) & found["label"].isin(labels)
        missing, total = (int(found.loc[here, name].sum()) for name in ("converged", "measured"))
        return f"; {total - missing} of {total} maxima did not converge" if missing < total else ""


def _numbers(setting: str) -> dict[str, float]:
    """The numbers of a setting by name.

    Example:
        >>> _numbers("rho=0.5 norm=l2")
        {'rho': 0.5}
    """
    return {key: float(value) for key, value in re.findall(r"(\S+)=(-?[0-9][0-9.e+-]*)(?=[ ,]|$)", setting)}
