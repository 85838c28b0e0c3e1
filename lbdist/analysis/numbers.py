"""Numbers as people read them: three digits, ± a spread, true minus signs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lbdist.analysis.statistics import Difference, Summary


def number(value: float, decimals: int = 0) -> str:
    """A number with a thousands separator and a true minus sign; a dash for NaN."""
    if math.isnan(value):
        return "–"
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def seconds(value: float) -> str:
    """Seconds, with one decimal below a hundred."""
    return number(value, 1 if abs(value) < 100 else 0)


def percent(summary: Summary) -> str:
    """A mean accuracy and its standard deviation, such as `72.31 ± 0.52`."""
    spread = "" if math.isnan(summary.std) else f" ± {number(summary.std, 2)}"
    return number(summary.mean, 2) + spread


def three_digits(value: float) -> str:
    """A number to three significant digits, such as `1,290`."""
    if math.isnan(value) or value == 0:
        return number(value)
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", "−")
    decimals = 2 - math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return number(round(value, decimals), max(0, decimals))


def phi(summary: Summary | None) -> str:
    """A mean sharpness and its standard deviation, such as `1,290 ± 85`; a dash without one."""
    if summary is None or math.isnan(summary.mean):
        return "–"
    mean = three_digits(summary.mean)
    if math.isnan(summary.std):
        return mean
    if "e" in mean:
        return f"{mean} ± {three_digits(summary.std)}"
    decimals = len(mean.partition(".")[2])  # no finer than the mean
    return f"{mean} ± " + (three_digits(summary.std) if summary.std >= 100 else number(summary.std, decimals))


def interval(item: Summary | Difference, decimals: int = 2) -> str:
    """The 95 % interval of a mean or of a difference, such as `5.41 to 8.10`; empty without one."""
    return "" if math.isnan(item.low) else f"{number(item.low, decimals)} to {number(item.high, decimals)}"


def epsilon_text(epsilon: float) -> str:
    """The box size as the paper writes it: `1e-3`, `5e-4`."""
    mantissa, _, exponent = f"{epsilon:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
