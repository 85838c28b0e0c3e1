"""Metric 2.1 of Keskar et al.: how far the loss rises in a box around a minimiser."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lbdist.errors import InputError
from lbdist.objective import Function
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
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise InputError(f"epsilon={epsilon}: must be above 0")
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
