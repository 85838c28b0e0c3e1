"""Figure 5 of Keskar et al.: large-batch runs that begin where a small-batch run was after some epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import warm_start
from lbdist.errors import require
from lbdist.plan import Cell, Origin
from lbdist.studies.base import Done, Study


@dataclass
class WarmStart(Study):
    """SB, LB, and LB begun at the model that SB of the same seed kept after each of some epochs.

    Attributes:
        epochs: After which epochs of SB; a number below 1 is a share of its epochs, at least one epoch.
    """

    epochs: list[float] = field(default_factory=list)

    def check(self) -> None:
        """The epochs are among SB's, which runs all of them."""
        patience = self.plan.config.patience
        require(patience is None, "patience", patience, "null: SB must come to the epochs that LB begins at")
        last = self.plan.config.epochs
        allowed = f"epochs of SB, from 1 to {last}, or shares of them below 1"
        for epoch in self.epochs or [0]:
            good = 0 < epoch < 1 or (1 <= epoch <= last and float(epoch).is_integer())
            require(good, "study.epochs", self.epochs, allowed)

    def cells(self, done: Done) -> Iterator[Cell]:
        """SB and LB, and once SB of a seed is there, the runs that begin at it."""
        plan = self.plan
        last = plan.config.epochs
        epochs = {max(1, round(epoch * last)) if epoch < 1 else int(epoch) for epoch in self.epochs}
        for seed in plan.seeds:
            small = plan.cell("SB", seed=seed, keep=frozenset(epochs))
            yield small
            yield plan.cell("LB", seed=seed)
            final = done(small)
            if final and not final.get("diverged"):  # else it has no later model to begin at
                for epoch in sorted(epochs):
                    yield plan.cell("LB", seed=seed, origin=Origin(small.id, epoch))

    def sections(self, runs: Runs) -> list[Section]:
        """Accuracy and sharpness of the warm-started runs by the epoch that they begin at."""
        return warm_start.sections(runs)
