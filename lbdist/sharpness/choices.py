"""Metric 2.1 once more for each choice that Keskar et al. leave open: batch norm's statistics, A's draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lbdist.config.build import build
from lbdist.errors import require
from lbdist.objective import BATCH_NORM_MODES
from lbdist.plan import Cell, Node
from lbdist.results import Row
from lbdist.sharpness.fit import Fit
from lbdist.sharpness.measure import Measure, Minimiser, check_objective
from lbdist.sharpness.metric import BoxSharpness
from lbdist.sharpness.subspace import CONVENTIONS


@dataclass
class Choices(Measure):
    """Sharpness in one box, by the converged solver, under each choice in turn, but not at remedies' models.

    Attributes:
        epsilon: Size of the box.
        batch_norm: Statistics while measuring, each in the full space, with loss and score beside it.
        conventions: How A is drawn, each in a random subspace with running statistics.
        subspace_dimension: p of the subspaces.
        micro_batch_size: Samples taken through the network at once, which `batch` normalises over.
    """

    epsilon: float = 1e-3
    batch_norm: list[str] = field(default_factory=lambda: list(BATCH_NORM_MODES))
    conventions: list[str] = field(default_factory=lambda: list(CONVENTIONS))
    subspace_dimension: int = 100
    micro_batch_size: int = 1000

    def __post_init__(self) -> None:
        for mode in self.batch_norm:
            check_objective(mode, self.micro_batch_size)
        known = set(self.conventions) <= set(CONVENTIONS)
        require(known, "conventions", self.conventions, "among " + ", ".join(CONVENTIONS))
        BoxSharpness(epsilons=[self.epsilon], subspace_dimension=self.subspace_dimension)

    def check(self, parameters: int) -> None:
        """A subspace has at most as many dimensions as there are parameters."""
        spaces = ["subspace"] if self.conventions else ["full"]
        BoxSharpness(spaces=spaces, subspace_dimension=self.subspace_dimension).check(parameters)

    def parts(self, node: Node, cell: Cell) -> list[Node]:
        """The measurements of other measures, one per choice."""
        return [] if cell.remedies else self._parts()

    def _parts(self) -> list[Node]:
        micro = {"micro_batch_size": self.micro_batch_size}
        box = {"_target_": _path(BoxSharpness), "epsilons": [self.epsilon], "solvers": ["converged"], **micro}
        modes = [{"batch_norm": mode} for mode in self.batch_norm]
        drawn = {"spaces": ["subspace"], "draw": 0, "subspace_dimension": self.subspace_dimension}
        return [
            *[{**box, "spaces": ["full"], **mode} for mode in modes],
            *[{"_target_": _path(Fit), **micro, **mode} for mode in modes],
            *[{**box, **drawn, "convention": convention} for convention in self.conventions],
        ]

    def cost(self) -> float:
        """All of them."""
        return sum(build(part, "choices", kind=Measure).cost() for part in self._parts())

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """All of them, one after the other."""
        return [row for part in self._parts() for row in build(part, "choices", kind=Measure)(at)]


def _path(measure: type) -> str:
    return f"{measure.__module__}.{measure.__qualname__}"
