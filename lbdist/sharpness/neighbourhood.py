"""Metric 2.1 at one point: the value in a box, and what all boxes around a point share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lbdist.errors import InputError, require
from lbdist.objective import Function, Objective
from lbdist.sharpness import solvers
from lbdist.sharpness.quadratic import SMALL, Model
from lbdist.sharpness.solvers import Effort
from lbdist.sharpness.subspace import FullSpace, Subspace

_PART = 500
"""Samples that a random start is iterated on first, at the least; and on which, or on an eighth of all if
that is less, starts towards classes are put in order (on 200, 2 of 42 searches missed the best).
"""
_LABELS = 100
"""Labels that a start is made towards, the most frequent ones, at the most: what that costs is bounded."""
_RANKING = 6
"""Evaluations that it may cost, of three per label on those samples."""
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
        self._model: Model | None = None
        self._towards: dict[int, Tensor] = {}
        self._numbers: list[bool] = []  # whether f was one, wherever it was tried for a box

    def _at(self, z: Tensor) -> tuple[float, Tensor]:
        return self._on(self.f, 1.0)(z)

    def _on(self, f: Function, share: float) -> Function:
        """f, or f on a share of the samples, as a function of z."""

        def at(z: Tensor) -> tuple[float, Tensor]:
            self.spent += share
            value, gradient = f(self.x + self.space.times(z))
            self._numbers.append(math.isfinite(value))
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
                if len(first) <= SMALL:  # the same in every box; many long ones would not fit
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
        effort: Effort | None = None,
        keep_maximiser: bool = False,
    ) -> SharpnessResult:
        """Metric 2.1 in a box; the arguments are those of `box_sharpness`."""
        _check(self.x, epsilon, solver)
        effort = effort or Effort()
        began = time.perf_counter()
        bound = epsilon * self.scale
        if (solver == "paper" or effort.from_paper) and epsilon not in self._papers:
            self._papers[epsilon] = solvers.paper(self._at, bound, self.f0, self.g0)
        found = self._papers.get(epsilon)
        if solver == "converged":
            found = self._converge(epsilon, bound, found, effort)
        assert found is not None
        numbers, self._numbers = self._numbers, []
        if numbers and not any(numbers):  # or it would be 0, and converged
            raise InputError(f"epsilon={epsilon:g}: the loss overflows wherever it was tried in this box")
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
        effort: Effort,
    ) -> solvers.Maximum:
        seen = [replace(paper, start="paper")] if paper is not None else []
        if self._model is None and self.space.dimension <= SMALL:
            probed = solvers.Maximum(torch.zeros_like(bound), self.f0, "model", 0, False)

            def at(z: Tensor) -> tuple[float, Tensor]:
                nonlocal probed
                value, gradient = self._at(z)
                if value > probed.value and bool((z.abs() <= bound).all()):
                    probed = replace(probed, z=z, value=value)
                return value, gradient

            self._model = Model.of(at, self.scale, epsilon, self.seed)
            seen.append(probed)
        seen = [point for point in seen if point.value > self.f0]
        known = [solvers.Start(point.start, _share(point.z, bound)) for point in seen]
        large = self.space.dimension > SMALL
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
            effort=effort,
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
    effort: Effort | None = None,
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
        effort: How long `converged` searches.
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
    _check(x, epsilon, solver)
    space: FullSpace | Subspace | None = None
    if isinstance(subspace, Subspace):
        space = subspace
    elif isinstance(subspace, Tensor):
        if subspace.ndim != 2 or len(subspace) != len(x):
            raise InputError(f"subspace: A has shape {tuple(subspace.shape)}; must have {len(x)} rows")
        space = Subspace(len(x), subspace.shape[1], draw=draw, like=x, matrix=subspace)
    elif subspace is not None:
        space = Subspace(len(x), subspace, seed=seed, draw=draw, like=x, convention=convention)
    near = Neighbourhood(f, x, space, seed=seed)
    return near.sharpness(epsilon, solver, effort=effort, keep_maximiser=keep_maximiser)


def _share(z: Tensor, bound: Tensor) -> Tensor:
    """z as a share of a box, which may have no width."""
    return torch.where(bound > 0, z / bound, 0.0)


def _check(x: Tensor, epsilon: float, solver: str) -> None:
    """Refuses a box or a solver that there is not."""
    least = torch.finfo(x.dtype).eps
    allowed = f"from {least:.2g}, the rounding of {x.dtype}, to 1e6"
    require(least <= epsilon <= 1e6, "epsilon", epsilon, allowed)
    require(solver in solvers.SOLVERS, "solver", solver, f"one of {', '.join(solvers.SOLVERS)}")
