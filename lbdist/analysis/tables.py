"""The tables of a study, and the sentences that its numbers support.

A run that diverged has no accuracy and no sharpness: it is left out of the means and counted beside them.
Several draws of a subspace are averaged within a run first, so that n always counts runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lbdist.analysis.statistics import Difference, Summary, difference, summarise

COSTS = ["steps", "gradient_evaluations", "seconds"]


def method_label(method: str, remedy: str) -> str:
    """The name of a method in tables and figures: `SB`, `LB`, `LB + augmentation`."""
    return method if remedy == "none" else f"{method} + {remedy}"


def _one_study(rows: pd.DataFrame) -> None:
    for column in ("experiment", "network", "data"):
        found = sorted(rows[column].dropna().unique())
        if len(found) > 1:
            raise ValueError(
                f"{column}={','.join(found)}: the rows of one study are needed; select one first"
            )


def _cells(rows: pd.DataFrame, stage: str) -> pd.DataFrame:
    """One row a trained cell of a stage, with its final values as columns."""
    _one_study(rows)
    identity = ["cell", "method", "remedy", "setting", "global_batch_size", "num_workers", "seed"]
    mine = (rows["stage"] == stage) & rows["epsilon"].isna() & rows["epoch"].isna()
    rows = rows.loc[mine, [*identity, "metric", "split", "value"]]
    cells = rows[identity].drop_duplicates("cell").set_index("cell")
    cells["setting"] = cells["setting"].fillna("")
    cells = cells.astype({"global_batch_size": int, "num_workers": int, "seed": int})
    cells["label"] = [method_label(m, r) for m, r in zip(cells["method"], cells["remedy"], strict=True)]
    metrics = ["accuracy", *COSTS, "diverged"]
    split = "test" if stage == "confirm" else "validation"
    final = rows[rows["metric"].isin(metrics) & ((rows["metric"] != "accuracy") | (rows["split"] == split))]
    final = final.drop_duplicates(["cell", "metric"], keep="last")
    values = final.pivot(index="cell", columns="metric", values="value")
    cells = cells.join(values.reindex(columns=metrics).astype(float))
    cells["diverged"] = cells["diverged"] == 1
    cells.loc[cells["diverged"], "accuracy"] = math.nan
    return cells


def counted_cells(rows: pd.DataFrame) -> pd.DataFrame:
    """The confirmed cells that the leaderboard counts, indexed by cell id.

    A method's cells share one setting, one global batch and one number of workers: those that most of its
    cells have (of two equally frequent numbers of workers, the larger).

    Raises:
        ValueError: The rows are of several studies, networks or data sets.
    """
    cells = _cells(rows, "confirm")
    variant = ["label", "setting", "global_batch_size", "num_workers"]
    sizes = cells.groupby(variant).size().rename("size").reset_index()
    sizes = sizes.sort_values(["size", "num_workers"], ascending=False, kind="stable").drop_duplicates(
        "label"
    )
    kept = set(sizes[variant].itertuples(index=False, name=None))
    counted = [row in kept for row in cells[variant].itertuples(index=False, name=None)]
    return cells[np.array(counted, dtype=bool)]


def _order(cells: pd.DataFrame) -> list[str]:
    """The labels of the leaderboard from top to bottom."""
    means = cells.groupby("label")["accuracy"].mean().fillna(-math.inf)
    baselines = [label for label in ("SB", "LB") if label in means.index]
    return baselines + sorted(means.index.difference(baselines), key=lambda label: (-means[label], label))


def sharpness_values(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a counted run, box, space and solver.

    Returns:
        Columns `label, cell, seed, epsilon, space, solver`; `phi`, the mean over the draws; `converged` and
        `failed` of the `measured` draws; `evaluations`, their mean.
    """
    cells = counted_cells(rows)
    cells = cells[~cells["diverged"]]
    found = rows[(rows["metric"] == "sharpness") & rows["cell"].isin(cells.index)]
    found = found.assign(
        label=found["cell"].map(cells["label"]),
        seed=found["cell"].map(cells["seed"]),
        failed=found["value"].isna(),
        converged=[value is True or value == 1 for value in found["converged"]],
    )
    keys = ["label", "cell", "seed", "epsilon", "space", "solver"]
    return (
        found.groupby(keys)
        .agg(
            phi=("value", "mean"),
            measured=("value", "size"),
            converged=("converged", "sum"),
            failed=("failed", "sum"),
            evaluations=("evaluations", "mean"),
        )
        .reset_index()
        .sort_values(
            ["label", "epsilon", "space", "solver", "seed"], ascending=[True, False, True, True, True]
        )
        .reset_index(drop=True)
    )


