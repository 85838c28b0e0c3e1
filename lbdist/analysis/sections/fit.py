"""Accuracy and loss on both splits; is LB only overfitted or undertrained? (Keskar et al., Table 2)."""

from __future__ import annotations

from lbdist.analysis.derived import paired, ratio
from lbdist.analysis.numbers import interval, number
from lbdist.analysis.runs import EQUAL_LOSS, Runs
from lbdist.analysis.section import Entry, Section, Table, of_number, of_summary
from lbdist.analysis.statistics import difference, summarise


def section(runs: Runs) -> Section:
    """Its tables, and the checks in words."""
    title = "Training and test set"
    cells = runs.counted
    if cells.empty or not cells["train_score"].notna().any():
        return Section(title, ["No run is finished yet."])
    name, head = runs.score.name, runs.score.head
    rows: list[list[Entry]] = []
    moved: list[list[Entry]] = []
    for label in runs.order():
        group = cells[cells["label"] == label]
        fitted = [("train_score", "percent"), ("score", "percent"), ("train_loss", "phi"), ("loss", "phi")]
        run = [("score", "percent"), ("best", "percent"), ("distance", "phi")]
        for table, columns in ((rows, fitted), (moved, run)):
            entries = [
                of_summary((runs.score.summarise if kind == "percent" else summarise)(group[column]), kind)
                for column, kind in columns
            ]
            table.append([Entry(label), *entries, of_number(int(group["score"].notna().sum()))])
        moved[-1].insert(-1, of_number(group["epochs"].mean()))
    over = "mean ± standard deviation over n seeds"
    heads = [
        "method",
        f"train\n{head}",
        f"test\n{head}",
        *map(runs.score.loss, ("train loss", "test loss")),
        "n",
    ]
    fit = Table("fit", f"Training and test set, {over}", heads, rows)
    heads = ["method", f"test\n{head}", "of the\nbest epoch", "distance\nfrom x0", "epochs", "n"]
    note = (
        f"Of the best epoch: the highest test {name} of a run's curve, chosen with hindsight on the test "
        "set, so an upper bound on what early stopping could give. Distance: ‖x − x0‖ over all parameters."
    )
    tables = [fit, Table("moved", f"The runs, {over}", heads, moved, note, brief=False)]
    return Section(title, sentences(runs), tables, brief=True)


def sentences(runs: Runs) -> list[str]:
    """Whether early stopping or longer training closes the gap, and how far SB and LB moved."""
    cells, found = runs.counted, []
    scores = {label: group["score"].dropna() for label, group in cells.groupby("label")}
    sb, points = scores.get("SB"), f"{runs.score.points} of test {runs.score.name}".lstrip()
    best = cells.loc[cells["label"] == "LB", "best"].dropna()
    gap = difference(sb, scores["LB"]).mean > 0 if sb is not None and "LB" in scores else False
    if sb is not None and gap and len(best):
        left = difference(sb, best)
        if left.sign is not None:
            does = {1: "does not close the gap", 0: "cannot be told from closing the gap"}.get(
                left.sign, "would more than close the gap"
            )
            found.append(
                f"Early stopping {does}: SB is {number(left.mean, 2)} {points} above LB's best epoch, chosen "
                f"with hindsight (95 % interval {interval(left)})."
            )
    equal = scores.get(EQUAL_LOSS)
    if sb is not None and equal is not None and len(equal):
        group = cells[cells["label"] == EQUAL_LOSS]
        losses = paired(cells, "train_loss", "SB", EQUAL_LOSS)
        reached = int((losses[EQUAL_LOSS] <= losses["SB"]).sum())
        below = difference(sb, equal).mean > 0
        left = difference(sb, equal) if below else difference(equal, sb)
        text = (
            f"Trained until its training loss is SB's ({reached} of {len(group)} reached it, after "
            f"{number(group['epochs'].mean())} epochs on average), LB is {number(abs(left.mean), 2)} "
            f"{points} {'below' if below else 'above'} SB"
        )
        found.append(text + (f" (95 % interval {interval(left)})." if left.sign is not None else "."))
    further = ratio(cells, "distance", "SB", "LB")
    if further.n:
        text = f"SB ends {number(further.mean, 2)} times as far from its starting point as LB"
        found.append(text + (f" (95 % interval {interval(further)})." if further.n > 1 else "."))
    return found
