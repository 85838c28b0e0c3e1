import math

import numpy as np
import pytest

from lbdist.analysis.statistics import Difference, difference, summarise, threshold


def test_summary_of_one_two_three():
    summary = summarise([1, 2, 3])
    assert (summary.mean, summary.std, summary.n) == (2.0, 1.0, 3)
    half = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert summary.low == pytest.approx(2 - half) and summary.high == pytest.approx(2 + half)


def test_two_values_have_the_cauchy_quantile():
    """With one degree of freedom t is Cauchy's: its 97.5 % quantile is tan(0.475 pi)."""
    summary = summarise([0.0, 2.0])
    assert summary.high == pytest.approx(1 + math.tan(0.475 * math.pi))


def test_one_value_has_no_spread():
    summary = summarise([5.0])
    assert (summary.mean, summary.n) == (5.0, 1)
    assert math.isnan(summary.std) and math.isnan(summary.low) and math.isnan(summary.high)


def test_no_value():
    assert summarise([]).n == 0 and math.isnan(summarise([]).mean)


def test_values_that_are_not_finite_are_left_out():
    assert summarise([1, math.nan, 2, math.inf, 3]) == summarise([1, 2, 3])
    assert difference([1, math.nan, 3], [0, 1]) == difference([1, 3], [0, 1])


def test_welch_with_equal_variances_and_sizes_is_students():
    """Then the degrees of freedom are 2n - 2, here 4, and the standard error is sqrt(2/3)."""
    apart = difference([1, 2, 3], [11, 12, 13])
    half = 2.7764451051977987 * math.sqrt(2 / 3)
    assert apart.mean == -10
    assert apart.low == pytest.approx(-10 - half) and apart.high == pytest.approx(-10 + half)


def test_welch_against_a_constant_is_the_one_sample_interval():
    apart, alone = difference([1, 2, 3], [0, 0, 0]), summarise([1, 2, 3])
    assert (apart.low, apart.high) == pytest.approx((alone.low, alone.high))


def test_differences_without_an_interval():
    assert math.isnan(difference([1], [2, 3]).low)
    assert difference([1], [2, 3]).sign is None
    assert math.isnan(difference([], [2, 3]).mean)
    assert difference([4, 4], [1, 1]) == Difference(3, 3, 3)


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(1, 2, 1), (-2, -1, -1), (-1, 1, 0), (0, 1, 0), (math.nan, math.nan, None)]
)
def test_sign(low, high, sign):
    assert Difference(0.5, low, high).sign == sign


def test_a_threshold_does_not_depend_on_the_order_of_the_runs() -> None:
    draw = np.random.default_rng(3)
    batches = np.repeat([16.0, 32.0, 64.0, 128.0, 256.0], 3)
    scores = 70 - 2 * np.maximum(np.log2(batches) - 5.5, 0) + draw.normal(0, 1, len(batches))
    known = threshold(batches, scores)
    for _ in range(5):
        order = draw.permutation(len(batches))
        assert threshold(batches[order], scores[order]) == known
