"""Which batch, learning-rate rule and remedy to take, from brief runs of the user's own network and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lbdist.analysis import advice, timings
from lbdist.analysis.advice import Advice, Branch, Timed
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import recommendation, throughput
from lbdist.config.schema import one_of
from lbdist.errors import require
from lbdist.plan import Cell
from lbdist.rules import RULES
from lbdist.studies.base import Done, Final
from lbdist.studies.scaling import Scaling
from lbdist.studies.search import SEARCH_SEED


@dataclass
class Advise(Scaling):
    """Brief runs of SB, steps timed at each batch, branches by each rule; then remedies at the best batch.

    Nothing is chosen on the test set: branches are compared on the training loss, remedies on a validation
    split.

    Attributes:
        rules: How a branch's learning rate may follow its batch.
        slack: A batch, or fewer workers, are preferred to more that are faster by no more than this share.
    """

    rules: list[str] = field(default_factory=lambda: ["none"])
    slack: float = 0.1

    def check(self) -> None:
        """There are rules, and an epoch of SB before its last at which branches begin."""
        super().check()
        good = bool(self.rules) and set(self.rules) <= set(RULES)
        require(good, "study.rules", self.rules, f"one or more of {one_of(RULES)}")
        last = self.plan.config.epochs
        require(
            bool(self._after()), "study.epochs", self.epochs, f"one or more epochs before the last, {last}"
        )
        require(0 <= self.slack < 1, "study.slack", self.slack, "from 0 to below 1")

    def cells(self, done: Done) -> Iterator[Cell]:
        """SB and what is timed, then the branches, then the remedies: each once the one before is over."""
        first = [*self._small(), *self._steps()]
        yield from first
        if any(done(cell) is None for cell in first):
            return
        branches = self._all_branches(done)
        yield from branches
        if all(done(cell) is not None for cell in branches):
            yield from self._remedied(self.advice(done))

    def _small(self) -> list[Cell]:
        keep = frozenset(self._after())
        return [self.plan.cell("SB", seed=seed, keep=keep) for seed in self.plan.seeds]

    def _steps(self) -> list[Cell]:
        return list(self._timed({}))

    def _all_branches(self, done: Done) -> list[Cell]:
        """From the last model that SB keeps before its end, at each batch that fits by each rule."""
        steps = [cell for cell in self._steps() if cell.asked_workers == 1]
        large = {cell.global_batch_size for cell in steps if "out_of_memory" in (done(cell) or {})}
        found = []
        for cell in self._small():
            final = done(cell)
            if final and not final.get("diverged"):
                for size in sorted(set(self.sizes()) - large):
                    for rule in self.rules if size != self.plan.small_batch else self.rules[:1]:
                        found.append(self._branch(cell, max(cell.keep), size, rule))
        return found

    def advice(self, done: Done) -> Advice:
        """What the finished cells say."""
        return advice.advise(
            [self._timed_as(cell, done(cell)) for cell in self._steps() if cell.role == "timing"],
            [self._branch_as(cell, done(cell)) for cell in self._all_branches(done)],
            small=self.plan.small_batch,
            tolerance=self.tolerance,
            slack=self.slack,
        )

    def _timed_as(self, cell: Cell, final: Final | None) -> Timed:
        known = final or {}
        values = (known.get(name) for name in ("step_seconds", "peak_memory", "device_memory"))
        return Timed(cell.global_batch_size, cell.asked_workers, *values)

    def _branch_as(self, cell: Cell, final: Final | None) -> Branch:
        loss = None if not final or final.get("diverged") else final.get("train_loss")
        return Branch(cell.global_batch_size, cell.rule, cell.seed, loss)

    def _remedied(self, found: Advice) -> Iterator[Cell]:
        """On a validation split: SB, and at the recommended batch none and each remedy in each setting."""
        kinds: list[dict[str, Mapping[str, Any]]] = [{}]
        for name, candidates in self.plan.remedies.items():
            kinds += [{name: setting} for setting in candidates.settings]
        for seed in (SEARCH_SEED + seed for seed in self.plan.seeds):
            yield self.plan.cell("SB", seed=seed, role="search")
            for remedies in kinds:
                yield self.plan.cell(found.batch, remedies, seed=seed, role="advised", rule=found.rule)

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """The recommendation and its evidence, then what was timed."""
        found = self.advice(done)
        rate = self.plan.cell(found.batch, seed=0, role="advised", rule=found.rule).optimizer.get("lr")
        model = timings.model(runs)
        return [
            recommendation.section(runs, found, rate),
            *throughput.sections(runs, model, self.predicted, self.interconnects),
        ]
