"""A step of every remedy, computed once more in plain NumPy: its sign, radius, strength and shares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lbdist import random
from lbdist.config.build import build
from lbdist.remedies.augmentation import _STREAM
from lbdist.remedies.base import make_remedy
from lbdist.remedies.growth import Growth
from lbdist.training.batches import Workers, batches
from lbdist.training.learner import make_learner
from tests.support.cells import make_cell
from tests.support.every import NAMES, remedy
from tests.support.samples import images, signals

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 12, "out_features": 4}
RATE = 0.3
DATA = signals(train=60)
S, Y = DATA.train.inputs.astype("f8"), DATA.train.labels

Gradient = tuple[np.ndarray, np.ndarray]
"""Of the mean cross-entropy of softmax(W s + b), with respect to x = (W, b), shape (52,), and s, (N, 12)."""


def gradient(x: np.ndarray, s: np.ndarray, y: np.ndarray = Y) -> Gradient:
    w, b = x[:48].reshape(4, 12), x[48:]
    logits = s @ w.T + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True) - np.eye(4)[y]
    return np.concatenate([(error.T @ s / len(s)).ravel(), error.mean(0)]), error @ w


def none(x: np.ndarray) -> np.ndarray:
    return x - RATE * gradient(x, S)[0]


def adversarial(x: np.ndarray, epsilon: float = 0.1, weight: float = 0.5) -> np.ndarray:
    attacked = S + epsilon * np.sign(gradient(x, S)[1])  # uphill
    return x - RATE * (weight * gradient(x, S)[0] + (1 - weight) * gradient(x, attacked)[0])


def robust(x: np.ndarray, rho: float = 0.5, ascent_steps: int = 1, norm: str = "2") -> np.ndarray:
    at = x.copy()
    for _ in range(ascent_steps):
        g = gradient(at, S)[0]
        at += rho / ascent_steps * (np.sign(g) if norm == "inf" else g / np.sqrt((g**2).sum()))
    return x - RATE * gradient(at, S)[0]


def conservative(x: np.ndarray, proximal: float = 1e-3, iterations: int = 3) -> np.ndarray:
    y = x.copy()
    for _ in range(iterations):
        y -= RATE * (gradient(y, S)[0] + proximal * (y - x))
    return y


def augmentation(
    x: np.ndarray, shift: float = 0.1, scale: float = 0.1, noise: float = 0.05, strength: float = 1.0
) -> np.ndarray:
    batch = of(make_cell(network=LINEAR))[1]
    u = 2 * random.uniform(batch.keys(_STREAM), 2, torch.float64).numpy() - 1
    added = random.normal(batch.keys(_STREAM + 1), 12, torch.float64).numpy()
    moved = np.empty_like(S)
    for row, place in enumerate(batch.samples.tolist()):
        at = np.clip(np.arange(12) - u[row, 0] * strength * shift * 12, 0, 11)
        signal = np.interp(at, np.arange(12), S[place])
        moved[row] = signal * (1 + u[row, 1] * strength * scale) + strength * noise * added[row]
    return x - RATE * gradient(x, moved, Y[batch.samples.numpy()])[0]


def growth(x: np.ndarray, **fields: Any) -> np.ndarray:
    return none(x)  # what it changes is the batch: below


BY_HAND: dict[str, Callable[..., np.ndarray]] = {
    "none": none,
    "adversarial": adversarial,
    "robust": robust,
    "conservative": conservative,
    "augmentation": augmentation,
    "growth": growth,
}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("adversarial", {"epsilon": 0.4, "weight": 0.2}),
    ("robust", {"rho": 1.5, "ascent_steps": 3}),
    ("robust", {"rho": 0.2, "norm": "inf", "ascent_steps": 2}),
    ("conservative", {"proximal": 0.8, "iterations": 4}),
    ("augmentation", {"shift": 0.3, "scale": 0.7, "noise": 0.4, "strength": 0.5}),
]


def of(cell: Any) -> tuple[Any, Any]:
    """The learner of a cell at its starting point, and the batch of all samples."""
    learner = make_learner(cell, torch.nn.Linear(12, 4).double(), Workers())
    (batch,) = batches(
        torch.from_numpy(S), torch.from_numpy(Y), global_batch_size=60, seed=0, epoch=0, workers=Workers(),
        dtype=torch.float64,
    )  # fmt: skip
    return learner, batch


def test_each_remedy_that_is_shipped_is_here() -> None:
    assert set(BY_HAND) == set(NAMES)


@pytest.mark.parametrize(("name", "fields"), [(name, {}) for name in NAMES] + OTHERS, ids=str)
def test_a_step_is_the_one_computed_by_hand(name: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(5)
    sgd = {"_target_": "torch.optim.SGD", "lr": RATE}
    cell = make_cell(network=LINEAR, optimizer=sgd, remedies=[remedy(name, **fields)])
    learner, batch = of(cell)
    made, x = make_remedy(cell.remedies), learner.x.clone()
    batch = made.transform(batch)
    made.step(learner, batch, lambda: made.gradient(learner, batch))
    given = {**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)}, **fields}
    known = BY_HAND[name].__code__.co_varnames[1 : BY_HAND[name].__code__.co_argcount]
    expected = BY_HAND[name](x.numpy(), **{key: given[key] for key in known})
    torch.testing.assert_close(learner.x, torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
    assert (learner.x - x).norm() > 1e-3


def test_augmented_images_are_those_computed_by_hand() -> None:
    """Flip, rotation and translation of a sample by its own numbers, one pixel at a time."""
    data = images(train=6)
    x = torch.from_numpy(data.train.inputs).double()
    (batch,) = batches(
        x, torch.from_numpy(data.train.labels), global_batch_size=6, seed=0, epoch=0, workers=Workers(),
        dtype=torch.float64,
    )  # fmt: skip
    made = build(remedy("augmentation", degrees=40.0, strength=0.5), "remedy")
    found, u = made.transform(batch).inputs, random.uniform(batch.keys(_STREAM), 4, torch.float64)
    for image, new, (flip, turn, right, down) in zip(batch.inputs, found, u.tolist(), strict=True):
        angle = math.radians((2 * turn - 1) * 20.0)
        for row in range(8):
            for column in range(8):
                j = column - 3.5 - (2 * right - 1) * 0.1 * 8
                i = row - 3.5 - (2 * down - 1) * 0.1 * 8
                at = math.cos(angle) * j + math.sin(angle) * i, math.cos(angle) * i - math.sin(angle) * j
                j, i = (-at[0] if flip < 0.5 else at[0]) + 3.5, at[1] + 3.5
                value = torch.zeros(3, dtype=torch.float64)
                for y in (math.floor(i), math.floor(i) + 1):
                    for z in (math.floor(j), math.floor(j) + 1):
                        if 0 <= y < 8 and 0 <= z < 8:
                            value += (1 - abs(i - y)) * (1 - abs(j - z)) * image[:, y, z]
                torch.testing.assert_close(new[:, row, column], value, rtol=1e-9, atol=1e-9)
    assert {number < 0.5 for number in u[:, 0].tolist()} == {True, False}


def test_the_batch_grows_by_a_constant_factor_at_equal_intervals() -> None:
    made = Growth(start=10, stages=4)  # 10, 20, 40, 80
    assert [made.batch_size(80, epoch, 8) for epoch in range(8)] == [10, 10, 20, 20, 40, 40, 80, 80]
    assert Growth(start=100, stages=2).batch_size(80, 0, 8) == 80  # never above the cell's


def test_the_norm_test_grows_to_the_variance_over_the_squared_norm() -> None:
    """|Var|_1 / (theta^2 |g|^2), with the unbiased variance over the groups, scaled to a sample."""
    torch.manual_seed(5)
    made = build(remedy("growth", rule="norm_test", start=5, theta=0.4, groups=4), "remedy")
    learner, batch = of(make_cell(network=LINEAR))
    x = learner.x.numpy().copy()
    order = batch.samples.numpy()
    groups = np.stack([gradient(x, S[part], Y[part])[0] for part in np.split(order, 4)])  # of 15 samples
    variance = groups.var(0, ddof=1).sum() * 15
    wanted = variance / (0.4**2 * (groups.mean(0) ** 2).sum())
    made.after_epoch(learner, batch)
    assert made.batch_size(10**6, 0, 1) == math.ceil(wanted) > 5
    assert made.batch_size(50, 0, 1) == min(50, math.ceil(wanted))
    # of fewer than two samples a group, nothing can be said
    fresh = build(remedy("growth", rule="norm_test", start=5, theta=0.4, groups=4), "remedy")
    fresh.after_epoch(learner, batch.part(0, 7))
    assert fresh.batch_size(10**6, 0, 1) == 5
    fresh.after_epoch(learner, batch.part(0, 8))
    assert fresh.batch_size(10**6, 0, 1) > 5
    together = make_remedy(
        [
            {**remedy("augmentation"), "name": "augmentation"},
            {**remedy("growth", rule="norm_test", start=5, theta=0.4, groups=4), "name": "growth"},
        ]
    )
    together.after_epoch(learner, batch)
    assert together.batch_size(10**6, 0, 1) == made.batch_size(10**6, 0, 1)
