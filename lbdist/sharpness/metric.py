"""Metric 2.1 of Keskar et al.: how far the loss rises in a box around a minimiser."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lbdist.errors import InputError, require
from lbdist.objective import Function
from lbdist.plan import Cell, Node
from lbdist.sharpness.measure import Measure, Minimiser, Row, check_objective
from lbdist.sharpness.solvers import SOLVERS
from lbdist.sharpness.subspace import FullSpace, Subspace


@dataclass(frozen=True)
class SharpnessResult:
    """A value of Metric 2.1 with what is needed to believe it. The value is a lower bound.

    Attributes:
        value: phi = 100 (fmax - f0) / (1 + f0), never negative.
        f0: f(x).
        fmax: The largest f found in the box.
        epsilon: Size of the box.
        space: `full` or `subspace`.
        dimension: n, or p of the subspace.
        draw: Which random subspace.
        solver: `paper` or `converged`.
        start: The start that led to the maximum.
        iterations: Iterations of the solver, over all starts.
        evaluations: Evaluations of (f, gradient), the one at x included.
        fraction_at_bound: Share of the coordinates that are at the bound.
        converged: Whether the solver met its own stopping rule.
        seconds: Wall-clock time.
        maximiser: The maximising z, shape (n,) or (p,), where asked for.
    """

    value: float
    f0: float
    fmax: float
    epsilon: float
    space: str
    dimension: int
    draw: int
    solver: str
    start: str
    iterations: int
    evaluations: int
    fraction_at_bound: float
    converged: bool
    seconds: float
    maximiser: Tensor | None = None


def box_sharpness(
    f: Function,
    x: Tensor,
    *,
    epsilon: float = 1e-3,
    subspace: int | Tensor | Subspace | None = None,
    solver: str = "converged",
    seed: int = 0,
    draw: int = 0,
    keep_maximiser: bool = False,
    **options: Any,
) -> SharpnessResult:
    """Metric 2.1: phi(x; epsilon, A) = 100 (max over z in C of f(x + A z) - f(x)) / (1 + f(x)).

    C = { z : |z_i| <= epsilon (|(A^+ x)_i| + 1) } (Keskar et al., equations 3 and 4).

    Args:
        f: Maps a vector of shape (n,) to (value, gradient of shape (n,)); an `Objective` is one.
        x: The minimiser, shape (n,).
        epsilon: Size of the box (paper: 1e-3 and 5e-4).
        subspace: None for the full space (Table 3); p for a random n x p matrix A (Table 4: p = 100); or A.
        solver: `paper` or `converged` (see `lbdist.sharpness.solvers`).
        seed: Seed of A and of the random starts.
        draw: Which A of that seed.
        keep_maximiser: Whether the result carries the maximiser.
        options: Options of the solver, such as `starts`.

    Raises:
        InputError: epsilon, p or A out of range, an unknown solver, or x or f(x) not finite.
    """
    least = torch.finfo(x.dtype).eps
    if not least <= epsilon <= 1e6:
        raise InputError(f"epsilon={epsilon}: must be from {least:.2g}, the rounding of {x.dtype}, to 1e6")
    if solver not in SOLVERS:
        raise InputError(f"solver={solver}: must be one of {', '.join(SOLVERS)}")
    if not bool(torch.isfinite(x).all()):
        raise InputError("x: the parameters hold NaN or infinity; the run diverged")
    began = time.perf_counter()
    space: FullSpace | Subspace
    if subspace is None:
        space = FullSpace(len(x))
    elif isinstance(subspace, Subspace):
        space = subspace
    elif isinstance(subspace, Tensor):
        if subspace.ndim != 2 or len(subspace) != len(x):
            raise InputError(f"subspace: A has shape {tuple(subspace.shape)}; must have {len(x)} rows")
        space = Subspace(len(x), subspace.shape[1], draw=draw, like=x, matrix=subspace)
    else:
        space = Subspace(len(x), subspace, seed=seed, draw=draw, like=x)
    bound = epsilon * (space.pseudo_inverse(x).abs() + 1)
    evaluations = 1
    f0, g0 = f(x)
    if not (math.isfinite(f0) and f0 > -1):
        raise InputError(f"f(x)={f0}: the loss must be finite and above -1 at x")

    def in_box(z: Tensor) -> tuple[float, Tensor]:
        nonlocal evaluations
        evaluations += 1
        value, gradient = f(x + space.times(z))
        return value, space.transpose(gradient)

    if solver == "converged":
        options.setdefault("seed", seed)
    found = SOLVERS[solver](in_box, bound, f0, space.transpose(g0), **options)
    return SharpnessResult(
        value=100 * (found.value - f0) / (1 + f0),
        f0=f0,
        fmax=found.value,
        epsilon=epsilon,
        space=space.name,
        dimension=space.dimension,
        draw=space.draw if isinstance(space, Subspace) else draw,
        solver=solver,
        start=found.start,
        iterations=found.iterations,
        evaluations=evaluations,
        fraction_at_bound=float((found.z.abs() >= bound * (1 - 1e-6)).double().mean()),
        converged=found.converged,
        seconds=time.perf_counter() - began,
        maximiser=found.z if keep_maximiser else None,
    )


@dataclass
class BoxSharpness(Measure):
    """Metric 2.1 at a minimiser: every space, draw, solver and box that is asked for, a row each.

    Attributes:
        epsilons: Sizes of the box.
        spaces: `full` and `subspace`.
        subspace_dimension: p of the random subspaces.
        draws: How many random subspaces.
        solvers: `paper` and `converged`.
        remedy_spaces: `spaces` at the models of remedies; None for the same.
        remedy_solvers: `solvers` at the models of remedies; None for the same.
        starts: Starts of the converged solver.
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
        micro_batch_size: Samples taken through the network at once.
        draw: One subspace alone; None for all `draws`.
    """

    epsilons: list[float] = field(default_factory=lambda: [1e-3, 5e-4])
    spaces: list[str] = field(default_factory=lambda: ["full", "subspace"])
    subspace_dimension: int = 100
    draws: int = 1
    solvers: list[str] = field(default_factory=lambda: ["paper", "converged"])
    remedy_spaces: list[str] | None = None
    remedy_solvers: list[str] | None = None
    starts: int = 2
    batch_norm: str = "running"
    micro_batch_size: int = 1000
    draw: int | None = None

    def __post_init__(self) -> None:
        # below, float32 does not tell x from its neighbours; above, there is no network left
        good = all(1e-7 <= epsilon <= 1e3 for epsilon in self.epsilons)
        require(good, "epsilons", self.epsilons, "all from 1e-7 to 1e3")
        known = {"spaces": ("full", "subspace"), "solvers": tuple(SOLVERS)}
        known |= {f"remedy_{key}": allowed for key, allowed in known.items()}
        for key, allowed in known.items():
            value = getattr(self, key)
            require(set(value or ()) <= set(allowed), key, value, "among " + ", ".join(allowed))
        for key in ("subspace_dimension", "draws", "starts"):
            require(1 <= getattr(self, key) <= 10_000, key, getattr(self, key), "from 1 to 10,000")
        check_objective(self.batch_norm, self.micro_batch_size)

    def check(self, parameters: int) -> None:
        """A subspace has at most as many dimensions as there are parameters."""
        p, allowed = self.subspace_dimension, f"at most {parameters}, the parameters"
        require("subspace" not in self.spaces or p <= parameters, "subspace_dimension", p, allowed)

    def parts(self, node: Node, cell: Cell) -> list[Node]:
        """One value each, with the settings that it depends on and no others."""
        spaces, solvers = self.spaces, self.solvers
        if cell.remedies:
            spaces = spaces if self.remedy_spaces is None else self.remedy_spaces
            solvers = solvers if self.remedy_solvers is None else self.remedy_solvers
        fixed = {"batch_norm": self.batch_norm, "micro_batch_size": self.micro_batch_size}
        parts: list[Node] = []
        for space, draw, solver, epsilon in replace(self, spaces=spaces, solvers=solvers)._values():
            part = {
                "_target_": node["_target_"],
                "epsilons": [epsilon],
                "spaces": [space],
                "solvers": [solver],
            }
            if space == "subspace":
                part |= {"subspace_dimension": self.subspace_dimension, "draw": draw}
            if solver == "converged":
                part["starts"] = self.starts
            parts.append(part | fixed)
        return parts

    def _values(self) -> Iterator[tuple[str, int, str, float]]:
        """Space, draw, solver and box of each value."""
        draws = range(self.draws) if self.draw is None else [self.draw]
        for space in self.spaces:
            for draw in draws if space == "subspace" else [0]:
                for solver in self.solvers:
                    yield from ((space, draw, solver, epsilon) for epsilon in self.epsilons)

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """A row a value, `metric` sharpness."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size)
        rows = []
        for space, draw, solver, epsilon in self._values():
            options: dict[str, Any] = {"starts": self.starts} if solver == "converged" else {}
            if space == "subspace":
                x = minimiser.x
                options["subspace"] = _subspace(len(x), self.subspace_dimension, draw, x.device, x.dtype)
            options |= {"epsilon": epsilon, "solver": solver, "draw": draw}
            found = box_sharpness(f, minimiser.x, **options)
            row = {"metric": "sharpness", "split": "train", "batch_norm": self.batch_norm}
            names = ["value", "epsilon", "space", "solver", "draw", "converged", "evaluations", "start"]
            names += ["iterations", "fraction_at_bound"]
            rows.append({**row, **{name: getattr(found, name) for name in names}})
        return rows

    def failed(self) -> Row:
        """The columns of the first value, of which a measurement that failed keeps a row."""
        space, draw, solver, epsilon = next(self._values())
        where = {"space": space, "draw": draw, "solver": solver, "epsilon": epsilon}
        return {"metric": "sharpness", "split": "train", "batch_norm": self.batch_norm, **where}


@functools.lru_cache(maxsize=1)
def _subspace(n: int, dimension: int, draw: int, device: torch.device, dtype: torch.dtype) -> Subspace:
    """A random subspace; the last one is kept, since its matrix takes long to draw and to factorise."""
    return Subspace(n, dimension, draw=draw, like=torch.empty(0, device=device, dtype=dtype))
