"""Our numbers beside the published ones, and the verdict on each claim (Keskar et al., Tables 2 to 7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lbdist.analysis.claims import FAILS, HOLDS, OPEN, PART, Claim, claims
from lbdist.analysis.numbers import epsilon_text
from lbdist.analysis.published import DATA, published
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Entry, Section, Table, of_summary
from lbdist.analysis.statistics import Summary, summarise

Key = tuple[str, str, float | None]
"""Method, quantity and box of a published number."""

TITLE = "Beside the paper"


def section(runs: Runs) -> Section:
    """The claims that the runs have numbers for, then our numbers in the tables of the paper."""
    found = claims(runs)
    if not found:
        return Section(TITLE, ["The runs have no numbers for a claim of the paper."])
    return Section(TITLE, [verdicts(found)], [claim_table(found), *tables(runs)], brief=True)


def verdicts(found: Sequence[Claim]) -> str:
    """How many claims have which verdict."""
    counts = Counter(claim.verdict for claim in found)
    words = {HOLDS: ("holds", "hold"), FAILS: ("fails", "fail"), PART: ("holds in part", "hold in part"),
             OPEN: ("is not settled", "are not settled")}  # fmt: skip
    said = [f"{counts[key]} {verb[counts[key] > 1]}" for key, verb in words.items() if counts[key]]
    return f"Of {len(found)} claim{'s' * (len(found) > 1)} of the paper, {', '.join(said)}."


def claim_table(found: Sequence[Claim]) -> Table:
    """The claims: where they stand, both numbers, the verdict; the rule is the small line."""
    rows = [
        [
            Entry(claim.text, f"{claim.where}; {claim.rule}"),
            Entry(claim.verdict),
            Entry(claim.ours),
            Entry(claim.theirs),
        ]
        for claim in found
    ]
    note = (
        "Intervals in brackets are 95 %. A difference is in points of the test score. “holds” and “fails”: "
        "the interval is on one side of what would refute the claim; “not settled”: it includes that, or "
        "there is none, with one seed; “in part”: as the rule says, which is the small line."
    )
    heads = ["claim", "verdict", "here", "published"]
    return Table("claims", "Claims of the paper", heads, rows, note, left=4, spare=[3])


def tables(runs: Runs) -> list[Table]:
    """Our row, then those of the six networks, in the forms of the paper's tables."""
    cells, own = runs.counted, f"{runs.network} on {runs.data}"
    found = []
    fit = {
        (label, quantity): summarise(cells.loc[cells["label"] == label, column])
        for label in ("SB", "LB")
        for quantity, column in (("train_accuracy", "train_score"), ("test_accuracy", "score"))
    }
    if runs.score.name == "accuracy" and all(item.n for item in fit.values()):
        keys = [
            (label, quantity, None)
            for quantity in ("train_accuracy", "test_accuracy")
            for label in ("SB", "LB")
        ]
        heads = [f"{label} {quantity.split('_')[0]}\naccuracy %" for label, quantity, _ in keys]
        ours = [fit[label, quantity] for label, quantity, _ in keys]
        found.append(_table("table2", "Table 2: accuracy", heads, own, ours, keys, "percent"))
    phis = runs.sharpness[runs.sharpness["solver"] == "converged"]
    for space, name, title in (
        ("full", "table3", "Table 3: sharpness in the full space"),
        ("subspace", "table4", "Table 4: sharpness in random subspaces"),
    ):
        there = phis[phis["space"] == space]
        boxes = sorted(there["epsilon"].unique(), reverse=True)
        quantity = "sharpness_full" if space == "full" else "sharpness_subspace_p100"
        sharp = [(label, quantity, box) for box in boxes for label in ("SB", "LB")]
        ours = [
            summarise(there.loc[(there["label"] == label) & (there["epsilon"] == box), "phi"])
            for label, _, box in sharp
        ]
        if sharp and all(item.n for item in ours):
            heads = [f"{label}\nφ({epsilon_text(box)})" for label, _, box in sharp]
            found.append(_table(name, title, heads, own, ours, sharp, "phi"))
    for remedy, name in (("augmentation", "table6"), ("conservative", "table7")):
        label, title = f"LB + {remedy}", f"Table {name[-1]}: {remedy}"
        scores = [summarise(cells.loc[cells["label"] == key, "score"]) for key in ("SB", "LB", label)]
        sharp_here = [
            summarise(
                phis.loc[
                    (phis["space"] == "full") & (phis["label"] == label) & (phis["epsilon"] == box), "phi"
                ]
            )
            for box in (1e-3, 5e-4)
        ]
        if scores[2].n and runs.score.name == "accuracy":
            theirs = f"LB+{remedy}"
            lines: list[Key] = [
                ("SB", "test_accuracy", None),
                ("LB", "test_accuracy", None),
                (theirs, "test_accuracy", None),
            ]
            lines += [(theirs, "sharpness_full", box) for box in (1e-3, 5e-4)]
            heads = ["SB test\naccuracy %", "LB test\naccuracy %", "remedy test\naccuracy %"]
            heads += [f"remedy\nφ({epsilon_text(box)})" for box in (1e-3, 5e-4)]
            found.append(_table(name, title, heads, own, [*scores, *sharp_here], lines, "phi"))
    return found


def _table(
    name: str,
    title: str,
    heads: Sequence[str],
    own: str,
    ours: Sequence[Summary],
    keys: Sequence[Key],
    kind: str,
) -> Table:
    """One table: ours (n as it is), then the published rows that have a number."""

    def entry(item: Summary | None, quantity: str) -> Entry:
        return of_summary(item, "percent" if "accuracy" in quantity else kind)

    rows = [
        [
            Entry(own),
            *[entry(item, key[1]) for item, key in zip(ours, keys, strict=True)],
            Entry(str(ours[0].n)),
        ]
    ]
    for network, data in DATA.items():
        found = [published(network, method, quantity, box) for method, quantity, box in keys]
        if any(found[2 if len(found) == 5 else 0 :]):
            texts = [entry(item, key[1]) for item, key in zip(found, keys, strict=True)]
            rows.append([Entry(f"{network} on {data}, published"), *texts, Entry("5")])
    note = "Mean ± standard deviation over n runs."
    if any("sharpness" in key[1] for key in keys):
        note += " φ: ours by the converged solver, theirs by 10 iterations of L-BFGS-B."
    return Table(name, title, ["network", *heads, "n"], rows, note, groups=frozenset([1]), brief=False)
