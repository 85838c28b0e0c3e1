"""Metric 2.1 of Keskar et al. as a measure: how far the loss rises in boxes around a minimiser."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lbdist.errors import require
from lbdist.plan import Cell, Node
from lbdist.results import Row
from lbdist.sharpness import solvers
from lbdist.sharpness.measure import Measure, Minimiser, check_objective
from lbdist.sharpness.neighbourhood import Neighbourhood
from lbdist.sharpness.solvers import Effort
from lbdist.sharpness.subspace import CONVENTIONS, Subspace


@dataclass
class BoxSharpness(Measure):
    """Metric 2.1 at a minimiser: every space, draw, solver and box that is asked for, a row each.

    Attributes:
        epsilons: Sizes of the box.
        spaces: `full` and `subspace`.
        subspace_dimension: p of the random subspaces.
        convention: How their A is drawn: `gaussian`, `unit_columns` or `uniform`.
        draws: How many random subspaces.
        solvers: `paper` and `converged`.
        remedy_spaces: `spaces` at the models of remedies; None for the same.
        remedy_solvers: `solvers` at the models of remedies; None for the same.
        starts: Starts of the converged solver before an agreement counts.
        budget: Evaluations after which it makes no further start.
        tolerance: Share of the rise to which its starts have to agree.
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
        micro_batch_size: Samples taken through the network at once.
        draw: One subspace alone; None for all `draws`.
    """

    epsilons: list[float] = field(default_factory=lambda: [1e-3, 5e-4])
    spaces: list[str] = field(default_factory=lambda: ["full", "subspace"])
    subspace_dimension: int = 100
    convention: str = "gaussian"
    draws: int = 5
    solvers: list[str] = field(default_factory=lambda: ["paper", "converged"])
    remedy_spaces: list[str] | None = None
    remedy_solvers: list[str] | None = None
    starts: int = 4
    budget: int = 40
    tolerance: float = 5e-3
    batch_norm: str = "running"
    micro_batch_size: int = 1000
    draw: int | None = None

    def __post_init__(self) -> None:
        # below, float32 does not tell x from its neighbours; above, there is no network left
        good = all(1e-7 <= epsilon <= 1e3 for epsilon in self.epsilons)
        require(good, "epsilons", self.epsilons, "all from 1e-7 to 1e3")
        known = {"spaces": ("full", "subspace"), "solvers": solvers.SOLVERS}
        known |= {f"remedy_{key}": allowed for key, allowed in known.items()}
        for key, allowed in known.items():
            value = getattr(self, key)
            require(set(value or ()) <= set(allowed), key, value, "among " + ", ".join(allowed))
        require(self.convention in CONVENTIONS, "convention", self.convention, " or ".join(CONVENTIONS))
        self._effort()
        for key in ("subspace_dimension", "draws", "starts", "budget"):
            require(1 <= getattr(self, key) <= 10_000, key, getattr(self, key), "from 1 to 10,000")
        check_objective(self.batch_norm, self.micro_batch_size)

    def check(self, parameters: int) -> None:
        """A subspace has at most as many dimensions as there are parameters."""
        p, allowed = self.subspace_dimension, f"at most {parameters}, the parameters"
        require("subspace" not in self.spaces or p <= parameters, "subspace_dimension", p, allowed)

    def parts(self, node: Node, cell: Cell) -> list[Node]:
        """One space or one subspace each, with the settings that it depends on and no others.

        All boxes and solvers of a space are one measurement, since they share most of what they evaluate.
        """
        spaces, chosen = self.spaces, self.solvers
        if cell.remedies:
            spaces = spaces if self.remedy_spaces is None else self.remedy_spaces
            chosen = chosen if self.remedy_solvers is None else self.remedy_solvers
        if cell.role == "precision":  # its headline is enough
            spaces, chosen = [s for s in spaces if s == "full"], [s for s in chosen if s == "converged"]
        if not (chosen and self.epsilons):
            return []
        shared: dict[str, Any] = {"_target_": node["_target_"], "epsilons": self.epsilons, "solvers": chosen}
        if "converged" in chosen:
            shared |= {key: getattr(self, key) for key in ("starts", "budget", "tolerance")}
        shared |= {"batch_norm": self.batch_norm, "micro_batch_size": self.micro_batch_size}
        drawn = {"subspace_dimension": self.subspace_dimension, "convention": self.convention}
        return [
            {**shared, "spaces": [space], **({} if space == "full" else {**drawn, "draw": draw})}
            for space in spaces
            for draw in self._draws(space)
        ]

    def _effort(self) -> Effort:
        return Effort(self.starts, self.budget, self.tolerance, from_paper="paper" in self.solvers)

    def _draws(self, space: str) -> Sequence[int]:
        if space == "full":
            return [0]
        return range(self.draws) if self.draw is None else [self.draw]

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """A row per value, `metric` sharpness."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size)
        x, rows, effort = minimiser.x, [], self._effort()
        names = ["value", "epsilon", "space", "solver", "draw", "converged", "evaluations", "start"]
        names += ["iterations", "fraction_at_bound"]
        for space in self.spaces:
            for draw in self._draws(space):
                there = None
                if space == "subspace":
                    p, convention = self.subspace_dimension, self.convention
                    there = _subspace(len(x), p, draw, convention, x.device, x.dtype)
                near = Neighbourhood(f, x, there)
                # `paper` first, so that `converged` begins where it ends
                for solver in sorted(self.solvers, reverse=True):
                    for epsilon in sorted(self.epsilons, reverse=True):
                        found = near.sharpness(epsilon, solver, effort=effort)
                        row: Row = {"metric": "sharpness", "split": "train", "batch_norm": self.batch_norm}
                        row |= {"convention": self.convention if there else None}
                        rows.append({**row, **{name: getattr(found, name) for name in names}})
        return rows

    def cost(self) -> float:
        """As runs of six networks and data sets took, in two boxes; their rows say what each one did."""
        of_solver = {"paper": (11.0, 4.0), "converged": (0.95 * self.budget, 1.45 * self.budget)}
        found = 1.0  # at the minimiser
        for space in self.spaces:
            each = sum(of_solver[solver][space == "subspace"] for solver in self.solvers)
            found += len(self._draws(space)) * len(self.epsilons) * each
        return found

    def failed(self) -> Row:
        """The columns of the first value, of which a measurement that failed keeps a row."""
        space = self.spaces[0]
        where = {"space": space, "draw": self._draws(space)[0], "solver": sorted(self.solvers)[0]}
        row = {"metric": "sharpness", "split": "train", "batch_norm": self.batch_norm, **where}
        return {**row, "epsilon": max(self.epsilons)}


@functools.lru_cache(maxsize=1)
def _subspace(
    n: int, dimension: int, draw: int, convention: str, device: torch.device, dtype: torch.dtype
) -> Subspace:
    """A random subspace; the last one is kept, since its matrix takes long to draw."""
    like = torch.empty(0, device=device, dtype=dtype)
    return Subspace(n, dimension, draw=draw, convention=convention, like=like)
