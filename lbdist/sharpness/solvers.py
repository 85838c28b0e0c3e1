"""Maximisers of a function over the box |z_i| <= b_i, for Metric 2.1.

`paper` is the published procedure: ten iterations of scipy's L-BFGS-B from z = 0, unscaled. Near a minimiser
the gradient is below its stopping tolerance (`pgtol` 1e-5), so that it may stop where it starts: that is
kept, as a row of its own, and never hidden.

`converged` runs the vertex iteration from several starts. Near a minimiser f is close to convex along the
box, and a convex function has its maximum over a box at a vertex. With u in [-1, 1]^p and z = b u, iterate

    u <- sign(grad_u f),

which maximises the linearisation of f at u. For convex f the value never falls, because f lies above its
linearisation (the generalised power method; Journee, Nesterov, Richtarik & Sepulchre, JMLR 2010, section
2). The sign is taken of the gradient extrapolated by its last change, which turns coordinates a step early
and saves about a fifth of the evaluations; where that does not rise, of the gradient itself, and where f
is not convex and that falls too, the step is cut towards u. Each start ends where no step rises, or rises
by less than 3e-4 of the whole.

It is a fixed-point iteration, and maximising over a box is NP-hard, so where it starts matters:

- At the end of `paper`, so that the value is never below that; at the sign of the gradient where that did
  not move.
- Towards each class. Over a sharp box the loss is highest where the network takes all samples for one class:
  the maxima of a classifier are as many as its classes, and the share of random starts that reach the
  highest can be small. So there is a start -sign(grad_u f_k) for each label k, with f_k the loss if every
  sample had that label. They are iterated once and put in order by f on few samples, and the first three are
  followed (targeted attacks do the like for one sample: Gowal et al. 2019, "An alternative surrogate loss
  for PGD-based adversarial testing").
- In a small space, and for an f without classes, at what another box of the same model ended at.
- In a large space, at vertices that are random, iterated first on a random part of the samples, another
  part for each start. That takes a start to where a whole pass or two finishes it, and into the better
  maxima more often than whole passes from a random vertex do. Every second one is iterated on -f_k instead,
  k in turn one of those three classes.
- In a small one almost every start has a maximum of its own. Twelve Lanczos steps give a quadratic model of
  f over the box (its curvature does not depend on epsilon: one model serves every box); the vertices at
  which the model is highest, found from a thousand random ones by sign iteration and flips, are the starts,
  each with its opposite, since f's odd part is what the model does not have. What is left of the budget goes
  to recombinations of the best ends.

`converged` is True only when starts that know nothing of each other reached the best value: one from x
towards a class and one from elsewhere (a random vertex, `paper`, the gradient), or at least half of all
(where a few maxima share the random starts, two of those often meet below the highest). They agree to
`tolerance` in a large space; in a small one, where different maxima come close to each other, to rounding, so
that it is one maximum. Otherwise starts are added until `budget` evaluations are spent, and it is False. It
is evidence, no proof: the value stays a lower bound either way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lbdist.errors import require
from lbdist.objective import Function
from lbdist.sharpness.quadratic import Model

OTHER_BOX = "other box"
"""Name of a start where the search in another box ended."""
_MIXED = "recombined"
_CLASS = "class"
_GAIN = 3e-4
"""An iteration that gains less than this share of the rise ends an ascent."""
_AHEAD = 10
"""So many steps like its last have to bring an ascent to the best known maximum, or it ends."""
_ITERATIONS = 40
_VERTICES = 6
"""Vertices of the model that are tried, each with its opposite."""


@dataclass(frozen=True)
class Effort:
    """How long `converged` searches.

    Attributes:
        starts: Starts that are made before their agreement counts, beside those towards classes and those
            from another box.
        budget: Evaluations after which no further start is made.
        tolerance: Share of the rise to which starts agree in a large space.
        from_paper: Whether the end of `paper` is a start as well, so that the value is never below it.
    """

    starts: int = 4
    budget: int = 40
    tolerance: float = 5e-3
    from_paper: bool = True

    def __post_init__(self) -> None:
        require(self.starts >= 1, "starts", self.starts, "at least 1")
        require(self.budget >= 1, "budget", self.budget, "at least 1")
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "between 0 and 1")


class Start(NamedTuple):
    """A start, or where it ended: its name, and u in [-1, 1]^p."""

    name: str
    u: Tensor

    @property
    def line(self) -> str | None:
        """What it comes from: starts of one line count as one, those without a line know of others' ends."""
        kind = self.name.split()[0]
        if kind in ("model", _CLASS):
            return kind
        return {"paper": "gradient", OTHER_BOX: None, _MIXED: None}.get(self.name, self.name)


@dataclass(frozen=True)
class Maximum:
    """Where a solver ended.

    Attributes:
        z: The best point found, in the box.
        value: f there.
        start: The start that led to it.
        iterations: Iterations, over all starts.
        converged: What the solver says of it: `paper`, that it met its stopping rule; `converged`, that
            independent starts agree on it.
        ends: Where the starts ended, the best first, from which another box may start.
    """

    z: Tensor
    value: float
    start: str
    iterations: int
    converged: bool
    ends: Sequence[Start] = ()


