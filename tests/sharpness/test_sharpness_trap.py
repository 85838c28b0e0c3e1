"""The trap of Metric 2.1: where training went well, the published procedure stops before it starts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor

from lbdist import networks
from lbdist.data.mnist1d import MNIST1D
from lbdist.objective import Objective
from lbdist.sharpness import SharpnessResult, box_sharpness
from lbdist.sharpness.subspace import Subspace
from lbdist.training.loop import on_device

MLP = {"_target_": "lbdist.networks.dense.Dense", "inputs": 40, "widths": [64, 64], "classes": 10}


@pytest.fixture(scope="module")
def f() -> Objective:
    """f at a minimiser: full-batch ADAM until the gradient is tiny; batch norm with running averages."""
    inputs, labels = on_device(MNIST1D(train_samples=1000, test_samples=500).load().train, "cpu")
    network = networks.make(MLP, seed=0)
    for rate, steps in ((1e-2, 300), (1e-3, 300)):
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    return Objective(network, (inputs, labels), micro_batch_size=1000)


@pytest.fixture(scope="module")
def true(f: Objective) -> SharpnessResult:
    """The sharpness of that minimiser."""
    return box_sharpness(f, f.x, keep_maximiser=True)


def test_the_minimiser_is_one(f: Objective) -> None:
    value, gradient = f(f.x)
    print(value, gradient.abs().max())
    assert value < 1e-2 and 0 < gradient.abs().max() < 1e-5  # below scipy's pgtol


def test_stock_l_bfgs_b_stalls_where_the_vertex_iteration_does_not(
    f: Objective, true: SharpnessResult
) -> None:
    for epsilon in (1e-3, 5e-4):
        stalled = box_sharpness(f, f.x, epsilon=epsilon, solver="paper")
        found = box_sharpness(f, f.x, epsilon=epsilon)
        print(epsilon, stalled, found)
        assert (stalled.iterations, stalled.value) == (0, 0)
        assert found.value > 1 and found.converged and found.fraction_at_bound == 1
    assert true.maximiser is not None
    # the number is real: a copy of the network with those parameters has that loss
    moved = copy.deepcopy(f.network).eval()
    torch.nn.utils.vector_to_parameters(f.x + true.maximiser, moved.parameters())
    with torch.no_grad():
        loss = float(F.cross_entropy(moved(f.inputs), f.labels))
    assert loss == pytest.approx(true.fmax, rel=1e-5)
    assert (true.maximiser.abs() <= 1e-3 * (f.x.abs() + 1)).all()


def test_subspace_at_the_minimiser(f: Objective, true: SharpnessResult) -> None:
    for draw in range(2):
        space = Subspace(len(f.x), 20, draw=draw, like=f.x)
        paper = box_sharpness(f, f.x, subspace=space, solver="paper")
        found = box_sharpness(f, f.x, subspace=space)
        print(paper, found)
        assert 0 <= paper.value <= found.value * 1.01 and found.value > 0


def sign_error(f: Objective, x: Tensor, epsilon: float) -> float:
    """A public implementation's sharpness: it hands scipy -f with the gradient of +f."""
    f0 = f(x)[0]
    limits = epsilon * (x.abs().double().numpy() + 1)

    def wrong(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = f(x + torch.from_numpy(z).to(x))
        return -value, gradient.double().numpy()

    bounds = scipy.optimize.Bounds(-limits, limits)
    found = scipy.optimize.minimize(
        wrong, np.zeros(len(x)), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 10}
    )
    return 100 * (-found.fun - f0) / (1 + f0)


def test_sign_error_reports_zero_where_ours_does_not(f: Objective) -> None:
    x = f.x + 1e-3 * torch.randn(len(f.x), generator=torch.Generator().manual_seed(0))  # away from the stall
    assert f(x)[1].abs().max() > 1e-4
    assert sign_error(f, x, 1e-3) == pytest.approx(0, abs=1e-6)
    for solver in ("paper", "converged"):
        assert box_sharpness(f, x, solver=solver).value > 1
