"""A model of what a training step takes, fitted to measured steps, by which others are predicted.

    step(B, P) = s * compute(B / P) + o + k * communication(P)
    compute(b) = (t^q + (c b)^q)^(1/q)
    communication(P) = calls * latency(P) * alpha + bytes * volume(P) * beta

compute is a saturating function of the worker's share b: samples a second rise up to 1/c, t is what a step
takes however small it is, and q says how sharply the one turns into the other (1: they add up; large: a
roofline). communication is that of a ring (Patarasuk & Yuan, JPDC 2009) or of two trees at the full
bandwidth (Sanders, Speck & Träff, Parallel Computing 2009), between which two workers cannot tell; alpha and
beta, a message's latency and a byte's time, come from collective calls by themselves. In a group, s is by
how much computing is slower, since its workers share memory or power, o what a step takes more, and k how
much of its communication it waits for: below 1 where that hides behind the backward pass, above 1 where
workers wait for each other too. What a step waits for is measured by itself, which tells k from the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lbdist.analysis.statistics import positive_fit

TURNS = (1.0, 2.0, 4.0, 8.0)
"""What q is chosen from, by the residuals."""

ALGORITHMS: Mapping[str, Callable[[int], float]] = {
    "tree": lambda workers: 2.0 * math.ceil(math.log2(workers)),
    "ring": lambda workers: 2.0 * (workers - 1),
}
"""Of each, the messages of a collective call that follow one another."""


def volume(workers: int) -> float:
    """How often a tensor's bytes go over a link, at least.

    Example:
        >>> volume(2), volume(4)
        (1.0, 1.5)
    """
    return 2.0 * (workers - 1) / workers


PHASES = ("data", "forward", "backward", "all_reduce", "optimizer", "other")
"""What a step consists of, in the order of the loop; `all_reduce` is what the others wait for."""

SHOWN = {"all_reduce": "all-reduce", "optimizer": "optimiser"}
"""What phases are called in tables and figures, if not by their name."""


@dataclass(frozen=True)
class Step:
    """A measured step.

    Attributes:
        batch: The global batch.
        workers: The workers.
        seconds: What it takes.
        calls: Its collective calls.
        bytes: What they sum.
        waited: Seconds of it that are spent waiting for them.
    """

    batch: int
    workers: int
    seconds: float
    calls: float = 0.0
    bytes: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class Call:
    """A measured collective call by itself: so many workers, bytes and seconds."""

    workers: int
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Parameter:
    """A fitted number with its 95 % interval, whose ends are NaN where nothing is left to judge it by."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StepTime:
    """The fitted model.

    Attributes:
        parameters: By name: `t` and `c` (seconds, seconds a sample), and where a group was measured `s`, `o`
            (seconds), `k`, `alpha` (seconds), `beta` (seconds a byte).
        q: See the module.
        algorithm: Of the collective calls: `ring` or `tree`.
        calls: Of a step.
        bytes: Of a step.
        error: The root mean square relative residual of the steps.
        call_error: That of the collective calls; NaN without any.
    """

    parameters: Mapping[str, Parameter]
    q: float
    algorithm: str = "tree"
    calls: float = 0.0
    bytes: float = 0.0
    error: float = math.nan
    call_error: float = math.nan

    def value(self, name: str) -> float:
        """A parameter; 1 or 0 for what was not measured."""
        default = {"s": 1.0, "k": 1.0}.get(name, 0.0)
        return self.parameters[name].value if name in self.parameters else default

    def compute(self, share: float) -> float:
        """Seconds of a worker's share of a step, by itself."""
        return float(_compute(share, self.value("t"), self.value("c"), self.q))

    def communication(self, workers: int) -> float:
        """Seconds of a step's collective calls by themselves."""
        if workers < 2:
            return 0.0
        messages = self.calls * ALGORITHMS[self.algorithm](workers)
        return messages * self.value("alpha") + self.bytes * volume(workers) * self.value("beta")

    def seconds(self, batch: float, workers: int) -> float:
        """What a step takes; where there are more workers than samples, some stay idle."""
        workers = max(1, min(workers, int(batch)))
        if workers == 1:
            return self.compute(batch)
        share = math.ceil(batch / workers)
        computed = self.value("s") * self.compute(share) + self.value("o")
        return computed + self.value("k") * self.communication(workers)

    def best(self, batch: float, workers: int) -> float:
        """What a step takes on the best of up to so many workers, in powers of two: nobody has to use all."""
        counts = {min(2**power, workers) for power in range(1 + math.ceil(math.log2(max(1, workers))))}
        return min(self.seconds(batch, count) for count in counts)

    def efficiency(self, batch: int, workers: int) -> float:
        """Parallel efficiency f(P): the time of one worker over P times that of P (strong scaling)."""
        return self.seconds(batch, 1) / (workers * self.seconds(batch, workers))

    def through(self, algorithm: str) -> StepTime:
        """The same interconnect by a ring or a tree."""
        return replace(self, algorithm=algorithm)

    def over(self, alpha: float, beta: float) -> StepTime:
        """The same work over another interconnect, by a tree, whose calls a step waits for in full.

        Args:
            alpha: Seconds of a message.
            beta: Seconds of a byte.
        """
        given = {"k": 1.0, "alpha": alpha, "beta": beta}
        known = {name: Parameter(value, math.nan, math.nan) for name, value in given.items()}
        return replace(self, algorithm="tree", parameters={**self.parameters, **known})


