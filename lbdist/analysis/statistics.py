"""Means over seeds, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable
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


def _quantile(freedom: float) -> float:
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
    half = _quantile(n - 1) * std / math.sqrt(n)
    return Summary(mean, std, n, mean - half, mean + half)


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
    half = _quantile(freedom) * math.sqrt(u + v)
    return Difference(mean, mean - half, mean + half)


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