def sharpness_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a method, box and space: `paper` and `converged`, each a Summary of φ over runs.

    Beside each solver: how many values were measured, converged and failed, and its mean evaluations, as
    columns `paper_measured`, `paper_converged`, `paper_failed`, `paper_evaluations` and so on.
    """
    values = sharpness_values(rows)
    order = {label: place for place, label in enumerate(_order(counted_cells(rows)))}
    table = []
    for (epsilon, space, label), group in values.groupby(["epsilon", "space", "label"]):
        row: dict[str, Any] = {"method": label, "epsilon": epsilon, "space": space}
        for solver in ("paper", "converged"):
            found = group[group["solver"] == solver]
            row[solver] = summarise(found["phi"])
            for column in ("measured", "converged", "failed"):
                row[f"{solver}_{column}"] = int(found[column].sum())
            row[f"{solver}_evaluations"] = found["evaluations"].mean()
        table.append(row)
    table.sort(key=lambda row: (-row["epsilon"], row["space"], order[row["method"]]))
    return pd.DataFrame(table)


def phi_column(epsilon: float, space: str = "full", solver: str = "converged") -> str:
    """The leaderboard's column of a sharpness, such as `phi 0.001 full converged`."""
    return f"phi {epsilon:g} {space} {solver}"


def leaderboard(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a method: SB, LB, then the remedies by test accuracy.

    Args:
        rows: The rows of one study.

    Returns:
        Columns `method`; `setting`, the hyperparameters that were chosen; `accuracy`, a Summary in percent;
        `gap`, the Difference SB - method in points; a Summary for each `phi_column` among the rows; `n`, the
        runs in the means; the means `steps`, `gradient_evaluations`, `seconds`; `global_batch_size`,
        `num_workers`; `diverged`, the runs left out; `measured`, the sharpness values of the converged
        solver, and `not_converged`, those of them that did not converge or failed.

    Raises:
        ValueError: The rows are of several studies, networks or data sets.
    """
    cells = counted_cells(rows)
    values = sharpness_values(rows)
    sb = cells.loc[cells["label"] == "SB", "accuracy"]
    kinds = values[["epsilon", "space", "solver"]].drop_duplicates()
    kinds = kinds.sort_values(["space", "solver", "epsilon"], ascending=[True, True, False])
    found = values.groupby(["label", "epsilon", "space", "solver"])["phi"]
    phis = {key: summarise(group) for key, group in found}
    table = []
    groups = dict(list(cells.groupby("label")))
    for label in _order(cells):
        group = groups[label]
        own = values[values["label"] == label]
        row: dict[str, Any] = {
            "method": label,
            "setting": group["setting"].iloc[0],
            "accuracy": summarise(group["accuracy"]),
            "gap": Difference(*[math.nan] * 3) if label == "SB" else difference(sb, group["accuracy"]),
        }
        for kind in kinds.itertuples(index=False, name=None):
            row[phi_column(*kind)] = phis.get((label, *kind), summarise([]))
        row["n"] = row["accuracy"].n
        finished = group[~group["diverged"]]
        row.update({cost: float(finished[cost].mean()) for cost in COSTS})
        row["global_batch_size"] = int(group["global_batch_size"].iloc[0])
        row["num_workers"] = int(group["num_workers"].iloc[0])
        row["diverged"] = int(group["diverged"].sum())
        sought = own[own["solver"] == "converged"]
        row["measured"] = int(sought["measured"].sum())
        row["not_converged"] = row["measured"] - int(sought["converged"].sum())
        table.append(row)

    columns = ["method", "setting", "accuracy", "gap", "n", *COSTS, "global_batch_size", "num_workers"]
    return pd.DataFrame(table, columns=None if table else [*columns, "diverged", "measured", "not_converged"])


def search_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The settings that were tried on the validation split, best first within a method.

    Returns:
        Columns `method`, `setting`, `accuracy` (a Summary over the search's seeds), `diverged`, and `chosen`:
        whether the confirmed runs use this setting.
    """
    chosen = set(counted_cells(rows)[["label", "setting"]].itertuples(index=False, name=None))
    table = [
        {
            "method": label,
            "setting": setting,
            "accuracy": summarise(group["accuracy"]),
            "diverged": int(group["diverged"].sum()),
            "chosen": (label, setting) in chosen,
        }
        for (label, setting), group in _cells(rows, "search").groupby(["label", "setting"])
    ]
    table.sort(key=lambda row: (row["method"], -np.nan_to_num(row["accuracy"].mean, nan=-math.inf)))
    return pd.DataFrame(table, columns=["method", "setting", "accuracy", "diverged", "chosen"])


def agreement(rows: pd.DataFrame) -> pd.DataFrame:
    """Confirmed runs that differ in nothing but their number of workers, in pairs.

    Returns:
        Columns `method`, `seed`; `workers_a` (the fewest) and `workers_b`; `accuracy_a`, `accuracy_b`, the
        final test accuracies; `first_epoch` and `last_epoch`, the relative difference of the running loss
        there; `seed_std`, the standard deviation of the method's test accuracy over seeds, for scale.
    """
    cells = _cells(rows, "confirm")
    counted = counted_cells(rows)
    losses = rows[(rows["metric"] == "running_loss") & rows["epoch"].ge(1)].sort_values("step", kind="stable")

    def loss(cell: str) -> pd.Series:
        found = losses[losses["cell"] == cell].drop_duplicates("epoch", keep="last")
        return found.set_index("epoch")["value"].sort_index()

    table = []
    for (label, *_, seed), group in cells.groupby(["label", "setting", "global_batch_size", "seed"]):
        group = group.sort_values("num_workers").drop_duplicates("num_workers")
        first = group.iloc[0]
        for _, other in group.iloc[1:].iterrows():
            apart = (loss(other.name) / loss(first.name) - 1).abs().dropna()
            table.append(
                {
                    "method": label,
                    "seed": int(seed),
                    "workers_a": int(first["num_workers"]),
                    "workers_b": int(other["num_workers"]),
                    "accuracy_a": float(first["accuracy"]),
                    "accuracy_b": float(other["accuracy"]),
                    "first_epoch": float(apart.iloc[0]) if len(apart) else math.nan,
                    "last_epoch": float(apart.iloc[-1]) if len(apart) else math.nan,
                    "seed_std": summarise(counted.loc[counted["label"] == label, "accuracy"]).std,
                }
            )
    columns = ["method", "seed", "workers_a", "workers_b", "accuracy_a", "accuracy_b"]
    return pd.DataFrame(table, columns=[*columns, "first_epoch", "last_epoch", "seed_std"])


# ---------------------------------------------------------------- numbers as text


def number(value: float, decimals: int = 0) -> str:
    """A number with a thousands separator and a true minus sign; a dash for NaN."""
    if math.isnan(value):
        return "–"
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def seconds(value: float) -> str:
    """Seconds, with one decimal below a hundred."""
    return number(value, 1 if abs(value) < 100 else 0)


def percent(summary: Summary) -> str:
    """A mean accuracy and its standard deviation, such as `72.31 ± 0.52`."""
    spread = "" if math.isnan(summary.std) else f" ± {number(summary.std, 2)}"
    return number(summary.mean, 2) + spread


def three_digits(value: float) -> str:
    """A number to three significant digits, such as `1,290`."""
    if math.isnan(value) or value == 0:
        return number(value)
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", "−")
    decimals = 2 - math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return number(round(value, decimals), max(0, decimals))


def phi(summary: Summary | None) -> str:
    """A mean sharpness and its standard deviation, such as `1,290 ± 85`; a dash without one."""
    if summary is None or math.isnan(summary.mean):
        return "–"
    mean = three_digits(summary.mean)
    if math.isnan(summary.std):
        return mean
    if "e" in mean:
        return f"{mean} ± {three_digits(summary.std)}"
    decimals = len(mean.partition(".")[2])  # no finer than the mean
    return f"{mean} ± " + (three_digits(summary.std) if summary.std >= 100 else number(summary.std, decimals))


def interval(item: Summary | Difference, decimals: int = 2) -> str:
    """The 95 % interval of a mean or of a difference, such as `5.41 to 8.10`; empty without one."""
    return "" if math.isnan(item.low) else f"{number(item.low, decimals)} to {number(item.high, decimals)}"


def epsilon_text(epsilon: float) -> str:
    """The box size as the paper writes it: `1e-3`, `5e-4`."""
    mantissa, _, exponent = f"{epsilon:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# ---------------------------------------------------------------- sentences


def headline_epsilon(values: pd.DataFrame) -> float | None:
    """The box of figures and sentences: the largest measured in the full space by the converged solver."""
    found = values[(values["space"] == "full") & (values["solver"] == "converged")]["epsilon"]
    return float(found.max()) if len(found) else None


def _points(item: Difference) -> str:
    return number(abs(item.mean), 1 if abs(item.mean) >= 1 else 2)


def _within(item: Difference) -> str:
    """The interval of a difference in brackets, or why there is none."""
    if item.sign is None:
        return "(single runs: no interval)"
    return f"(95 % interval {interval(item, 1 if abs(item.mean) >= 1 else 2)})"


def conclusion(rows: pd.DataFrame) -> list[str]:
    """What the numbers support, in sentences: the gap, what it costs in flatness, what buys it back."""
    cells = counted_cells(rows)
    accuracy = {label: group["accuracy"].dropna() for label, group in cells.groupby("label")}
    table = leaderboard(rows)
    if table.empty:
        return ["No run is confirmed yet."]
    missing = [label for label in ("SB", "LB") if label not in accuracy or accuracy[label].empty]
    if missing:
        measured = [
            f"{row['method']} {percent(row['accuracy'])} % (n = {row['n']})"
            for _, row in table.iterrows()
            if row["n"]
        ]
        return [
            f"There is no finished run of {' and '.join(missing)}, so there is no gap to measure.",
            *(["Test accuracy: " + ", ".join(measured) + "."] if measured else []),
        ]

    values = sharpness_values(rows)
    epsilon = headline_epsilon(values)
    found = values[
        (values["epsilon"] == epsilon) & (values["space"] == "full") & (values["solver"] == "converged")
    ]
    sharpness = {label: group["phi"].dropna() for label, group in found.groupby("label")}

    def flatness(label: str, other: str) -> str:
        """How a method's φ compares with another's, on a log scale; empty where either is missing."""
        a, b = (sharpness.get(name, pd.Series(dtype=float)) for name in (label, other))
        a, b = a[a > 0], b[b > 0]
        if a.empty or b.empty:
            return ""
        box = f"φ({epsilon_text(epsilon or 0)})"
        against = f"{other} ({box} {three_digits(a.mean())} against {three_digits(b.mean())})"
        apart = difference(np.log(a), np.log(b))
        if apart.sign == 0:
            return f"not clearly sharper or flatter than {against}"
        ratio, word = max(a.mean() / b.mean(), b.mean() / a.mean()), "sharp" if apart.mean > 0 else "flat"
        return f"{number(ratio, 0 if ratio >= 10 else 1)} times as {word} as {against}"

    gap = difference(accuracy["SB"], accuracy["LB"])
    exists = gap.mean > 0 and gap.sign != 0
    if gap.sign is None:
        where = "below" if gap.mean > 0 else "above"
        first = (
            f"LB's test accuracy is {_points(gap)} points {where} SB's in single runs, "
            "which cannot be told from chance: more seeds are needed"
        )
    elif gap.sign == 0:
        first = (
            f"No clear gap: SB minus LB is {number(gap.mean, 2)} points of test accuracy, "
            f"95 % interval {interval(gap)}, which includes zero"
        )
    elif exists:
        first = f"LB loses {_points(gap)} points of test accuracy to SB {_within(gap)}"
    else:
        first = f"No gap to close: LB is {_points(gap)} points more accurate than SB {_within(gap)}"
    cost = flatness("LB", "SB")
    sentences = [first + "."] + ([f"LB is {cost}."] if cost else [])

    remedies = [label for label in table["method"] if label not in ("SB", "LB") and len(accuracy[label])]
    if not remedies:
        return [*sentences, "No remedy was measured."]
    best = remedies[0]
    gain = difference(accuracy[best], accuracy["LB"])
    if gain.mean <= 0 or gain.sign == 0:
        amount = ("+" if gain.mean > 0 else "") + number(gain.mean, 2)
        text = f"No remedy clearly gains on LB: the best, {best}, differs by {amount} points {_within(gain)}"
    elif not exists:
        text = f"{best} is the most accurate remedy, {_points(gain)} points above LB {_within(gain)}"
    else:
        over = difference(accuracy[best], accuracy["SB"])
        if over.mean >= 0:
            text = f"{best} buys back the whole gap"
            text += f" and ends {_points(over)} points above SB {_within(over)}" if over.sign != 0 else ""
        else:
            share = number(100 * gain.mean / gap.mean)
            text = f"{best} buys back {share} % of the gap, {_points(gain)} points {_within(gain)}"
    flat = flatness(best, "LB")
    sentences.append(text + (f"; it is {flat}" if flat else "") + ".")

    measured = [label for label in remedies if label in sharpness and len(sharpness[label])]
    flattest = min(measured, key=lambda label: sharpness[label].mean(), default=best)
    if flattest != best:
        compared = flatness(flattest, "LB")
        sentences.append(
            f"The flattest remedy is {flattest}"
            + (f", {compared}" if compared else "")
            + f", at {number(accuracy[flattest].mean(), 2)} % test accuracy."
        )
    lost = int(table["diverged"].sum())
    if lost:
        sentences.append(
            f"{lost} run{'s' * (lost > 1)} diverged and {'are' if lost > 1 else 'is'} in no mean."
        )
    return sentences


def agreement_sentence(rows: pd.DataFrame) -> str:
    """What the pairs of `agreement` say of the number of workers."""
    pairs = agreement(rows)
    if pairs.empty:
        return (
            "Each run used one number of workers, so agreement between numbers of workers was not measured."
        )
    texts = []
    for _, pair in pairs.iterrows():
        apart = abs(pair["accuracy_a"] - pair["accuracy_b"])
        text = (
            f"{pair['method']}, seed {pair['seed']}, on {pair['workers_a']} and {pair['workers_b']} workers: "
            f"test accuracy {number(pair['accuracy_a'], 2)} and {number(pair['accuracy_b'], 2)} %, "
            f"{number(apart, 2)} points apart"
        )
        if not math.isnan(pair["seed_std"]):
            text += f" (std over seeds {number(pair['seed_std'], 2)})"
        if not math.isnan(pair["first_epoch"]):
            text += (
                f"; running loss apart by {pair['first_epoch']:.1e} (relative) after the first epoch "
                f"and {pair['last_epoch']:.1e} after the last"
            )
        texts.append(text + ".")
    return " ".join(texts)


# ---------------------------------------------------------------- the terminal


def print_table(rows: pd.DataFrame, console: Console) -> None:
    """Prints the leaderboard, one line of conclusion, one on workers, and φ by both solvers in both spaces.

    Args:
        rows: The rows of one study.
        console: Where to; 100 columns suffice for the usual names. No number is ever cut off: a narrower
            terminal wraps the tables' lines.
    """
    table = leaderboard(rows)
    sharpness = sharpness_table(rows)

    def show(item: Table) -> None:
        width = console.width
        console.width = max(width, 110)
        console.print(item, highlight=False)
        console.width = width
        console.print()

    if not table.empty:
        show(_leaderboard_table(table, sharpness))
    console.print(" ".join(conclusion(rows)), highlight=False, markup=False)
    if not table.empty:
        console.print()
        console.print(agreement_sentence(rows), highlight=False, markup=False)
    if not sharpness.empty:
        console.print()
        show(_solver_table(sharpness))


def _table(title: str, *headers: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place else "left", no_wrap=True)
    return table


def _leaderboard_table(board: pd.DataFrame, sharpness: pd.DataFrame) -> Table:
    epsilons = [] if sharpness.empty else sorted(sharpness["epsilon"].unique(), reverse=True)
    epsilons = [epsilon for epsilon in epsilons if phi_column(epsilon) in board]
    cells: list[tuple[str, Callable[[pd.Series], str]]] = [
        ("\nmethod", lambda row: row["method"]),
        ("test\naccuracy %", lambda row: percent(row["accuracy"])),
        ("gap\nto SB", lambda row: number(row["gap"].mean, 2)),
        *[(f"sharpness\nφ({epsilon_text(e)})", lambda row, e=e: phi(row[phi_column(e)])) for e in epsilons],
        ("\nsteps", lambda row: number(row["steps"])),
        ("gradient\nevals", lambda row: number(row["gradient_evaluations"])),
        ("\nseconds", lambda row: seconds(row["seconds"])),
        ("\nn", lambda row: str(row["n"])),
    ]
    if board["diverged"].any():
        cells.append(("di-\nverged", lambda row: str(row["diverged"])))
    table = _table(
        "Mean ± standard deviation over n seeds; φ: full space, converged", *[name for name, _ in cells]
    )
    for _, row in board.iterrows():
        table.add_row(*[Text(text(row)) for _, text in cells])
    return table


def _solver_table(sharpness: pd.DataFrame) -> Table:
    spaces = sorted(sharpness["space"].unique())
    columns = [(space, solver) for space in spaces for solver in ("paper", "converged")]
    title = "Sharpness φ by solver: the paper's, run literally, and run to convergence"
    table = _table(title, "\nmethod", "\nε", *[f"{space},\n{solver}" for space, solver in columns])
    found = sharpness.set_index(["epsilon", "method", "space"])
    starred = False
    last = None
    for epsilon, method in found.index.droplevel("space").unique():
        if last not in (None, epsilon):
            table.add_row()
        last, texts = epsilon, []
        for space, solver in columns:
            row = found.loc[(epsilon, method, space)] if (epsilon, method, space) in found.index else None
            texts.append("–" if row is None else solver_phi(row, solver))
        starred |= any(text.endswith("*") for text in texts)
        table.add_row(*[Text(text) for text in (method, epsilon_text(epsilon), *texts)])
    if starred:
        table.caption = "* not every run's maximum converged, or some failed: see the report"
        table.caption_justify = "left"
    return table


def solver_phi(row: pd.Series, solver: str) -> str:
    """φ of one solver in a row of `sharpness_table`, starred where the converged solver did not converge."""
    text = phi(row[solver])
    incomplete = solver == "converged" and row["converged_converged"] < row["converged_measured"]
    return text + ("*" if incomplete and row[f"{solver}_measured"] else "")
