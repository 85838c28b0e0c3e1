"""The model of a step on synthetic timings: what it was made of is found again, and what it has not seen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from lbdist.analysis.step_time import ALGORITHMS, Call, Step, fit, held_out, volume

SIZES = [2.0**k for k in range(8, 26, 2)]
BATCHES = [32, 64, 128, 256, 512, 1024]


def made(
    t: float,
    c: float,
    q: float = 1.0,
    *,
    s: float = 1.2,
    o: float = 1e-3,
    k: float = 1.5,
    alpha: float = 1e-4,
    beta: float = 1e-9,
    algorithm: str = "ring",
    workers: tuple[int, ...] = (1, 2, 4, 8),
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[list[Step], list[Call]]:
    """Timings that the model describes, each off by a relative noise."""
    random = np.random.default_rng(seed)
    steps, calls = [], []
    for number in workers:
        messages = ALGORITHMS[algorithm](number) if number > 1 else 0.0
        for size in SIZES if number > 1 else []:
            taken = messages * alpha + volume(number) * beta * size
            calls.append(Call(number, size, taken * float(np.exp(noise * random.normal()))))
        for batch in BATCHES:
            share = math.ceil(batch / number)
            computed = (t**q + (c * share) ** q) ** (1 / q)
            waited = k * (7 * messages * alpha + volume(number) * beta * 6e5) if number > 1 else 0.0
            taken = computed if number == 1 else s * computed + o + waited
            off = np.exp(noise * random.normal(size=2))
            steps.append(Step(batch, number, taken * off[0], 7.0, 6e5, waited * off[1]))
    return steps, calls


@settings(deadline=None, max_examples=30)
@given(
    t=some.floats(1e-3, 1e-1),
    c=some.floats(1e-5, 1e-3),
    s=some.floats(1.0, 2.0),
    k=some.floats(0.3, 3.0),
    alpha=some.floats(1e-5, 1e-3),
    beta=some.floats(1e-10, 1e-8),
    algorithm=some.sampled_from(sorted(ALGORITHMS)),
)
def test_known_parameters_are_recovered(t, c, s, k, alpha, beta, algorithm) -> None:
    steps, calls = made(t, c, s=s, k=k, alpha=alpha, beta=beta, algorithm=algorithm, o=0.1 * t)
    found = fit(steps, calls)
    assert (found.q, found.algorithm) == (1.0, algorithm)
    for name, value in {"t": t, "c": c, "s": s, "k": k, "alpha": alpha, "beta": beta}.items():
        assert found.value(name) == pytest.approx(value, rel=0.02), name
    assert found.error < 1e-3 and found.call_error < 1e-3
    for step in steps:
        assert found.seconds(step.batch, step.workers) == pytest.approx(step.seconds, rel=0.01)


@pytest.mark.parametrize("q", [1.0, 2.0, 8.0])
def test_how_sharply_throughput_saturates_is_found(q: float) -> None:
    steps, calls = made(5e-3, 4e-5, q, workers=(1,))
    found = fit(steps)
    assert found.q == q and found.value("t") == pytest.approx(5e-3, rel=0.02)
    assert set(found.parameters) == {"t", "c"} and not calls
    assert found.seconds(256, 1) == pytest.approx(found.compute(256))
    assert found.compute(1e7) / 1e7 == pytest.approx(4e-5, rel=0.01)  # a sample of a large batch


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    inside = []
    for seed in range(40):
        steps, calls = made(5e-3, 4e-5, noise=0.05, seed=seed)
        found = fit(steps, calls)
        truth = {"c": 4e-5, "alpha": 1e-4, "beta": 1e-9}
        inside += [found.parameters[n].low <= v <= found.parameters[n].high for n, v in truth.items()]
    assert 0.85 <= np.mean(inside) <= 1.0  # 95 %, of 120


def test_a_parameter_at_its_bound_has_no_interval() -> None:
    steps, calls = made(5e-3, 4e-5, s=1.0, o=0.0, noise=0.02)
    found = fit(steps, calls)
    assert found.value("s") == pytest.approx(1.0, abs=0.2)
    faster = [Step(x.batch, x.workers, 0.7 * x.seconds if x.workers > 1 else x.seconds, x.calls, x.bytes,
                   x.waited) for x in steps]  # fmt: skip
    bound = fit(faster, calls).parameters["s"]  # it cannot be below 1
    assert bound.value == pytest.approx(1.0, abs=0.01) and math.isnan(bound.low) and math.isnan(bound.high)


def test_what_was_left_out_is_predicted_and_a_wrong_step_stands_out() -> None:
    steps, calls = made(5e-3, 4e-5, workers=(1, 2), noise=0.03)
    errors = [abs(guess / s.seconds - 1) for guess, s in zip(held_out(steps, calls), steps, strict=True)]
    assert np.median(errors) < 0.05 and max(errors) < 0.2
    wrong = [*steps[:-1], Step(1024, 2, 3 * steps[-1].seconds, 7.0, 6e5, steps[-1].waited)]
    assert held_out(wrong, calls)[-1] / wrong[-1].seconds < 0.5


def test_two_workers_do_not_tell_a_ring_from_a_tree_and_more_do() -> None:
    steps, calls = made(5e-3, 4e-5, workers=(1, 2), algorithm="ring")
    found = fit(steps, calls)
    assert found.algorithm == "tree"  # the first of the two
    assert found.through("ring").seconds(512, 2) == pytest.approx(found.seconds(512, 2))
    assert found.through("ring").seconds(512, 64) > found.seconds(512, 64)


def test_efficiency_falls_with_workers_and_a_small_batch_falls_first() -> None:
    found = fit(*made(5e-3, 4e-5))
    for batch in (32, 1024):
        known = [found.efficiency(batch, workers) for workers in (1, 2, 8, 64, 1024)]
        assert known[0] == 1.0 and all(a > b > 0 for a, b in itertools.pairwise(known))
    assert found.efficiency(1024, 64) > found.efficiency(32, 64)
    faster = found.over(1e-6, 1e-11)
    assert faster.seconds(1024, 64) < found.seconds(1024, 64)
    assert found.seconds(32, 1024) == found.seconds(32, 32)  # the others have no sample
    for batch in (32, 1024):
        times = [found.best(batch, workers) for workers in (1, 2, 8, 64, 1024)]
        assert times == sorted(times, reverse=True) and times[0] == found.seconds(batch, 1)


def test_too_little_is_refused() -> None:
    steps, calls = made(5e-3, 4e-5)
    with pytest.raises(ValueError, match="two or more batches"):
        fit([steps[0]], calls)
    with pytest.raises(ValueError, match="two or more sizes"):
        fit(steps, calls[:1])
    assert all(math.isnan(guess) for guess in held_out(steps[:2]))
