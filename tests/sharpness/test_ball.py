"""The rise in a ball, of quadratics whose maximum is known, whole and in parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lbdist.errors import InputError
from lbdist.networks.flat import flatten
from lbdist.objective import Objective
from lbdist.sharpness.ball import BallSharpness, Rise, in_parts, mean_rise, worst_case
from lbdist.sharpness.measure import Minimiser
from tests.support.samples import signals


def quadratic(h: Tensor, at: Tensor):  # type: ignore[no-untyped-def]
    """½ (x - at)' H (x - at)."""
    return lambda x: (0.5 * float((x - at) @ h @ (x - at)), h @ (x - at))


@given(seed=st.integers(0, 10_000), radius=st.floats(1e-3, 10.0))
@settings(max_examples=40, deadline=None)
def test_at_the_minimum_of_a_quadratic_it_is_half_the_largest_eigenvalue(seed: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    h = q @ torch.diag(torch.tensor([9.0, 1.0, 0.5, 0.2, 0.1, 0.0], dtype=torch.float64)) @ q.T
    x = torch.randn(6, generator=generator, dtype=torch.float64)
    rise = worst_case(quadratic(h, x), x, radius, steps=200, tolerance=1e-4)
    assert rise.value == pytest.approx(radius**2 * 9.0 / 2, rel=1e-2) and rise.converged
    assert rise.value <= radius**2 * 9.0 / 2 * (1 + 1e-9)  # a lower bound


def test_a_linear_function_rises_by_the_radius_times_its_slope() -> None:
    slope, scale = torch.tensor([3.0, 4.0]).double(), torch.tensor([2.0, 0.5]).double()
    rise = worst_case(lambda x: (float(slope @ x), slope), torch.zeros(2).double(), 0.1)
    assert rise.value == pytest.approx(0.5) and rise.converged
    assert rise.evaluations == 1 + 3 * 2  # at 0; from each start, the highest twice
    scaled = worst_case(lambda x: (float(slope @ x), slope), torch.zeros(2).double(), 0.1, scale=scale)
    assert scaled.value == pytest.approx(0.1 * float((scale * slope).norm()))


def test_two_maxima_of_one_height_agree_and_of_two_heights_the_higher_counts() -> None:
    """Along one coordinate; from the gradient the lower one is found, from random directions either."""

    def f(x: Tensor) -> tuple[float, Tensor]:
        steep = torch.where(x > 0, 1.0, 4.0).double()
        return float((steep * x**2).sum() / 2), steep * x

    rise = worst_case(f, torch.tensor([1e-9]).double(), 1.0)
    assert rise.value in (pytest.approx(0.5), pytest.approx(2.0))
    values = {round(worst_case(f, torch.tensor([1e-9]).double(), 1.0, seed=s).value, 3) for s in range(8)}
    assert max(values) == 2.0


def test_parts_are_disjoint_whole_and_weighted_by_their_samples() -> None:
    data = signals(train=50)
    samples = torch.from_numpy(data.train.inputs), torch.from_numpy(data.train.labels)
    network = torch.nn.Linear(12, 4)
    f = Objective(network, samples)
    parts = list(in_parts(f, 16))
    assert [len(part.labels) for part, _ in parts] == [16, 16, 16, 2]
    assert sum(share for _, share in parts) == pytest.approx(1.0)
    mean = sum(share * part(f.x)[0] for part, share in parts)
    assert mean == pytest.approx(f(f.x)[0], rel=1e-6)
    ((alone, share),) = in_parts(f, None)
    assert alone is f and share == 1.0
    minimiser = Minimiser(flatten(network), flatten(network), lambda **options: f)
    whole, small = (BallSharpness(m=m)([minimiser])[0] for m in (None, 16))
    assert small["value"] > whole["value"] > 0  # each part has a maximum of its own


def test_a_mean_over_parts() -> None:
    row = mean_rise([(Rise(1.0, True, 10), 0.75), (Rise(3.0, False, 30), 0.25)])
    assert (row["value"], row["converged"], row["evaluations"]) == (1.5, False, 15)


@pytest.mark.parametrize("field", [{"radius": 0.0}, {"m": 0}, {"steps": 0}, {"tolerance": 1.0}])
def test_what_is_out_of_range_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(field))}="):
        BallSharpness(**field)  # type: ignore[arg-type]