def paper(f: Function, bound: Tensor, f0: float, g0: Tensor, *, iterations: int = 10) -> Maximum:
    """Ten iterations of stock L-BFGS-B on -f from z = 0 (Keskar et al., section 2.2.2)."""
    best = Maximum(torch.zeros_like(bound), f0, "origin", 0, False)

    def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        point = torch.from_numpy(z).to(bound)
        value, gradient = (f0, g0) if not z.any() else f(point)
        if value > best.value:
            best = Maximum(point.clone(), value, "origin", 0, False)
        return -value, -gradient.double().cpu().numpy()

    import scipy.optimize  # slow to import, and the driver does not solve

    limits = bound.double().cpu().numpy()
    found = scipy.optimize.minimize(
        negative,
        np.zeros(len(limits)),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(-limits, limits),
        options={"maxiter": iterations},
    )
    return Maximum(best.z, best.value, "origin", int(found.nit), bool(found.status == 0))


@dataclass
class _End:
    """A maximum: f there, what led to it, u, the weight of each coordinate, the lines that met it."""

    value: float
    name: str
    u: Tensor
    weight: Tensor
    lines: set[str]

    def overlap(self, u: Tensor) -> float:
        """1 where u is the same point, as far as f depends on it; about 0 for an unrelated one."""
        total = self.weight.sum()
        return float((self.weight * self.u * u).sum() / total) if total > 0 else 1.0


@dataclass
class _Found:
    """Ascents from one start after another, and where they ended.

    Attributes:
        ends: The different maxima, the best first.
        lines: Of all starts so far.
        spent: Evaluations; one on a part of the samples counts as that part.
        iterations: Iterations, over all starts.
    """

    f: Function
    bound: Tensor
    f0: float
    epsilon: float
    tolerance: float
    model: Model | None
    ends: list[_End] = field(default_factory=list)
    lines: set[str] = field(default_factory=set)
    spent: float = 0.0
    iterations: int = 0

    def at(self, u: Tensor) -> tuple[float, Tensor]:
        """f at z = b u, and its gradient in z."""
        self.spent += 1
        value, gradient = self.f(self.bound * u)
        return (value, gradient) if np.isfinite(value) else (-np.inf, gradient)

    def rough(self, f: Function, u: Tensor, share: float) -> Tensor:
        """Where the vertex iteration on a part of the samples takes u."""

        def at(u: Tensor) -> tuple[float, Tensor]:
            self.spent += share
            return f(self.bound * u)

        return _ascend(at, u, self.f0, gain=1e-2, iterations=8)[0]

    def ascend(self, start: Start) -> None:
        """The vertex iteration, and where it ends, flips by the model."""
        beat = self.ends[0].value if self.ends else self.f0
        u, value, gradient, used = _ascend(self.at, start.u, self.f0, beat=beat)
        self.iterations += used
        most = len(u)
        while self.model is not None and most > 0:
            slope = (self.bound * gradient).double().cpu()
            found = self.model.flips(self.epsilon, u.double().cpu(), slope, most)
            if found is None:
                break
            new = found.to(u)
            new_value, new_gradient = self.at(new)
            self.iterations += 1
            change = (self.bound * new_gradient).double().cpu() - slope
            self.model.learn(self.epsilon, (new - u).double().cpu(), change)
            if new_value > value:
                u, value, gradient = new, new_value, new_gradient
            else:
                most = int((new != u).sum()) // 2
        self._book(_End(value, start.name, u, (self.bound * gradient).abs(), self._line(start)))

    def _line(self, start: Start) -> set[str]:
        """The line of a start that is made."""
        line = set() if start.line is None else {start.line}
        self.lines |= line
        return line

    def _book(self, end: _End) -> None:
        """Files an end with those of the same maximum."""
        for other in self.ends:
            rise, apart = abs(max(end.value, other.value) - self.f0), abs(end.value - other.value)
            same = self.model is None and apart <= self.tolerance * rise and other.overlap(end.u) > _SAME
            if same or apart <= _ROUNDING * rise:
                end.lines |= other.lines
                self.ends.remove(other)
                if other.value >= end.value:
                    end = replace(other, lines=end.lines)
                break
        self.ends = sorted([*self.ends, end], key=lambda end: -end.value)[:_KEPT]

    def known(self, start: Start) -> bool:
        """Whether an ascent from there tells nothing: to a lower maximum, or again to a confirmed one."""
        for end in self.ends:
            sure = end is not self.ends[0] or len(end.lines) > 1
            near = self.model is None and sure and end.overlap(start.u) > _SAME
            if near or torch.equal(end.u, start.u):
                end.lines |= self._line(start)
                return True
        return False

    @property
    def agreed(self) -> bool:
        """Whether two lines reached the best value, of which one is that of the classes, or half of all."""
        best = self.ends[0].value
        within = (self.tolerance if self.model is None else _ROUNDING) * abs(best - self.f0)
        lines = set().union(*(end.lines for end in self.ends if best - end.value <= within))
        return len(lines) > 1 and (_CLASS in lines or 2 * len(lines) >= len(self.lines))


