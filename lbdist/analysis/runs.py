"""The runs of a study: each table that sections need, derived once from the rows.

A run that diverged has no score and no sharpness: it is left out of the means and counted beside them.
Several draws of a subspace are averaged within a run first, so that n always counts runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from lbdist.analysis.numbers import epsilon_text
from lbdist.analysis.statistics import Summary, Threshold, summarise, threshold
from lbdist.plan import COUNTED, method_label

CHOICES = "choices"
"""The measure whose values stand in for no others."""

EQUAL_LOSS = method_label("LB", role="equal_loss")
"""The label of LB that is trained until its training loss is SB's."""

COSTS = ["steps", "gradient_evaluations", "seconds"]


@dataclass(frozen=True)
class Score:
    """What the study's loss is scored by.

    Attributes:
        name: The metric.
        unit: `%` or nothing.
        chance: Up to which it is no better than one answer for all samples; None where that is not known.
        loss_unit: Unit of the loss, `nats` or nothing.
    """

    name: str = "accuracy"
    unit: str = "%"
    chance: float | None = None
    loss_unit: str = ""

    def in_points(self, head: str) -> str:
        """The head of a column of differences of scores, with their unit."""
        return f"{head},{self.points}" if self.points else head

    def loss(self, head: str) -> str:
        """The head of a column of losses, with their unit."""
        return f"{head}\n{self.loss_unit}" if self.loss_unit else head

    def summarise(self, values: Iterable[float]) -> Summary:
        """A summary of scores, whose interval, where they are shares, is within 0 and 100 %."""
        found = summarise(values)
        if self.unit != "%" or math.isnan(found.low):
            return found
        return replace(found, low=max(0.0, found.low), high=min(100.0, found.high))

    def at_chance(self, mean: float) -> bool:
        """Whether a mean score is no better than one answer for all samples."""
        return self.chance is not None and mean <= self.chance

    @property
    def head(self) -> str:
        """As a column's head: `accuracy %`."""
        return f"{self.name} {self.unit}".strip()

    @property
    def axis(self) -> str:
        """As an axis's name: `test accuracy (%)`."""
        return f"test {self.name}" + (f" ({self.unit})" if self.unit else "")

    @property
    def points(self) -> str:
        """What follows a difference of scores: ` points`, or nothing where there is no unit."""
        return " points" if self.unit == "%" else ""

    def of(self, value: str) -> str:
        """A value with its unit."""
        return f"{value} {self.unit}".strip()


def score_of(rows: pd.DataFrame) -> Score:
    """What the rows of a study are scored by: the metric beside the loss at the ends of its runs."""
    ends = rows[rows["measurement"].isna() & rows["epoch"].isna() & rows["split"].notna()]
    names = [name for name in ends["metric"].unique() if name != "loss"]
    known = {"r2": Score("r2", ""), "loss": Score("loss", "")}
    return Score() if "accuracy" in names or not names else known.get(names[0], Score(names[0]))


def _labels(cells: pd.DataFrame) -> list[str]:
    """What each cell is called in tables; where a method is confirmed in several settings, with its own."""
    columns = (cells[name] for name in ("method", "remedy", "role", "origin_epoch"))
    labels = pd.Series(
        [
            method_label(method, remedy, role, None if pd.isna(epoch) else epoch)
            for method, remedy, role, epoch in zip(*columns, strict=True)
        ],
        index=cells.index,
        dtype=object,
    )
    counted = cells["role"].isin(COUNTED)
    settings = cells["setting"][counted].groupby(labels[counted]).nunique()
    several = counted & labels.map(settings).gt(1)
    return list(labels.where(~several, labels + " " + cells["setting"]))


