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
from lbdist.data.base import on_device
from lbdist.data.mnist1d import MNIST1D
from lbdist.objective import Objective
from lbdist.sharpness import Effort, SharpnessResult, box_sharpness

MLP = {"_target_": "lbdist.networks.dense.Dense", "inputs": 40, "widths": [64, 64, 64], "classes": 10}


@pytest.mark.parametrize("margin", [16.0, 17.0, 18.0])
def test_the_trap_in_closed_form(margin: float) -> None:
    """Softmax regression on s and -s, of one class each, that tells them apart by a margin.

    Every weight moves it alike, so the maximum over the box is at a vertex, at a margin that is lower by all
    their bounds together; the gradient is the share of the wrong class, below scipy's pgtol.
    """
    size, epsilon = 10_000, 1e-3
    network = torch.nn.Linear(size, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[-1.0], [1.0]]) * margin / (2 * size))
        network.bias.zero_()
    samples = torch.ones(2, size) * torch.tensor([[-1.0], [1.0]])
    f = Objective(network, (samples, torch.tensor([0, 1])))
    f0, lowered = np.log1p(np.exp(-margin)), margin - 2 * size * epsilon * (1 + margin / (2 * size))
    known = 100 * (np.log1p(np.exp(-lowered)) - f0) / (1 + f0)
    assert known > 50 and 0 < f(f.x)[1].abs().max() < 1e-5
    stalled = box_sharpness(f, f.x, epsilon=epsilon, solver="paper")
    assert (stalled.value, stalled.iterations, stalled.evaluations) == (0, 0, 1)
    true = box_sharpness(f, f.x, epsilon=epsilon)
    assert true.value == pytest.approx(known, rel=1e-4)
    assert true.converged and true.fraction_at_bound > 0.999


@pytest.fixture(scope="module")
def f() -> Objective:
    """f at a minimiser: full-batch ADAM until the gradient is tiny; batch norm with running averages."""
    inputs, labels = on_device(MNIST1D(train_samples=1000, test_samples=500).load().train, "cpu")
    network = networks.make(MLP, seed=0)
    for rate, steps in ((5e-3, 400), (1e-3, 200)):
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    return Objective(network, (inputs, labels), micro_batch_size=1000)


@pytest.fixture(scope="module")
def true(f: Objective) -> SharpnessResult:
    """The sharpness of that minimiser."""
    return box_sharpness(f, f.x, effort=Effort(budget=200), keep_maximiser=True)


def test_the_minimiser_is_one(f: Objective) -> None:
    value, gradient = f(f.x)
    assert value < 1e-3 and 0 < gradient.abs().max() < 1e-5  # below scipy's pgtol


def test_stock_l_bfgs_b_stalls_where_the_vertex_iteration_does_not(
    f: Objective, true: SharpnessResult
) -> None:
    stalled = box_sharpness(f, f.x, solver="paper")
    assert (stalled.value, stalled.iterations, stalled.evaluations) == (0, 0, 1)
    # where the loss rises a hundredfold; whether starts agree on how far differs from minimiser to minimiser
    assert true.value > 0.5 and true.fmax > 100 * true.f0
    half = box_sharpness(f, f.x, epsilon=5e-4)
    assert box_sharpness(f, f.x, epsilon=5e-4, solver="paper").value == 0 < half.value < true.value


def test_the_value_is_the_loss_of_a_network_in_the_box(f: Objective, true: SharpnessResult) -> None:
    assert true.maximiser is not None
    assert (true.maximiser.abs() <= 1e-3 * (f.x.abs() + 1)).all()
    moved = copy.deepcopy(f.network).eval()
    torch.nn.utils.vector_to_parameters(f.x + true.maximiser, moved.parameters())
    with torch.no_grad():
        loss = float(F.cross_entropy(moved(f.inputs), f.labels))
    assert loss == pytest.approx(true.fmax, rel=1e-4)
    assert true.value == pytest.approx(100 * (loss - true.f0) / (1 + true.f0), rel=1e-3)


def test_an_unlucky_start_does_not_stall_either(f: Objective, true: SharpnessResult) -> None:
    values = [box_sharpness(f, f.x, effort=Effort(starts=1)).value]  # the gradient's sign alone
    values += [box_sharpness(f, f.x, seed=seed).value for seed in range(1, 4)]
    assert min(values) > 0.1 * true.value  # they differ: each is a lower bound


def test_at_a_sharp_maximum_the_network_takes_nearly_all_samples_for_one_class(f: Objective) -> None:
    """So the search starts towards the classes; random starts divide over as many maxima as there are."""
    found = box_sharpness(f, f.x, epsilon=5e-3, keep_maximiser=True)
    assert found.maximiser is not None
    votes: list[Tensor] = []
    f.visit(f.x + found.maximiser, lambda outputs, _: votes.append(outputs.argmax(1)))
    assert torch.cat(votes).bincount().max() > 0.8 * len(f.labels)  # at eight minimisers, 0.92 to 0.98

    def blind(x: Tensor) -> tuple[float, Tensor]:  # no objective: nothing is known of classes
        return f(x)

    # at eight minimisers, the best of four is 0.95 to 1.003 of it
    random = [box_sharpness(blind, f.x, epsilon=5e-3, seed=seed).value for seed in range(4)]
    assert found.value > 0.95 * max(random)


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
    noise = torch.randn(len(f.x), generator=torch.Generator().manual_seed(0))
    x = f.x + 0.03 * noise  # away from the stall, where stock L-BFGS-B works
    assert f(x)[1].abs().max() > 1e-2
    assert sign_error(f, x, 1e-3) == pytest.approx(0, abs=1e-3)
    paper, found = (box_sharpness(f, x, solver=solver) for solver in ("paper", "converged"))
    assert paper.value > 1 and paper.iterations > 0
    assert found.value == pytest.approx(paper.value, rel=0.1)  # two solvers, one maximum


def test_a_stalled_solver_turns_the_order_of_sb_and_lb_round(f: Objective) -> None:
    """By `paper`, run literally, the full batch's minimiser is perfectly flat beside the small batch's."""
    network = networks.make(MLP, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(15):
        for index in torch.randperm(len(f.labels), generator=generator).split(20):
            optimizer.zero_grad()
            F.cross_entropy(network(f.inputs[index]), f.labels[index]).backward()
            optimizer.step()
    small = Objective(network, (f.inputs, f.labels), micro_batch_size=1000)
    values = {
        (method, solver): box_sharpness(g, g.x, epsilon=5e-3, solver=solver).value
        for method, g in (("SB", small), ("LB", f))
        for solver in ("paper", "converged")
    }
    assert values["LB", "paper"] == 0 < 50 < values["SB", "paper"] <= values["SB", "converged"]
    assert values["LB", "converged"] > 5 * values["SB", "converged"]