_SAME = 0.9
"""Overlap above which a start is taken for one of a known maximum. Measured: mostly 0.9 to 1 within one, and
below 0.6 between two; but 0.98 between two that lie close, so that the first start that reaches the best
maximum is followed all the same.
"""
_KEPT = 8
_ROUNDING = 1e-5
"""Share of the rise to which two ends are one maximum, in float32."""


def converged(
    f: Function,
    bound: Tensor,
    f0: float,
    g0: Tensor,
    *,
    epsilon: float,
    effort: Effort,
    seed: int = 0,
    known: Sequence[Start] = (),
    model: Model | None = None,
    part: Callable[[int], Function] | None = None,
    share: float = 1.0,
) -> Maximum:
    """The vertex iteration from several starts, until independent ones agree or the budget is spent.

    Args:
        f: Value and gradient at z, shape (p,).
        bound: Half-widths b of the box, shape (p,).
        f0: f at z = 0.
        g0: The gradient there.
        epsilon: Which box it is.
        effort: How long.
        seed: Of random vertices.
        known: Starts that are taken first, named by what they come from.
        model: Curvature of f at x, which a small space needs; it learns more here.
        part: Gives f on a random part of the samples, another one for each number.
        share: How large that part is.
    """
    found = _Found(f, bound, f0, epsilon, effort.tolerance, model)
    generator = torch.Generator(bound.device).manual_seed(seed)
    made = 0
    candidates = _starts(found, g0, generator, known, part, share)
    for start in itertools.islice(candidates, 10 * effort.budget):  # a tiny space has few starts
        if not found.known(start):
            found.ascend(start)
        made += start.line not in (None, _CLASS)
        if found.spent >= effort.budget or (made >= effort.starts and found.agreed):
            break
    best = found.ends[0]
    ends = [Start(end.name, end.u) for end in found.ends]
    if not best.value > f0:  # x is a maximum itself, if several starts say so
        return Maximum(torch.zeros_like(bound), f0, "origin", found.iterations, len(found.lines) > 1)
    return Maximum(bound * best.u, best.value, best.name, found.iterations, found.agreed, ends)


def _starts(
    found: _Found,
    g0: Tensor,
    generator: torch.Generator,
    known: Sequence[Start],
    part: Callable[[int], Function] | None,
    share: float,
) -> Iterator[Start]:
    """Starts without an end, the most promising first."""
    bound, model = found.bound, found.model

    def random() -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(bound.shape, generator=generator, dtype=bound.dtype, device=bound.device)

    def vertex() -> Tensor:
        return torch.where(random() < 0.5, -1.0, 1.0).to(bound)

    yield from known
    if not any(start.line == "gradient" for start in known):
        u = torch.where(g0 == 0, vertex(), g0.sign())
        yield Start("gradient", u if part is None else found.rough(part(0), u, share))
    if model is not None:
        for place, u in enumerate(model.vertices(found.epsilon, g0)[:_VERTICES].to(bound)):
            yield Start(f"model {place}", u)
            yield Start(f"model -{place}", -u)
    for place in itertools.count(len(known) + 1):
        if model is None:
            u = vertex()
            yield Start(f"vertex {place}", u if part is None else found.rough(part(place), u, share))
        elif place % 2:
            yield Start(f"point {place}", 2 * random() - 1)
        else:
            best = [end.u for end in found.ends]
            places = torch.randint(len(best), (2,), generator=generator, device=bound.device).tolist()
            child = torch.where(random() < 0.5, best[places[0]], best[places[1]])
            yield Start(_MIXED, torch.where(random() < 0.03, -child, child))


def _ascend(
    f: Function,
    u: Tensor,
    f0: float,
    gain: float = _GAIN,
    iterations: int = _ITERATIONS,
    beat: float = -np.inf,
) -> tuple[Tensor, float, Tensor, int]:
    """The vertex iteration from u: its last point, f and its gradient there, iterations.

    It ends early where ten more such steps would not reach `beat`.
    """
    value, gradient = f(u)
    if not np.isfinite(value):  # nothing to go by
        return u, -np.inf, torch.zeros_like(gradient), 0
    ahead = gradient
    for iteration in range(1, iterations + 1):
        tried = u
        for target in _targets(u, gradient, ahead):
            if torch.equal(target, tried) or torch.equal(target, u):
                continue
            tried = target
            new, new_gradient = f(target)
            if new > value:
                break
        else:
            return u, value, gradient, iteration  # no ascent left
        rise = new - value
        ahead = 2 * new_gradient - gradient
        u, value, gradient = target, new, new_gradient
        if rise <= gain * (value - f0) or value + _AHEAD * rise < beat:
            break
    return u, value, gradient, iteration


def _targets(u: Tensor, gradient: Tensor, ahead: Tensor) -> Iterator[Tensor]:
    """Where to go from u: the extrapolated vertex, the gradient's own, and points on the way to that."""
    yield torch.where(ahead == 0, u, ahead.sign())
    vertex = torch.where(gradient == 0, u, gradient.sign())
    yield vertex
    yield (u + vertex) / 2
    yield (3 * u + vertex) / 4


SOLVERS = ("paper", "converged")
