"""The learning rate's factor: continuous, between its ends, the one of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbdist.training.learning_rate import LearningRate
from lbdist.training.loop import train
from tests.support.cells import make_cell
from tests.support.samples import signals


def factors(rate: LearningRate, epochs: int, steps: int = 4) -> list[float]:
    return [rate.factor(step, steps, epoch, epochs) for epoch in range(epochs) for step in range(steps)]


def test_a_warm_up_is_a_line_that_ends_at_one() -> None:
    found = factors(LearningRate(warmup=2.5), 4)
    assert found == pytest.approx([(k + 1) / 10 for k in range(10)] + [1.0] * 6)


def test_a_cosine_is_pytorchs_own_after_the_warm_up() -> None:
    found = factors(LearningRate(warmup=1, decay="cosine"), 5, steps=3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    other = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    for factor in found[3:]:
        assert factor == pytest.approx(other.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        other.step()


def test_steps_fall_at_their_milestones_and_not_before() -> None:
    found = factors(LearningRate(decay="step", milestones=[0.25, 0.5], gamma=0.2), 8, steps=1)
    assert found == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04, 0.04, 0.04])


@given(
    warmup=st.floats(0, 4.9), decay=st.sampled_from(["constant", "cosine", "step"]), steps=st.integers(1, 50)
)
def test_it_stays_between_nothing_and_one(warmup: float, decay: str, steps: int) -> None:
    found = factors(LearningRate(warmup=warmup, decay=decay), 5, steps)
    assert all(0 <= factor <= 1 for factor in found)
    rising = [f for k, f in enumerate(found) if (k + 1) / steps <= warmup]
    assert rising == sorted(rising) and found[len(rising) :] == sorted(found[len(rising) :], reverse=True)


def test_the_loop_takes_it() -> None:
    """With a rate of nothing from the half on, the second half moves nothing."""
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.05}
    still = {"warmup": 0, "decay": "step", "milestones": [0.5], "gamma": 0.0}
    data = signals()
    _, whole = train(make_cell(optimizer=sgd, epochs=4, schedule=still), data, dtype=torch.float64)
    _, half = train(make_cell(optimizer=sgd, epochs=2), data, dtype=torch.float64)
    torch.testing.assert_close(whole, half, rtol=0, atol=0)
    assert not math.isnan(float(whole.sum()))
