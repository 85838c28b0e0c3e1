"""Worst-case sharpness in a ball: that of sharpness-aware minimisation, whole or in parts of m samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lbdist.errors import InputError, require
from lbdist.objective import Function, Objective
from lbdist.random import permutation
from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser, check_objective


class Rise(NamedTuple):
    """How far f rises in a ball: a lower bound, whether two starts agree on it, and the evaluations."""

    value: float
    converged: bool
    evaluations: int


def worst_case(
    f: Function,
    x: Tensor,
    radius: float,
    *,
    scale: Tensor | None = None,
    steps: int = 20,
    tolerance: float = 0.01,
    seed: int = 0,
) -> Rise:
    """max f(x + d) - f(x) over |d / scale|_2 <= radius.

    d goes where the linearisation of f is largest: radius * scale * s / |s| with s = scale * gradient. Near a
    minimiser, where f is close to convex, f rises at every step (the generalised power method; Journee et
    al., JMLR 2010). It starts from the gradient and from two random directions, and converges when two
    starts agree.

    Args:
        f: Value and gradient at a vector of shape (n,).
        x: The minimiser, shape (n,).
        radius: Size of the ball.
        scale: What each coordinate is measured in, shape (n,); None for 1.
        steps: Most steps from each start.
        tolerance: Share of the rise to which starts agree; a tenth of it ends an ascent.
        seed: Of the random directions.

    Raises:
        InputError: f overflows wherever it was tried.

    Example:
        At the minimum of a quadratic f the rise in a 2-ball is radius^2 lambda_max / 2:

        >>> h = torch.tensor([1.0, 4.0, 9.0]).double()
        >>> rise = worst_case(lambda x: (0.5 * float(h @ x**2), h * x), torch.zeros(3).double(), 0.1)
        >>> round(rise.value, 4), rise.converged
        (0.045, True)
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    weight = torch.ones_like(x) if scale is None else scale
    f0, g0 = f(x)
    evaluations, found = 1, [0.0]

    def farthest(gradient: Tensor) -> Tensor:
        along = weight * gradient
        length = along.norm()
        return radius * weight * along / length if length > 0 else torch.zeros_like(x)

    for start in range(3):
        gradient = g0
        if start:
            gradient = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        elif not g0.any():
            continue
        rise, spent = _ascended(lambda g: f(x + farthest(g)), gradient, f0, steps, 0.1 * tolerance)
        evaluations += spent
        found.append(rise)
    if max(found[1:], default=0.0) == -math.inf:
        raise InputError(f"radius={radius:g}: the loss overflows wherever it was tried at this distance")
    agree = sum(value >= (1 - tolerance) * max(found) for value in found[1:]) > 1
    return Rise(max(found), agree, evaluations)


def _ascended(
    at: Callable[[Tensor], tuple[float, Tensor]], gradient: Tensor, f0: float, steps: int, least: float
) -> tuple[float, int]:
    """The highest rise along an ascent, -inf where f is no number, and the evaluations.

    Args:
        at: f and its gradient where a gradient leads.
        gradient: The first one.
        f0: f at x.
        steps: Most steps.
        least: The share of the rise that a step must gain.
    """
    best, spent = -math.inf, 0
    for _ in range(steps):
        value, gradient = at(gradient)
        spent += 1
        if not math.isfinite(value):
            break
        gain, best = value - max(best, f0), max(best, value)
        if not gain > least * max(best - f0, 0.0):
            break
    return best - f0, spent


def in_parts(f: Objective, m: int | None) -> Iterator[tuple[Objective, float]]:
    """f over disjoint parts of m samples of a fixed shuffle, each with its share; f itself for None."""
    total = len(f.labels)
    if m is None:
        yield f, 1.0
        return
    for chosen in permutation(total, seed=0, epoch=0).split(m):
        yield f.over(chosen), len(chosen) / total


@dataclass
class BallSharpness(Measure):
    """max over |d|_2 <= radius of f(x + d) - f(x) (Foret et al. 2021); of m samples, the mean over parts.

    Attributes:
        radius: Size of the ball.
        m: Samples of a part, each of which has a maximum of its own (m-sharpness); None for all at once.
        steps: Most steps of an ascent.
        tolerance: Share of the rise to which starts agree.
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
        micro_batch_size: Samples taken through the network at once.
    """

    radius: float = 0.05
    m: int | None = None
    steps: int = 20
    tolerance: float = 0.01
    batch_norm: str = "running"
    micro_batch_size: int = 1000

    def __post_init__(self) -> None:
        check_ball(self.radius, self.m, self.steps, self.tolerance)
        check_objective(self.batch_norm, self.micro_batch_size)

    def cost(self) -> float:
        """Three ascents, which few steps end."""
        return 3.0 * min(self.steps, 8)

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """A single row: the largest rise in the ball."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size)
        x, steps, tolerance = minimiser.x, self.steps, self.tolerance
        rises = [
            (worst_case(part, x, self.radius, steps=steps, tolerance=tolerance), share)
            for part, share in in_parts(f, self.m)
        ]
        return [{"metric": "ball_sharpness", "batch_norm": self.batch_norm, **mean_rise(rises)}]


def check_ball(radius: float, m: int | None, steps: int, tolerance: float) -> None:
    """Refuses settings of a ball that are out of range.

    Raises:
        InputError: With the key that is wrong.
    """
    require(0 < radius < float("inf"), "radius", radius, "above 0")
    require(m is None or m >= 1, "m", m, "null or at least 1")
    require(0 < tolerance < 1, "tolerance", tolerance, "between 0 and 1")
    require(1 <= steps <= 10_000, "steps", steps, "from 1 to 10,000")


def mean_rise(rises: Sequence[tuple[Rise, float]]) -> Row:
    """The columns of a mean over parts, each with its share; evaluations in passes over all samples."""
    return {
        "split": "train",
        "value": sum(rise.value * share for rise, share in rises),
        "converged": all(rise.converged for rise, _ in rises),
        "evaluations": round(sum(rise.evaluations * share for rise, share in rises)),
    }
