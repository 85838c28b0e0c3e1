"""The claims of Keskar et al., one by one, and whether these runs bear them out: by a rule, never by eye.

A verdict is `holds` or `fails` where a 95 % interval is on one side of what would refute the claim, `not
settled` where the interval includes it or there is none (one seed), and `in part` as a claim's rule says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from lbdist.analysis.derived import changes, paired, points, ratio, rises, undertrained
from lbdist.analysis.numbers import epsilon_text, interval, number, three_digits
from lbdist.analysis.published import DATA, published
from lbdist.analysis.runs import EQUAL_LOSS, Runs
from lbdist.analysis.statistics import Difference, Summary, difference, geometric

HOLDS, FAILS, OPEN, PART = "holds", "fails", "not settled", "in part"


@dataclass(frozen=True)
class Claim:
    """What the paper says, and what these runs say.

    Attributes:
        text: The claim.
        where: Its place in the paper.
        rule: What decides.
        ours: Our numbers.
        theirs: The published numbers, of the same network where it is one of the paper's.
        verdict: `holds`, `fails`, `in part` or `not settled`.
    """

    text: str
    where: str
    rule: str
    ours: str
    theirs: str
    verdict: str


def claims(runs: Runs) -> list[Claim]:
    """Every claim that the runs of a study have numbers for."""
    parts: list[Callable[[Runs], Iterable[Claim]]] = [
        _gap, _explained, _sharper, _distance, _between, _threshold, _warm_start, _along, _remedies,
    ]  # fmt: skip
    return [claim for part in parts for claim in part(runs)]


def _above(item: Difference | Summary, zero: float = 0.0) -> str:
    """The verdict on `more than zero` by an interval."""
    if math.isnan(item.low):
        return OPEN
    return HOLDS if item.low > zero else FAILS if item.high < zero else OPEN


def _not_above(item: Difference | Summary, zero: float = 0.0) -> str:
    """The verdict on `not clearly more than zero`, which an interval below or around it bears out."""
    if math.isnan(item.low):
        return OPEN
    return FAILS if item.low > zero else HOLDS


def _scores(runs: Runs, label: str, column: str = "score") -> pd.Series:
    cells = runs.counted
    return cells.loc[cells["label"] == label, column].dropna()


def _with_interval(text: str, item: Difference | Summary, decimals: int = 2) -> str:
    return text + (f" ({interval(item, decimals)})" if not math.isnan(item.low) else "")


def _points(item: Difference) -> str:
    return _with_interval(number(item.mean, 2), item)


def _times(item: Summary) -> str:
    return _with_interval(f"{number(item.mean, 1)} times", item, 1)


def _theirs(runs: Runs, tell: Callable[[str], str]) -> str:
    """What is published of the runs' network, or of all six where it is none of the paper's."""
    own = runs.network.upper()
    if own in DATA:
        return tell(own)
    return ", ".join(f"{name} {text}" for name in DATA if (text := tell(name)))


def _gap(runs: Runs) -> Iterable[Claim]:
    sb, lb = _scores(runs, "SB"), _scores(runs, "LB")
    if sb.empty or lb.empty:
        return

    def tell(network: str) -> str:
        means = [published(network, method, "test_accuracy") for method in ("SB", "LB")]
        return number(means[0].mean - means[1].mean, 2) if means[0] and means[1] else ""

    apart = difference(sb, lb)
    verdict, why = _above(apart), undertrained(runs)
    if verdict == HOLDS and why is not None and why.closed:
        verdict = PART
    text, rule = (
        "LB generalises worse than SB",
        "SB − LB test score: 95 % Welch interval above 0; in part: LB's ",
    )
    rule += "training loss is far above SB's, and LB trained to SB's is not clearly below SB"
    yield Claim(text, "Table 2", rule, _points(apart), _theirs(runs, tell), verdict)


def _explained(runs: Runs) -> Iterable[Claim]:
    """What the gap, where there may be one, is not due to."""
    sb = _scores(runs, "SB")
    if not difference(sb, _scores(runs, "LB")).mean > 0:
        return
    stopped = "SB − the best epoch of LB, chosen on the test set: 95 % Welch interval above 0"
    longer = "SB − LB trained to SB's training loss: 95 % Welch interval above 0"
    for other, text, where, rule in (
        (
            _scores(runs, "LB", "best"),
            "Early stopping does not close the gap",
            "section 2.1, Figure 2",
            stopped,
        ),
        (_scores(runs, EQUAL_LOSS), "The gap is not one of too little training", "section 2.1", longer),
    ):
        if len(other):
            apart = difference(sb, other)
            yield Claim(text, where, rule, _points(apart), "not quantified", _above(apart))


def _sharper(runs: Runs) -> Iterable[Claim]:
    phis = runs.sharpness[runs.sharpness["solver"] == "converged"]
    boxes = sorted(phis.groupby(["space", "epsilon"]), key=lambda item: (item[0][0], -item[0][1]))
    for (space, epsilon), group in boxes:
        if paired(group, "phi", "LB", "SB").empty:
            continue
        found = ratio(group, "phi", "LB", "SB")
        quantity = "sharpness_full" if space == "full" else "sharpness_subspace_p100"

        def tell(network: str, quantity: str = quantity, epsilon: float = epsilon) -> str:
            sb, lb = (published(network, method, quantity, epsilon) for method in ("SB", "LB"))
            return number(lb.mean / sb.mean) if sb and lb else ""

        where = "full space" if space == "full" else "random subspace"
        text = f"LB is sharper: {where}, ε {epsilon_text(epsilon)}"
        rule = "φ of LB over SB's, by seed: 95 % interval of the geometric mean above 1"
        where = "Table 3" if space == "full" else "Table 4"
        yield Claim(text, where, rule, _times(found), _theirs(runs, tell), _above(found, 1.0))


def _distance(runs: Runs) -> Iterable[Claim]:
    if paired(runs.counted, "distance", "SB", "LB").empty:
        return
    found = ratio(runs.counted, "distance", "SB", "LB")
    verdict = _above(found, 1.0)
    if verdict == HOLDS and not 3 <= found.mean <= 10:
        verdict = PART
    text = "SB ends 3 to 10 times as far from x0 as LB"
    rule = "ratio by seed: interval above 1 and geometric mean from 3 to 10; in part: above 1 alone"
    yield Claim(text, "section 2.2", rule, _times(found), "3 to 10", verdict)


def _between(runs: Runs) -> Iterable[Claim]:
    found = rises(runs)
    found = found[found["label"] == "LB"]
    if found.empty:
        return
    more = geometric(found["there"] / found["own"])
    text = "On the line from SB, the loss rises more at LB"
    rule = "rise at α ± 0.25, LB over SB by seed: 95 % interval above 1"
    yield Claim(text, "Figure 3", rule, _times(more), "by eye", _above(more, 1.0))


def _threshold(runs: Runs) -> Iterable[Claim]:
    cells = runs.counted
    plain = (cells["remedy"] == "none").all() and cells["origin_epoch"].isna().all()
    found = runs.threshold if plain else None
    if found is None:
        return
    ours = f"from batch {number(found.batch)}"
    if not math.isnan(found.low):
        ours += f" ({number(found.low)} to {number(found.high)})"
    ours += f", {number(found.fall, 2)} a doubling"
    if math.isnan(found.fall_low):
        verdict = OPEN
    elif found.fall_low > 0:
        verdict = HOLDS if found.inside else PART
    else:
        verdict = FAILS if found.fall_high < 0 else OPEN
    theirs = {"F2": "about 15,000", "C1": "about 500"}.get(
        runs.network.upper(), "F2 about 15,000, C1 about 500"
    )
    text = "From some batch on, the test score falls"
    rule = "plateau and falling line in log2 of the batch: bootstrap interval of the fall above 0, of the "
    rule += "break above the smallest batch; in part: the fall alone"
    yield Claim(text, "Figure 4", rule, ours, theirs, verdict)


def _warm_start(runs: Runs) -> Iterable[Claim]:
    cells = runs.with_headline
    latest = cells["origin_epoch"].max()
    late, cold = cells[cells["origin_epoch"] == latest], cells[cells["label"] == "LB"]
    if late.empty or cold.empty:
        return
    gain = difference(late["score"].dropna(), cold["score"].dropna())
    flatter = ratio(pd.concat([late, cold]), "phi", "LB", late["label"].iloc[0])
    gains, flat = _above(gain), _above(flatter, 1.0) if flatter.n else PART
    verdict = gains if gains == flat else OPEN if OPEN in (gains, flat) else PART
    ours = f"{_points(gain)}"
    ours += f", {number(flatter.mean, 1)} times as flat" if flatter.n else ""
    text = "Begun late enough in SB, LB generalises, and flat"
    rule = "LB begun at SB's latest epoch against LB from x0: intervals of the gain above 0 and of φ's ratio "
    rule += "above 1; in part: one of the two, or φ was not measured"
    yield Claim(text, "Figure 5", rule, ours, "by eye", verdict)


def _along(runs: Runs) -> Iterable[Claim]:
    found = changes(points(runs))
    for label, text, judge in (
        ("LB", "Sharpness rises along the run of LB", _above),
        ("SB", "Sharpness does not rise along the run of SB", _not_above),
    ):
        change = found.get(label)
        if change is not None and change.n:
            side = "above 1" if label == "LB" else "not above 1"
            rule = f"φ at the last epoch over φ at the first that is measured: 95 % interval {side}"
            yield Claim(text, "Figure 6", rule, _times(change), "by eye", judge(change, 1.0))


def _remedies(runs: Runs) -> Iterable[Claim]:
    names = {
        "augmentation": "Table 6",
        "conservative": "Table 7",
        "adversarial": "section 4.3",
    }
    sb, lb = _scores(runs, "SB"), _scores(runs, "LB")
    for name, where in names.items():
        label = f"LB + {name}"
        own = _scores(runs, label)
        if own.empty or lb.empty:
            continue
        gain = difference(own, lb)
        helped = where.startswith("Table")

        def tell(network: str, name: str = name) -> str:
            found, plain = (published(network, m, "test_accuracy") for m in (f"LB+{name}", "LB"))
            return f"{found.mean - plain.mean:+.2f}".replace("-", "−") if found and plain else ""

        text = f"{name.capitalize()} {'gains on LB' if helped else 'does not gain on LB'}"
        rule = f"its test score − LB's: 95 % Welch interval {'' if helped else 'not '}above 0"
        judge = _above if helped else _not_above
        theirs = _theirs(runs, tell) if helped else "did not help"
        yield Claim(text, where, rule, _points(gain), theirs or "–", judge(gain))
        if not helped or sb.empty:
            continue
        if paired(runs.with_headline, "phi", label, "SB").empty:
            continue
        sharper = ratio(runs.with_headline, "phi", label, "SB")

        def sharp(network: str, name: str = name) -> str:
            found = published(network, f"LB+{name}", "sharpness_full", 1e-3)
            plain = published(network, "SB", "sharpness_full", 1e-3)
            return three_digits(found.mean / plain.mean) if found and plain else ""

        text = f"LB with {name} stays sharper than SB"
        rule = "its φ over SB's, by seed: 95 % interval of the geometric mean above 1"
        yield Claim(text, where, rule, _times(sharper), _theirs(runs, sharp), _above(sharper, 1.0))
