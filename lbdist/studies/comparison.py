"""SB against LB, and what remedies buy back: search on a validation split, then confirmation."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import comparison
from lbdist.config.schema import PRECISIONS, one_of
from lbdist.errors import require
from lbdist.plan import Cell, Measurement, Point
from lbdist.studies.base import Done, Study, ended
from lbdist.studies.search import Chosen, searched


@dataclass
class Comparison(Study):
    """SB, LB and LB with each remedy (Keskar et al., Tables 2, 3, 4, 6 and 7).

    A remedy with several settings runs each on a validation split; the best one is confirmed over fresh
    seeds. A combination takes the settings that were chosen for its members alone.

    Attributes:
        check_workers: LB's first seed runs once more on this many workers, to show that their number does not
            move the numbers; None leaves it out.
        check_precision: LB's first seed runs, and is measured, once more in this precision, to show the same
            of that; the check of workers is then in this precision too. None leaves it out.
        equal_loss: LB runs once more for each seed until its training loss is that of the seed's SB, for at
            most so many times the epochs, to show whether it was only trained too little; None leaves it out.
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
        yield from self._compared(done)

    def _compared(self, done: Done) -> Generator[Cell, None, Chosen]:
        """The cells; returns the settings that are chosen."""
        plan = self.plan
        for method in ("SB", "LB"):
            yield from (plan.cell(method, seed=seed) for seed in plan.seeds)
        yield from self._equally_trained(done)
        yield from self._checks()
        chosen = yield from searched(plan, done)
        together = [[name] for name in chosen]
        together += [names for names in plan.combinations if chosen.keys() >= set(names)]
        for names in together:
            remedies = {name: chosen[name] for name in names}
            yield from (plan.cell("LB", remedies, seed=seed) for seed in plan.seeds)
        return chosen

    def _checks(self) -> Iterator[Cell]:
        """LB's first seed once more, in another precision, and on several workers."""
        precision, workers = self.check_precision, self.check_workers
        like = replace(self.plan.cell("LB", seed=0), precision=precision or self.plan.config.precision)
        if precision:
            yield replace(like, role="precision")
        if workers and self.plan.fits(2):
            yield replace(like, role="workers", num_workers=workers)

    def _equally_trained(self, done: Done) -> Iterator[Cell]:
        """LB of each seed whose SB is over and has a training loss, until it has the same."""
        for seed in self.plan.seeds if self.equal_loss is not None else ():
            final = done(self.plan.cell("SB", seed=seed))
            if final and not final.get("diverged"):
                target, longest = float(final.get("train_loss", 0.0)), self.equal_loss or 1.0
                yield self.plan.cell("LB", seed=seed, role="equal_loss", target_loss=target, longest=longest)

    def left_out(self) -> list[str]:
        """The check of workers, where there is one device."""
        if self.check_workers is None or self.plan.fits(2):
            return []
        return ["the check on several workers is left out, since one is all there is"]

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """Every measure at every end that is counted, and the sharpness of what ran in another precision."""
        yield from super().measurements(done)
        for cell in ended(self, done, ["precision"]):
            nodes = (node for node in self.plan.measured(cell) if node["name"] == "sharpness")
            yield from (Measurement(node, (Point(cell),)) for node in nodes)

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """Leaderboard, what it means, curves, sharpness by solver, the search, what was checked."""
        return comparison.sections(runs)


@dataclass
class Sharpness(Comparison):
    """A comparison of which the sharpness is shown (Keskar et al., Tables 3 and 4)."""

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """Sharpness by solver and space, what the paper leaves open, the published numbers."""
        return comparison.sharpness(runs)
