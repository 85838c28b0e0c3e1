"""What a large batch buys: throughput, time to a score, and whether that pays (Keskar et al., appendix C)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lbdist.analysis import timings
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import break_even, critical_batch, throughput
from lbdist.errors import require
from lbdist.plan import Cell, Measurement, Node, Origin, Role
from lbdist.rules import RULES
from lbdist.studies.base import Done, along_runs, chosen_batches, chosen_epochs
from lbdist.studies.comparison import Comparison
from lbdist.studies.search import Chosen


@dataclass
class Scaling(Comparison):
    """SB, LB, batches between them and LB with each remedy: trained to their scores, and their steps timed.

    Attributes:
        batches: Global batches between SB's and LB's, as in `batch_size`; None doubles SB's up to LB's.
        workers: Numbers of workers on which steps are timed; what the cluster does not hold is left out.
        timing: Node of the procedure that times a step.
        collectives: Node of the procedure that times collective calls.
        targets: Test scores to which steps are counted; None chooses some that every batch reaches.
        epochs: After which epochs of SB the noise scale is measured and runs branch off, as in Figure 6.
        branch_length: Of a branch, as a share of the epochs.
        branch_rule: How the learning rate of a branch follows its batch: linear for SGD, sqrt for ADAM.
        tolerance: By how much a branch's loss may be above that of the branch at SB's batch.
        predicted: Numbers of workers for which the model says what a step takes.
        interconnects: By name, the latency of a message (`seconds`) and the `bytes_per_second` of a link.
    """

    batches: list[Any] | None = None
    workers: list[int] = field(default_factory=lambda: [1])
    timing: dict[str, Any] = field(default_factory=dict)
    collectives: dict[str, Any] = field(default_factory=dict)
    targets: list[float] | None = None
    epochs: Any = field(default_factory=list)
    branch_length: float = 0.1
    branch_rule: str = "sqrt"
    tolerance: float = 0.01
    predicted: list[int] = field(default_factory=list)
    interconnects: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Batches, workers and epochs that there are, and an interconnect's two numbers."""
        super().check()
        if self.batches is not None:
            chosen_batches(self.plan, self.batches)
        self._after()
        for target in self.targets or []:
            allowed = f"test scores of at most {self.plan.highest:g}, the highest {self.plan.score}"
            require(target <= self.plan.highest, "study.targets", self.targets, allowed)
        for name in ("workers", "predicted"):
            numbers = getattr(self, name)
            good = all(number >= 1 for number in numbers) and (bool(numbers) or name == "predicted")
            require(good, f"study.{name}", numbers, "one or more numbers of at least 1")
        require(
            1 in self.workers, "study.workers", self.workers, "a list with 1, which others are compared to"
        )
        require(0 < self.branch_length <= 1, "study.branch_length", self.branch_length, "above 0 and up to 1")
        require(self.branch_rule in RULES, "study.branch_rule", self.branch_rule, ", ".join(RULES))
        require(self.tolerance >= 0, "study.tolerance", self.tolerance, "0 or more")
        for name, link in self.interconnects.items():
            good = isinstance(link, Mapping) and set(link) == {"seconds", "bytes_per_second"}
            good = good and all(isinstance(v, int | float) and v > 0 for v in link.values())
            require(good, f"study.interconnects.{name}", link, "seconds and bytes_per_second, both above 0")

    def _after(self) -> list[int]:
        """The epochs of SB at which runs branch off; all of them are over before its last."""
        if self.epochs == []:
            return []
        config = self.plan.config
        return [e for e in chosen_epochs(self.epochs, config.epochs, config.patience) if e < config.epochs]

    def sizes(self) -> list[int]:
        """The global batches, SB's and LB's among them."""
        plan = self.plan
        if self.batches is not None:
            return sorted({*chosen_batches(plan, self.batches), plan.small_batch, plan.large_batch})
        found = [plan.small_batch]
        while 2 * found[-1] < plan.large_batch:
            found.append(2 * found[-1])
        return [*found, plan.large_batch]

    @property
    def procedure_nodes(self) -> dict[str, Node]:
        """What times a step, and collective calls."""
        return {"study.timing": self.timing, "study.collectives": self.collectives}

    def left_out(self) -> list[str]:
        """The timing on more workers than there are devices, too."""
        more = " and ".join(str(workers) for workers in self.workers if not self.plan.fits(workers))
        room = f"since there is room for {self.plan.devices}"
        return super().left_out() + ([f"steps are not timed on {more} workers, {room}"] if more else [])

    def cells(self, done: Done) -> Iterator[Cell]:
        """The comparison's, the batches between, what is timed, and once SB is there its branches."""
        plan, keep = self.plan, frozenset(self._after())
        chosen = yield from self._compared(done)
        for size in self.sizes():
            kept = keep if size == plan.small_batch else frozenset[int]()
            yield from (plan.cell(size, seed=seed, keep=kept) for seed in plan.seeds)
        yield from self._timed(chosen)
        for seed in plan.seeds:
            small = plan.cell("SB", seed=seed, keep=keep)
            final = done(small)
            if final and not final.get("diverged"):
                yield from self._branches(small)

    def _timed(self, chosen: Chosen) -> Iterator[Cell]:
        """Steps at each batch, and of LB with each remedy whose setting is chosen; collective calls."""
        large = self.plan.large_batch
        kinds: list[tuple[int, Chosen]] = [(size, {}) for size in self.sizes()]
        kinds += [(large, {name: setting}) for name, setting in chosen.items()]
        for workers in filter(self.plan.fits, self.workers):
            for batch, remedies in kinds:
                if batch >= workers:
                    yield self._alone("timing", batch, remedies, workers, self.timing)
            if 1 < workers <= large:
                yield self._alone("collectives", large, {}, workers, self.collectives)

    def _alone(self, role: Role, batch: int, remedies: Chosen, workers: int, node: Node) -> Cell:
        """A cell that is timed, without the settings that its time does not depend on."""
        cell = self.plan.cell(
            batch, remedies, seed=0, role=role, num_workers=workers, procedure={**node, "name": role}
        )
        return replace(cell, epochs=1, test_points=1, patience=None, schedule=None)

    def _branches(self, small: Cell) -> Iterator[Cell]:
        """From each model that SB keeps, a short run at each batch, and at two and four times LB's."""
        more = {min(factor * self.plan.large_batch, self.plan.train_size) for factor in (2, 4)}
        for epoch in sorted(small.keep):
            for size in sorted({*self.sizes(), *more}):
                yield self._branch(small, epoch, size, self.branch_rule)

    def _branch(self, small: Cell, epoch: int, size: int, rule: str) -> Cell:
        """A short run from a model that SB keeps."""
        return self.plan.cell(
            size,
            seed=small.seed,
            role="branch",
            rule=rule,
            origin=Origin(small.id, epoch),
            longest=self.branch_length,
        )

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """Every measure at every end that is counted, and at the models that SB keeps."""
        return along_runs(self, done)

    def derived(self, runs: Runs) -> list[dict[str, Any]]:
        """The fitted parameters of the model of a step, with the ends of their intervals."""
        fitted = timings.model(runs)
        if fitted is None:
            return []
        common = {"network": runs.network, "data": runs.data, "role": "model", "measure": "step_time"}
        options = {"q": fitted.q, "algorithm": fitted.algorithm}
        rows = [
            {"metric": f"{name}{end}", "value": value}
            for name, item in fitted.parameters.items()
            for end, value in {"": item.value, "_low": item.low, "_high": item.high}.items()
        ]
        rows.append({"metric": "error", "value": fitted.error})
        return [{**common, "options": json.dumps(options), **row} for row in rows]

    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """Whether it pays, what was measured and modelled, the critical batch."""
        model = timings.model(runs)
        return [
            *break_even.sections(runs, model, self.predicted, self.interconnects),
            *throughput.sections(runs, model, self.predicted, self.interconnects),
            *critical_batch.sections(runs, self.targets, self.tolerance),
        ]
