"""Means over seeds, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Values of independent runs: their mean, their spread, and an interval for the mean.

    Attributes:
        mean: Sample mean; NaN without values.
        std: Sample standard deviation (n - 1); NaN for fewer than two values.
        n: How many values.
        low: Lower end of the 95 % t interval of the mean; NaN for fewer than two values.
        high: Its upper end.
    """

    mean: float
    std: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A difference of two means with its 95 % interval, whose ends are NaN if either side has one value.

    Attributes:
        mean: Mean of the first minus mean of the second.
        low: Lower end of Welch's interval.
        high: Its upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval is above or below zero, 0 where it includes zero, None without one."""
        if math.isnan(self.low):
            return None
        return int(self.low > 0) - int(self.high < 0)


def t_quantile(freedom: float) -> float:
    """Half the width of a 95 % t interval, in standard errors."""
    from scipy.special import stdtrit  # scipy.stats takes seconds to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _finite(values: Iterable[float]) -> np.ndarray:
    array = np.asarray(list(values), dtype=float)
    return array[np.isfinite(array)]


def summarise(values: Iterable[float]) -> Summary:
    """Summarises the values of independent runs; values that are not finite are left out.

    Example:
        >>> summary = summarise([1.0, 2.0, 3.0])
        >>> summary.mean, summary.std, summary.n, round(summary.low, 3)
        (2.0, 1.0, 3, -0.484)
    """
    kept = _finite(values)
    n = len(kept)
    if n == 0:
        return Summary(math.nan, math.nan, 0, math.nan, math.nan)
    mean = float(kept.mean())
    if n == 1:
        return Summary(mean, math.nan, 1, math.nan, math.nan)
    std = float(kept.std(ddof=1))
    half = t_quantile(n - 1) * std / math.sqrt(n)
    return Summary(mean, std, n, mean - half, mean + half)


def geometric(values: Iterable[float]) -> Summary:
    """Summarises positive values by their logarithms: the geometric mean, and the t interval's ends.

    The standard deviation is that of the values themselves; values that are not positive are left out.

    Example:
        >>> summary = geometric([1.0, 4.0])
        >>> summary.mean, summary.n, summary.low < 1 < 4 < summary.high
        (2.0, 2, True)
    """
    kept = _finite(values)
    kept = kept[kept > 0]
    logs = summarise(np.log(kept))
    ends = np.exp([logs.mean, logs.low, logs.high])
    return Summary(float(ends[0]), summarise(kept).std, logs.n, float(ends[1]), float(ends[2]))


def difference(a: Iterable[float], b: Iterable[float]) -> Difference:
    """The mean of `a` minus the mean of `b`, with Welch's interval (Welch, Biometrika 1947).

    Values that are not finite are left out.
    """
    first, second = _finite(a), _finite(b)
    if not len(first) or not len(second):
        return Difference(math.nan, math.nan, math.nan)
    mean = float(first.mean() - second.mean())
    if len(first) < 2 or len(second) < 2:
        return Difference(mean, math.nan, math.nan)
    u, v = (float(side.var(ddof=1)) / len(side) for side in (first, second))
    if u + v == 0:
        return Difference(mean, mean, mean)
    freedom = (u + v) ** 2 / (u**2 / (len(first) - 1) + v**2 / (len(second) - 1))
    half = t_quantile(freedom) * math.sqrt(u + v)
    return Difference(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Threshold:
    """Where a score begins to fall with the batch; the ends are NaN where no batch has two runs.

    Attributes:
        batch: The break of the best fit.
        low: Lower end of its 95 % bootstrap interval.
        high: Its upper end.
        fall: How far the score falls from there for each doubling of the batch.
        fall_low: Lower end of its 95 % bootstrap interval.
        fall_high: Its upper end.
        inside: Whether the interval of the break is inside the sweep: some batches are on the plateau.
    """

    batch: float
    low: float
    high: float
    fall: float
    fall_low: float
    fall_high: float
    inside: bool


def threshold(batches: Iterable[float], scores: Iterable[float], resamples: int = 2000) -> Threshold | None:
    """Fits a plateau that turns into a line that falls with log2 of the batch, by least squares over runs.

    The break is looked for on a grid of 101 points between the smallest and the largest batch. Runs are drawn
    again within each batch for the interval (percentile bootstrap, Efron & Tibshirani 1993).

    Args:
        batches: The batch of each run.
        scores: Its score; runs that have none are left out.
        resamples: Of the bootstrap.

    Returns:
        None for fewer than four different batches, which a break cannot be told from.

    Example:
        >>> found = threshold([16, 32, 64, 128, 256, 512] * 2, [70, 70, 70, 70, 65, 60] * 2)
        >>> round(found.batch), round(found.fall, 2), found.inside
        (128, 5.0, True)
    """
    x, y = np.log2(np.asarray(list(batches), dtype=float)), np.asarray(list(scores), dtype=float)
    order = np.lexsort((y, x))  # what is drawn again does not depend on the order of the runs
    x, y = (values[order][np.isfinite(y[order])] for values in (x, y))
    sizes = np.unique(x)
    if len(sizes) < 4:
        return None
    random, again = np.random.default_rng(0), np.empty((1 + resamples, len(y)))
    again[0] = y
    for size in sizes:
        own = np.flatnonzero(x == size)
        again[1:, own] = y[random.choice(own, (resamples, len(own)))]
    breaks = np.linspace(sizes[0], sizes[-1], 101)[:-1]
    errors, falls = [], []
    for at in breaks:
        design = np.column_stack([np.ones_like(x), -np.maximum(x - at, 0.0)])
        fitted = again @ np.linalg.pinv(design).T
        errors.append(((again - fitted @ design.T) ** 2).sum(1))
        falls.append(fitted[:, 1])
    best = np.argmin(errors, axis=0)
    ends, fall = breaks[best], np.asarray(falls)[best, np.arange(1 + resamples)]
    several = len(y) > len(sizes)
    part = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ends[1:], [part, 1 - part]) if several else (math.nan, math.nan)
    fall_low, fall_high = np.quantile(fall[1:], [part, 1 - part]) if several else (math.nan, math.nan)
    inside = bool(low >= sizes[1] - 1e-9) if several else False
    batch, first, last = (float(2**end) for end in (ends[0], low, high))
    return Threshold(batch, first, last, float(fall[0]), float(fall_low), float(fall_high), inside)


def positive_fit(
    predict: Callable[[np.ndarray], np.ndarray],
    taken: np.ndarray,
    start: Sequence[float],
    least: Sequence[float] = (),
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fits positive parameters by least squares of relative residuals, on a log scale.

    Args:
        predict: Gives positive values for parameters, shape (k,).
        taken: What was measured, shape (n,).
        start: Of the parameters.
        least: Their lower bounds.

    Returns:
        The parameters; their 95 % t intervals by the Jacobian, shape (k, 2), NaN where n is k and at a bound;
        and the root mean square relative residual.

    Example:
        >>> x = np.array([1.0, 2.0, 4.0, 8.0])
        >>> values, ends, error = positive_fit(lambda p: p[0] + p[1] * x, 3.0 + 0.5 * x, [1.0, 1.0])
        >>> values.round(3).tolist(), round(error, 6)
        ([3.0, 0.5], 0.0)
    """
    from scipy.optimize import least_squares  # takes its time to import

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(predict(np.exp(logs))) - np.log(taken))

    begun = np.log(np.maximum(np.asarray(start, dtype=float), 1e-30))
    lowest = begun - 16
    for place, value in enumerate(least):
        lowest[place] = max(lowest[place], math.log(value) if value else -math.inf)
    solved = least_squares(residuals, begun, bounds=(lowest, begun + 16), x_scale="jac")
    freedom = len(taken) - len(start)
    error = float(np.sqrt(np.mean(solved.fun**2)))
    ends = np.full((len(start), 2), math.nan)
    if freedom > 0:
        variance = np.linalg.pinv(solved.jac.T @ solved.jac) * (solved.fun @ solved.fun) / freedom
        half = t_quantile(freedom) * np.sqrt(np.maximum(np.diag(variance), 0.0))
        with np.errstate(over="ignore"):
            ends = np.exp(np.stack([solved.x - half, solved.x + half], axis=1))
        # at a bound, or where nothing depends on it, the Jacobian says nothing of a parameter
        bound = np.minimum(solved.x - lowest, begun + 16 - solved.x) < 1e-2
        ends[bound | (np.linalg.norm(solved.jac, axis=0) < 1e-6)] = math.nan
    return np.exp(solved.x), ends, error


def correlation(a: Iterable[float], b: Iterable[float]) -> float:
    """Pearson's correlation of two equally long lists; NaN where a list is constant: it is not defined there.

    Example:
        >>> round(correlation([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]), 9), correlation([1.0, 2.0], [5.0, 5.0])
        (1.0, nan)
    """
    first, second = np.array(list(a)), np.array(list(b))
    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def rank_correlation(a: Iterable[float], b: Iterable[float]) -> float:
    """Spearman's rank correlation of two equally long lists; NaN where a list is constant.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
        0.5
    """
    from scipy.stats import spearmanr  # takes seconds to import

    first, second = list(a), list(b)
    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    return float(spearmanr(first, second).statistic)