class Runs:
    """The finished runs of one study.

    Args:
        rows: Its rows, as `lbdist.results.load` returns them.
        score: What is learnt is scored by.

    Raises:
        ValueError: The rows are of several studies, networks or data sets.
    """

    def __init__(self, rows: pd.DataFrame, score: Score | None = None) -> None:
        self.rows, self.score = rows[rows["cell"].notna()], score or Score()  # others are derived of them
        rows = self.rows
        names = {}
        for column in ("experiment", "network", "data"):
            found = sorted(rows[column].dropna().unique())
            if len(found) > 1:
                several = ",".join(found)
                raise ValueError(f"{column}={several}: the rows of one study are needed; select one first")
            names[column] = found[0] if found else ""
        self.study, self.network, self.data = names["experiment"], names["network"], names["data"]

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """One row per trained cell, indexed by its id.

        Columns: what the cell is, `label`, `epochs`, and the final `score` and `loss`, off the training set,
        `train_score`, `train_loss`, `distance` from the start, `steps`, `gradient_evaluations`, `seconds`,
        `diverged`, where scores are NaN; `best`, the highest score of the test curve.
        """
        identity = ["cell", "method", "remedy", "setting", "global_batch_size", "num_workers", "seed"]
        identity += ["role", "rule", "origin_epoch", "precision", "memory_format"]
        trained = self.rows[self.rows["measurement"].isna()]
        cells = trained[identity].drop_duplicates("cell").set_index("cell")
        cells["setting"] = cells["setting"].fillna("")
        cells = cells.astype({"global_batch_size": int, "num_workers": int, "seed": int})
        cells["label"] = _labels(cells)
        final = trained[trained["epoch"].isna()]
        metrics: dict[str, pd.Series] = {}
        for name, metric in (("score", self.score.name), ("loss", "loss")):
            found, on_train = final["metric"] == metric, final["split"] == "train"
            metrics |= {name: found & ~on_train, f"train_{name}": found & on_train}
        metrics["distance"] = final["metric"] == "distance_from_start"
        metrics |= {metric: final["metric"] == metric for metric in (*COSTS, "diverged")}
        for name, chosen in metrics.items():
            values = final[chosen].drop_duplicates("cell", keep="last").set_index("cell")["value"]
            cells[name] = values.reindex(cells.index).astype(float)
        cells["diverged"] = cells["diverged"] == 1
        cells["best"] = self._curve("test").groupby("cell")["value"].max().reindex(cells.index)
        cells.loc[cells["diverged"], ["score", "train_score", "loss", "train_loss", "best"]] = math.nan
        course = trained[trained["metric"] == "running_loss"]
        cells["epochs"] = course.groupby("cell")["epoch"].max().reindex(cells.index).astype(float)
        # of its training: its end is evaluated in float32
        own = course.drop_duplicates("cell").set_index("cell")["precision"].reindex(cells.index)
        cells["precision"] = own.where(own.notna(), cells["precision"])
        return cells

    @functools.cached_property
    def measurements(self) -> pd.DataFrame:
        """The rows of measurements at trained models, but for those of `choices`."""
        return self.rows[self.rows["measurement"].notna() & (self.rows["measure"] != CHOICES)]

    def names(self, rows: pd.DataFrame) -> pd.Series:
        """What rows of measurements are called: what is measured on several splits, with its split."""
        fit = rows["metric"].isin(["loss", self.score.name])
        return rows["metric"].where(~fit, rows["split"] + "_" + rows["metric"])

    @functools.cached_property
    def choices(self) -> pd.DataFrame:
        """The rows of what was measured once more for each choice that the paper leaves open."""
        names = self.counted["label"]
        rows = self.rows[(self.rows["measure"] == CHOICES) & self.rows["cell"].isin(names.index)]
        return rows.assign(label=rows["cell"].map(names))

    @functools.cached_property
    def counted(self) -> pd.DataFrame:
        """The confirmed cells, which means are over."""
        return self.cells[self.cells["role"].isin(COUNTED)]

    def at_ends(self, names: pd.Series | None = None) -> pd.DataFrame:
        """The rows of measurements at the ends of runs, with the `label` of each.

        Args:
            names: Labels by cell, of which no other is taken; None for the confirmed ones' methods.
        """
        names = self.counted["label"] if names is None else names
        rows = self.measurements
        rows = rows[rows["epoch"].isna() & rows["cell"].isin(names.index)]
        return rows.assign(label=rows["cell"].map(names))

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """Test score during training: columns `label, epoch, mean, std, n`, one row per method and epoch."""
        return self.curves_on("test")

    def curves_on(self, split: str) -> pd.DataFrame:
        """`curves` on the training or on the test set."""
        cells = self.counted[~self.counted["diverged"]]
        found = self._curve(split)
        found = found[found["cell"].isin(cells.index)]
        found = found.assign(label=found["cell"].map(cells["label"]))
        data = found.groupby(["label", "epoch"])["value"].agg(mean="mean", std="std", n="size").reset_index()
        return data.astype({"epoch": int})

    def _curve(self, split: str) -> pd.DataFrame:
        """The rows of the score during training on a split, one per epoch and cell."""
        rows = self.rows
        found = rows[
            (rows["metric"] == self.score.name) & (rows["split"] == split) & rows["measurement"].isna()
        ]
        found = found[found["epoch"].notna() & found["value"].notna()]
        return found.sort_values("step", kind="stable").drop_duplicates(["cell", "epoch"], keep="last")

    @functools.cached_property
    def sharpness(self) -> pd.DataFrame:
        """One row per confirmed run, box, space and solver, of φ at the run's end.

        Columns `label, cell, seed, epsilon, space, solver`; `phi`, the mean over the draws; `converged` and
        `failed` of the `measured` draws; `evaluations`, their mean. φ along a run, at an `epoch`, stays out.
        """
        cells = self.counted[~self.counted["diverged"]]
        rows = self.measurements
        at_end = (rows["metric"] == "sharpness") & rows["epoch"].isna()
        found = rows[at_end & rows["cell"].isin(cells.index)]
        found = found.assign(
            label=found["cell"].map(cells["label"]),
            seed=found["cell"].map(cells["seed"]),
            failed=found["value"].isna(),
            converged=[value is True or value == 1 for value in found["converged"]],
        )
        keys = ["label", "cell", "seed", "epsilon", "space", "solver"]
        aggregates = {
            "phi": ("value", "mean"),
            "measured": ("value", "size"),
            "converged": ("converged", "sum"),
        }
        aggregates |= {"failed": ("failed", "sum"), "evaluations": ("evaluations", "mean")}
        order = ["label", "epsilon", "space", "solver", "seed"]
        table = found.groupby(keys).agg(**aggregates).reset_index()
        return table.sort_values(order, ascending=[True, False, True, True, True]).reset_index(drop=True)

    @functools.cached_property
    def epsilon(self) -> float | None:
        """The box of figures and sentences: the largest in the full space by the converged solver."""
        found = self.sharpness
        boxes = found[(found["space"] == "full") & (found["solver"] == "converged")]["epsilon"]
        return float(boxes.max()) if len(boxes) else None

    @property
    def box(self) -> str:
        """The headline's sharpness as text: `φ(1e-3)`."""
        return f"φ({epsilon_text(self.epsilon or 0)})"

    @functools.cached_property
    def headline(self) -> pd.Series:
        """φ of each confirmed cell in the headline's box, full space, converged; indexed by the cell."""
        return self.sharpness_of(self.counted.index[~self.counted["diverged"]])

    def sharpness_of(self, cells: pd.Index) -> pd.Series:
        """φ of cells in the headline's box, full space, converged; indexed by the cell."""
        found = self.measurements
        chosen = (found["metric"] == "sharpness") & found["epoch"].isna() & found["value"].notna()
        chosen &= (found["epsilon"] == self.epsilon) & (found["space"] == "full")
        found = found[chosen & (found["solver"] == "converged") & found["cell"].isin(cells)]
        return found.groupby("cell")["value"].mean()

    @functools.cached_property
    def others(self) -> dict[str, dict[str, Summary]]:
        """The metrics measured beside sharpness at the ends of confirmed runs, each by label."""
        rows = self.at_ends()
        found = rows[rows["position"].isna() & (rows["metric"] != "sharpness")]  # a curve has no place
        table: dict[str, dict[str, Summary]] = {}
        for (metric, label), group in found.groupby([self.names(found), found["label"]])["value"]:
            table.setdefault(metric, {})[label] = summarise(group)
        return table

    @functools.cached_property
    def threshold(self) -> Threshold | None:
        """From which global batch on the score falls, over the confirmed runs."""
        return threshold(self.counted["global_batch_size"], self.counted["score"])

    @property
    def with_headline(self) -> pd.DataFrame:
        """The confirmed cells with `phi`, their sharpness in the headline's box."""
        return self.counted.assign(phi=self.headline.reindex(self.counted.index))

    def order(self) -> list[str]:
        """The labels of the leaderboard from top to bottom: SB, LB, then by score."""
        means = self.counted.groupby("label")["score"].mean().fillna(-math.inf)
        baselines = [label for label in ("SB", "LB") if label in means.index]
        return baselines + sorted(means.index.difference(baselines), key=lambda label: (-means[label], label))
