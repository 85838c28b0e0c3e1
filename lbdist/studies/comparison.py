"""SB against LB, and what remedies buy back: search on a validation split, then confirmation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lbdist.analysis.runs import EQUAL_LOSS, Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import comparison
from lbdist.config.schema import PRECISIONS, one_of
from lbdist.errors import require
from lbdist.plan import Cell, Measurement, Point
from lbdist.results import final_name
from lbdist.studies.base import SEARCH_SEED, Done, Study

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Comparison(Study):
    """SB, LB and LB with each remedy (Keskar et al., Tables 2, 3, 4, 6 and 7).

    A remedy with several settings runs each on a validation split; the best one is confirmed over fresh
    seeds. A combination takes the settings that were chosen for its members alone.

    Attributes:
        check_workers: LB's first seed runs once more on this many workers, to show that their number does not
            move the numbers; None does without.
        check_precision: LB's first seed runs, and is measured, once more in this precision, to show the same
            of that; the check of workers is then in this precision too. None does without.
        equal_loss: LB runs once more a seed until its training loss is that of the seed's SB, for at most so
            many times the epochs, to show whether it was only trained too little; None does without.
    """

    check_workers: int | None = None
    check_precision: str | None = None
    equal_loss: float | None = None

    def check(self) -> None:
        """The checks need a whole number of workers, and a precision."""
        precision, known = self.check_precision, one_of(["null", *PRECISIONS])
        require(precision in (None, *PRECISIONS), "study.check_precision", precision, known)
        workers = self.check_workers
        require(workers is None or workers >= 1, "study.check_workers", workers, "null or at least 1")
        longest, allowed = self.equal_loss, "null, or from 1 to 1,000 times the epochs"
        require(longest is None or 1 <= longest <= 1000, "study.equal_loss", longest, allowed)

    def cells(self, done: Done) -> Iterator[Cell]:
        """Baselines, then each remedy's search and, once that is over, its confirmation."""
        plan = self.plan
        for method in ("SB", "LB"):
            yield from (plan.cell(method, seed=seed) for seed in plan.seeds)
        yield from self._equally_trained(done)
        checked: dict[str, Any] = {"seed": 0, "stage": "check", "precision": self.check_precision}
        if self.check_precision:
            yield plan.cell("LB", **checked)
        if self.check_workers:
            yield plan.cell("LB", **checked, num_workers=self.check_workers)
        chosen: dict[str, Mapping[str, Any]] = {}
        for name, candidates in plan.remedies.items():
            key: int | None = 0
            if len(candidates.settings) > 1:
                trials = {
                    key: [
                        plan.cell("LB", {name: setting}, seed=SEARCH_SEED + seed, stage="search")
                        for seed in range(plan.config.search.seeds)
                    ]
                    for key, setting in enumerate(candidates.settings)
                }
                for cells in trials.values():
                    yield from cells
                key = best(trials, done, final_name(plan.score, "validation"))
            if key is not None:
                chosen[name] = candidates.settings[key]
                yield from (plan.cell("LB", {name: chosen[name]}, seed=seed) for seed in plan.seeds)
        for names in plan.config.combinations:
            if all(name in chosen for name in names):
                together = {name: chosen[name] for name in names}
                yield from (plan.cell("LB", together, seed=seed) for seed in plan.seeds)

    def _equally_trained(self, done: Done) -> Iterator[Cell]:
        """LB of each seed whose SB is over and has a training loss, until it has the same."""
        for seed in self.plan.seeds if self.equal_loss is not None else ():
            final = done(self.plan.cell("SB", seed=seed))
            if final and not final.get("diverged"):
                target = float(final.get("train_loss", 0.0))
                yield self.plan.cell(
                    EQUAL_LOSS, seed=seed, target_loss=target, longest=self.equal_loss or 1.0
                )

    def within(self, devices: int) -> list[str]:
        """Leaves out the check of workers where there is one device."""
        if self.check_workers is None or devices > 1:
            return []
        self.check_workers = None
        return ["the check on several workers is left out, since one is all there is"]

    def measurements(self, cells: Sequence[Cell]) -> Iterator[Measurement]:
        """Every measure at every confirmed end, and the sharpness of what ran in another precision."""
        yield from super().measurements(cells)
        for cell in cells:
            if cell.stage == "check" and cell.num_workers == self.plan.config.num_workers:
                nodes = (node for node in self.plan.measured(cell) if node["name"] == "sharpness")
                yield from (Measurement(node, (Point(cell),)) for node in nodes)

    def sections(self, runs: Runs) -> list[Section]:
        """Leaderboard, what it means, curves, sharpness by solver, the search, what was checked."""
        return comparison.sections(runs)


@dataclass
class Sharpness(Comparison):
    """A comparison of which the sharpness is shown (Keskar et al., Tables 3 and 4)."""

    def sections(self, runs: Runs) -> list[Section]:
        """Sharpness by solver and space, what the paper leaves open, the published numbers."""
        return comparison.sharpness(runs)


def best(trials: Mapping[Key, Sequence[Cell]], done: Done, score: str) -> Key | None:
    """The key whose cells have the highest mean score; None until all are over, or when none of them has one.

    The first of equals wins.
    """
    finals = {key: [done(cell) for cell in cells] for key, cells in trials.items()}
    if any(final is None for found in finals.values() for final in found):
        return None
    means = {
        key: float(np.mean([final.get(score, math.nan) for final in found if final is not None]))
        for key, found in finals.items()
    }
    usable = [key for key, mean in means.items() if math.isfinite(mean)]
    return max(usable, key=lambda key: means[key], default=None)
