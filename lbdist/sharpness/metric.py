"""Metric 2.1 of Keskar et al.: how far the loss rises in a box around a minimiser."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lbdist.errors import InputError, require
from lbdist.objective import Function, Objective
from lbdist.plan import Cell, Node
from lbdist.results import Row
from lbdist.sharpness import solvers
from lbdist.sharpness.measure import Measure, Minimiser, check_objective
from lbdist.sharpness.subspace import CONVENTIONS, FullSpace, Subspace

_PART = 500
"""Samples that a random start is iterated on first, at the least; and on which, or on an eighth of all if
that is less, starts towards classes are put in order (on 200, 2 of 42 searches missed the best).
"""
_LABELS = 100
"""Labels that a start is made towards, the most frequent ones, at the most: what that costs is bounded."""
_RANKING = 6
"""Evaluations that it may cost, of three a label on those samples."""
_FOLLOWED = 3
"""How many of these starts are followed."""


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
        evaluations: Evaluations of (f, gradient) that it took, rounded up where some were on a part of the
            samples. What several values of a `Neighbourhood` share, counts for the first of them.
        fraction_at_bound: Share of the coordinates that are at the bound.
        converged: Of `converged`, that independent starts agree on the maximum; of `paper`, that it met its
            own stopping rule.
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


class Neighbourhood:
    """What all boxes around one x in one space share: f and its gradient there, a model, where starts end.

    Args:
        f: Maps a vector of shape (n,) to (value, gradient of shape (n,)); an `Objective` is one, and lends
            parts of its samples to the search.
        x: The minimiser, shape (n,).
        space: Where z lies; None for the full space.
        scale: The box of epsilon 1, shape (n,) or (p,); None for the metric's |A^+ x| + 1.
        seed: Of random starts.

    Raises:
        InputError: x or f(x) is not finite.
    """

    def __init__(
        self,
        f: Function,
        x: Tensor,
        space: FullSpace | Subspace | None = None,
        *,
        scale: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if not bool(torch.isfinite(x).all()):
            raise InputError("x: the parameters hold NaN or infinity; the run diverged")
        self.f, self.x, self.seed = f, x, seed
        self.space = space or FullSpace(len(x))
        self.scale = self.space.pseudo_inverse(x).abs() + 1 if scale is None else scale
        self.spent = 1.0
        self.f0, gradient = f(x)
        if not (math.isfinite(self.f0) and self.f0 > -1):
            raise InputError(f"f(x)={self.f0}: the loss must be finite and above -1 at x")
        self.g0 = self.space.transpose(gradient)
        self._papers: dict[float, solvers.Maximum] = {}
        self._ends: dict[float, list[solvers.Start]] = {}
        self._model: solvers.Model | None = None
        self._towards: dict[int, Tensor] = {}

    def _at(self, z: Tensor) -> tuple[float, Tensor]:
        return self._on(self.f, 1.0)(z)

    def _on(self, f: Function, share: float) -> Function:
        """f, or f on a share of the samples, as a function of z."""

        def at(z: Tensor) -> tuple[float, Tensor]:
            self.spent += share
            value, gradient = f(self.x + self.space.times(z))
            return value, self.space.transpose(gradient)

        return at

    def _part(self, objective: Objective, samples: int, towards: Sequence[int]) -> Callable[[int], Function]:
        """f on random parts of the samples; every second one rises towards one of these labels instead."""
        share = samples / len(objective.labels)

        def part(number: int) -> Function:
            f = objective.part(samples, seed=number)
            if not (towards and number % 2):
                return self._on(f, share)
            loss = self._on(f.alike(towards[number // 2 % len(towards)]), share)

            def likeness(z: Tensor) -> tuple[float, Tensor]:
                value, gradient = loss(z)
                return -value, -gradient

            return likeness

        return part

    def _classes(self, objective: Objective, bound: Tensor) -> dict[int, Tensor]:
        """By label, the starts that turn every sample to it, where f is highest on a part of the samples."""
        if objective.labels.is_floating_point():
            return {}
        samples = min(_PART, math.ceil(len(objective.labels) / 8))
        share = samples / len(objective.labels)
        part, origin = objective.part(samples, seed=0), torch.zeros_like(bound)
        f = self._on(part, share)
        found: list[tuple[float, int, Tensor]] = []
        labels, counts = objective.labels.unique(return_counts=True)
        most = min(_LABELS, int(_RANKING / (3 * share)))
        for label in labels[counts.argsort(descending=True, stable=True)][:most].tolist():
            first = self._towards.get(label)
            if first is None:
                first = -self._on(part.alike(label), share)(origin)[1].sign()
                if len(first) <= solvers.SMALL:  # the same in every box; many long ones would not fit
                    self._towards[label] = first
            # one iteration more tells which of them will rise highest
            gradient = f(bound * first)[1]
            u = torch.where(gradient == 0, first, gradient.sign())
            value = f(bound * u)[0]
            if value > self.f0:  # and is not NaN
                found = sorted([*found, (value, label, u)], key=lambda found: -found[0])[:_FOLLOWED]
        return {label: u for _, label, u in found}

    def sharpness(
        self,
        epsilon: float,
        solver: str = "converged",
        *,
        starts: int = 4,
        budget: int = 40,
        tolerance: float = 5e-3,
        from_paper: bool = True,
        keep_maximiser: bool = False,
    ) -> SharpnessResult:
        """Metric 2.1 in a box; the arguments are those of `box_sharpness`."""
        _check(self.x, epsilon, solver, starts, budget, tolerance)
        began = time.perf_counter()
        bound = epsilon * self.scale
        if (solver == "paper" or from_paper) and epsilon not in self._papers:
            self._papers[epsilon] = solvers.paper(self._at, bound, self.f0, self.g0)
        found = self._papers.get(epsilon)
        if solver == "converged":
            found = self._converge(epsilon, bound, found, starts, budget, tolerance)
        assert found is not None
        spent, self.spent = math.ceil(self.spent), 0.0
        return SharpnessResult(
            value=100 * (found.value - self.f0) / (1 + self.f0),
            f0=self.f0,
            fmax=found.value,
            epsilon=epsilon,
            space=self.space.name,
            dimension=self.space.dimension,
            draw=self.space.draw,
            solver=solver,
            start=found.start,
            iterations=found.iterations,
            evaluations=spent,
            fraction_at_bound=float((found.z.abs() >= bound * (1 - 1e-6)).double().mean()),
            converged=found.converged,
            seconds=time.perf_counter() - began,
            maximiser=found.z if keep_maximiser else None,
        )

    def _converge(
        self,
        epsilon: float,
        bound: Tensor,
        paper: solvers.Maximum | None,
        starts: int,
        budget: int,
        tolerance: float,
    ) -> solvers.Maximum:
        seen = [replace(paper, start="paper")] if paper is not None else []
        if self._model is None and self.space.dimension <= solvers.SMALL:
            probed = solvers.Maximum(torch.zeros_like(bound), self.f0, "model", 0, False)

            def at(z: Tensor) -> tuple[float, Tensor]:
                nonlocal probed
                value, gradient = self._at(z)
                if value > probed.value and bool((z.abs() <= bound).all()):
                    probed = replace(probed, z=z, value=value)
                return value, gradient

            self._model = solvers.Model.of(at, self.scale, epsilon, self.seed)
            seen.append(probed)
        seen = [point for point in seen if point.value > self.f0]
        known = [solvers.Start(point.start, _share(point.z, bound)) for point in seen]
        large = self.space.dimension > solvers.SMALL
        classes = self._classes(self.f, bound) if isinstance(self.f, Objective) else {}
        known += [solvers.Start(f"class {label}", u) for label, u in classes.items()]
        if self._ends and not (large and classes):
            near = min(self._ends, key=lambda other: abs(math.log(other / epsilon)))
            # each costs what a new start does
            known += [end._replace(name=solvers.OTHER_BOX) for end in self._ends[near][:_FOLLOWED]]
        part, share = None, 1.0
        if isinstance(self.f, Objective) and large:
            samples = len(self.f.labels)
            some = max(_PART, samples // 16)
            if 2 * some <= samples:
                part, share = self._part(self.f, some, list(classes)), some / samples
        found = solvers.converged(
            self._at,
            bound,
            self.f0,
            self.g0,
            epsilon=epsilon,
            starts=starts,
            budget=budget,
            tolerance=tolerance,
            seed=self.seed,
            known=known,
            model=self._model,
            part=part,
            share=share,
        )
        self._ends[epsilon] = list(found.ends)
        best = max((found, *seen), key=lambda point: point.value)  # one seen, by the rounding of z / bound
        return replace(found, z=best.z, value=best.value, start=best.start)


def box_sharpness(
    f: Function,
    x: Tensor,
    *,
    epsilon: float = 1e-3,
    subspace: int | Tensor | Subspace | None = None,
    convention: str = "gaussian",
    solver: str = "converged",
    seed: int = 0,
    draw: int = 0,
    starts: int = 4,
    budget: int = 40,
    tolerance: float = 5e-3,
    from_paper: bool = True,
    keep_maximiser: bool = False,
) -> SharpnessResult:
    """Metric 2.1: phi(x; epsilon, A) = 100 (max over z in C of f(x + A z) - f(x)) / (1 + f(x)).

    C = { z : |z_i| <= epsilon (|(A^+ x)_i| + 1) } (Keskar et al., equations 3 and 4).

    Args:
        f: Maps a vector of shape (n,) to (value, gradient of shape (n,)); an `Objective` is one.
        x: The minimiser, shape (n,).
        epsilon: Size of the box (paper: 1e-3 and 5e-4).
        subspace: None for the full space (Table 3); p for a random n x p matrix A (Table 4: p = 100); or A.
        convention: How a random A is drawn: `gaussian`, `unit_columns` or `uniform` (see `Subspace`).
        solver: `paper` or `converged` (see `lbdist.sharpness.solvers`).
        seed: Seed of A and of the random starts.
        draw: Which A of that seed.
        starts: Starts of `converged` that are made before their agreement counts, beside those towards
            classes.
        budget: Evaluations after which `converged` makes no further start.
        tolerance: Share of the rise to which its starts have to agree.
        from_paper: Whether `converged` starts from the end of `paper` as well, so that it is never below it.
        keep_maximiser: Whether the result carries the maximiser.

    Raises:
        InputError: An argument is out of range, or x or f(x) is not finite.

    Example:
        A linear f rises by epsilon |g| . (|x| + 1):

        >>> g, x = torch.tensor([3.0, -4.0]).double(), torch.tensor([0.0, 1.0]).double()
        >>> result = box_sharpness(lambda x: (4 + float(g @ x), g), x, epsilon=0.1)
        >>> round(result.fmax - result.f0, 9), round(result.value, 6), result.converged
        (1.1, 110.0, True)
    """
    _check(x, epsilon, solver, starts, budget, tolerance)
    space: FullSpace | Subspace | None = None
    if isinstance(subspace, Subspace):
        space = subspace
    elif isinstance(subspace, Tensor):
        if subspace.ndim != 2 or len(subspace) != len(x):
            raise InputError(f"subspace: A has shape {tuple(subspace.shape)}; must have {len(x)} rows")
        space = Subspace(len(x), subspace.shape[1], draw=draw, like=x, matrix=subspace)
    elif subspace is not None:
        space = Subspace(len(x), subspace, seed=seed, draw=draw, like=x, convention=convention)
    return Neighbourhood(f, x, space, seed=seed).sharpness(
        epsilon,
        solver,
        starts=starts,
        budget=budget,
        tolerance=tolerance,
        from_paper=from_paper,
        keep_maximiser=keep_maximiser,
    )


def _share(z: Tensor, bound: Tensor) -> Tensor:
    """z as a share of a box, which may have no width."""
    return torch.where(bound > 0, z / bound, 0.0)


def _check(x: Tensor, epsilon: float, solver: str, starts: int, budget: int, tolerance: float) -> None:
    """Refuses settings of a value that are out of range."""
    least = torch.finfo(x.dtype).eps
    allowed = f"from {least:.2g}, the rounding of {x.dtype}, to 1e6"
    require(least <= epsilon <= 1e6, "epsilon", epsilon, allowed)
    require(solver in solvers.SOLVERS, "solver", solver, f"one of {', '.join(solvers.SOLVERS)}")
    require(starts >= 1, "starts", starts, "at least 1")
    require(budget >= 1, "budget", budget, "at least 1")
    require(0 < tolerance < 1, "tolerance", tolerance, "between 0 and 1")


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
        for key in ("subspace_dimension", "draws", "starts", "budget"):
            require(1 <= getattr(self, key) <= 10_000, key, getattr(self, key), "from 1 to 10,000")
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "between 0 and 1")
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
        if cell.stage == "check":  # its headline is enough
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

    def _draws(self, space: str) -> Sequence[int]:
        if space == "full":
            return [0]
        return range(self.draws) if self.draw is None else [self.draw]

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """A row a value, `metric` sharpness."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size)
        x, rows = minimiser.x, []
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
                        found = near.sharpness(
                            epsilon,
                            solver,
                            starts=self.starts,
                            budget=self.budget,
                            tolerance=self.tolerance,
                            from_paper="paper" in self.solvers,
                        )
                        row: Row = {"metric": "sharpness", "split": "train", "batch_norm": self.batch_norm}
                        row |= {"convention": self.convention if there else None}
                        rows.append({**row, **{name: getattr(found, name) for name in names}})
        return rows

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
