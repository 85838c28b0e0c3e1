"""The numbers of Keskar et al., Tables 2, 3, 4, 6 and 7, which ours stand beside."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

from lbdist.analysis.statistics import Summary

DATA = {
    "F1": "MNIST",
    "F2": "TIMIT",
    "C1": "CIFAR-10",
    "C2": "CIFAR-10",
    "C3": "CIFAR-100",
    "C4": "CIFAR-100",
}
"""The paper's networks, and what each was trained on."""

RUNS = 5
"""Runs that each published mean is over."""


@functools.cache
def table() -> pd.DataFrame:
    """Every number: columns `table, network, method, quantity, epsilon, mean, std, unit`."""
    return pd.read_csv(Path(__file__).with_name("published.csv"))


@functools.cache
def published(network: str, method: str, quantity: str, epsilon: float | None = None) -> Summary | None:
    """A published number; None where there is none.

    Args:
        network: `F1` to `C4`.
        method: `SB`, `LB`, `LB+augmentation` or `LB+conservative`.
        quantity: `train_accuracy`, `test_accuracy`, `sharpness_full` or `sharpness_subspace_p100`.
        epsilon: The box.

    Returns:
        Mean and standard deviation over five runs, without an interval: the runs were not published.

    Example:
        >>> published("C1", "LB", "sharpness_full", 1e-3).mean, published("C1", "LB", "steps")
        (707.23, None)
    """
    rows = table()
    rows = rows[(rows["network"] == network) & (rows["method"] == method) & (rows["quantity"] == quantity)]
    rows = rows[rows["epsilon"].isna() if epsilon is None else (rows["epsilon"] - epsilon).abs() < 1e-9]
    if rows.empty:
        return None
    nan = float("nan")
    return Summary(float(rows["mean"].iloc[0]), float(rows["std"].iloc[0]), RUNS, nan, nan)