def _compute(share: float | np.ndarray, t: float, c: float, q: float) -> float | np.ndarray:
    return t * (1 + (c * share / t) ** q) ** (1 / q)


def fit(steps: Sequence[Step], calls: Sequence[Call] = ()) -> StepTime:
    """Fits the model by least squares of the relative residuals.

    Args:
        steps: Two or more on one worker, of different batches; those of groups need `calls`.
        calls: Collective calls by themselves, of any sizes and groups.

    Raises:
        ValueError: There are too few.
    """
    alone = {step.batch for step in steps if step.workers == 1}
    if len(alone) < 2:
        raise ValueError("steps of two or more batches on one worker are needed")
    groups = [step for step in steps if step.workers > 1]
    found: list[StepTime] = []
    for algorithm in ALGORITHMS if groups else ("tree",):
        interconnect, call_error = _interconnect(calls, algorithm) if groups else ({}, math.nan)
        per_step = (groups[0].calls, groups[0].bytes) if groups else (0.0, 0.0)
        for q in TURNS if len(alone) > 3 else TURNS[:1]:
            empty = StepTime(interconnect, q, algorithm, *per_step, call_error=call_error)
            found.append(_steps(steps, empty))
    # the calls tell the algorithms apart, from three workers on; else it is the one that libraries take then
    best_calls = min((model.call_error for model in found), default=math.nan)
    alike = [m for m in found if math.isnan(best_calls) or m.call_error <= best_calls * 1.05 + 1e-9]
    return min(alike, key=lambda model: round(model.error, 6))


def _interconnect(calls: Sequence[Call], algorithm: str) -> tuple[dict[str, Parameter], float]:
    """alpha and beta of collective calls by themselves."""
    sizes = {call.bytes for call in calls if call.workers > 1}
    if len(sizes) < 2:
        raise ValueError("collective calls of two or more sizes are needed where there are groups")
    some = [call for call in calls if call.workers > 1]
    first = np.array([ALGORITHMS[algorithm](call.workers) for call in some])
    second = np.array([volume(call.workers) * call.bytes for call in some])
    taken = np.array([call.seconds for call in some])
    start = [taken.min() / first.min(), taken.max() / second.max()]
    values, ends, error = positive_fit(lambda p: p[0] * first + p[1] * second, taken, start)
    return _named(("alpha", "beta"), values, ends), error


def _steps(steps: Sequence[Step], model: StepTime) -> StepTime:
    """The other parameters, given the interconnect's."""
    taken = np.array([step.seconds for step in steps])
    share = np.array([math.ceil(step.batch / step.workers) for step in steps], dtype=float)
    group = np.array([step.workers > 1 for step in steps])
    waits = np.array([model.communication(step.workers) for step in steps])
    waited = np.array([step.waited for step in steps])[group]
    smallest = float(taken[~group].min())
    slope = float(np.min(taken[~group] / share[~group]))
    names = ("t", "c", "s", "o", "k") if group.any() else ("t", "c")

    def predict(p: np.ndarray) -> np.ndarray:
        computed = np.asarray(_compute(share, p[0], p[1], model.q))
        if not group.any():
            return computed
        waiting = p[4] * waits[group]
        working = p[2] * computed[group] + p[3]
        return np.concatenate([computed[~group], working + waiting, waiting])

    seen = np.concatenate([taken[~group], taken[group], waited]) if group.any() else taken
    start = [smallest / 2, slope, 1.1, smallest / 10, 1.0][: len(names)]
    least = [0.0, 0.0, 1.0, 0.0, 0.0][: len(names)]
    values, ends, _ = positive_fit(predict, seen, start, least)
    of_steps = np.log(predict(values)[: len(taken)]) - np.log(seen[: len(taken)])
    error = float(np.sqrt(np.mean(of_steps**2)))
    return replace(model, parameters={**_named(names, values, ends), **model.parameters}, error=error)


def _named(names: Sequence[str], values: np.ndarray, ends: np.ndarray) -> dict[str, Parameter]:
    found = zip(names, values, ends, strict=True)
    return {name: Parameter(float(value), float(low), float(high)) for name, value, (low, high) in found}


def held_out(steps: Sequence[Step], calls: Sequence[Call] = ()) -> list[float]:
    """What the model says of each step when it is fitted to the others; NaN where they are too few.

    Returns:
        Predicted seconds, in the order of the steps.
    """
    found = []
    for place, step in enumerate(steps):
        others = [other for at, other in enumerate(steps) if at != place]
        try:
            found.append(fit(others, calls).seconds(step.batch, step.workers))
        except ValueError:
            found.append(math.nan)
    return found
