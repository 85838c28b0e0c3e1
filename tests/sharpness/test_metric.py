from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lbdist.results
from lbdist.errors import InputError
from lbdist.objective import Objective
from lbdist.sharpness import Effort, SharpnessResult, box_sharpness, neighbourhood
from lbdist.sharpness import subspace as subspace_module
from lbdist.sharpness.metric import BoxSharpness
from lbdist.sharpness.neighbourhood import Neighbourhood
from lbdist.sharpness.solvers import SOLVERS
from lbdist.sharpness.subspace import CONVENTIONS, FullSpace, Subspace
from tests.support.repository import ROOT

SOLVER = pytest.mark.parametrize("solver", SOLVERS)


class Recorder:
    """A function that remembers every value it gave."""

    def __init__(self, f: Callable[[Tensor], tuple[float, Tensor]]) -> None:
        self.f = f
        self.points: list[Tensor] = []
        self.values: list[float] = []

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.f(x)
        self.points.append(x.clone())
        self.values.append(value)
        return value, gradient


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(g: Tensor, offset: float = 1000.0) -> Recorder:
    return Recorder(lambda x: (offset + float(g @ x), g.clone()))


def diagonal(h: Tensor, c: Tensor, offset: float = 0.3) -> Recorder:
    return Recorder(lambda x: (offset + 0.5 * float(h @ (x - c) ** 2), h * (x - c)))


def quadratic(q: Tensor, g: Tensor, offset: float) -> Recorder:
    """offset + g.x + x.Q.x / 2, which is convex where Q is positive semidefinite."""
    return Recorder(lambda x: (offset + float(g @ x) + 0.5 * float(x @ q @ x), g + q @ x))


def rise(result: SharpnessResult) -> float:
    """max f - f, from the value itself."""
    return result.value * (1 + result.f0) / 100


def vertices(bound: Tensor) -> Tensor:
    signs = itertools.product((-1.0, 1.0), repeat=len(bound))
    return torch.tensor(list(signs), dtype=torch.float64) * bound


# closed forms


@SOLVER
@pytest.mark.parametrize("epsilon", [1e-3, 5e-4, 0.1])
@pytest.mark.parametrize("n", [1, 7, 500])
def test_linear_in_the_full_space(solver: str, epsilon: float, n: int) -> None:
    g, x = random(n, seed=1), 3 * random(n, seed=2)
    g = g.sign() * (g.abs() + 0.2)
    result = box_sharpness(linear(g), x, epsilon=epsilon, solver=solver)
    assert result.fmax - result.f0 == pytest.approx(epsilon * float(g.abs() @ (x.abs() + 1)), rel=1e-6)
    assert rise(result) == pytest.approx(result.fmax - result.f0, rel=1e-9)
    assert result.converged and result.fraction_at_bound == 1
    assert (result.space, result.dimension, result.solver) == ("full", n, solver)


@SOLVER
@pytest.mark.parametrize("p", [1, 10, 100])
def test_linear_in_a_subspace(solver: str, p: int) -> None:
    n, epsilon = 300, 1e-3
    g, x = random(n, seed=1), random(n, seed=2)
    space = Subspace(n, p, seed=5, draw=2, like=x)
    matrix = torch.cat(list(space._blocks()))
    inverse = torch.linalg.pinv(matrix) @ x
    expected = epsilon * float((matrix.T @ g).abs() @ (inverse.abs() + 1))
    for subspace in (p, space, matrix):
        result = box_sharpness(
            linear(g), x, epsilon=epsilon, solver=solver, subspace=subspace, seed=5, draw=2
        )
        assert result.fmax - result.f0 == pytest.approx(expected, rel=1e-6)
        assert (result.space, result.dimension, result.draw) == ("subspace", p, 2)


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4])
def test_diagonal_quadratic_at_its_minimiser(epsilon: float) -> None:
    h, c = random(60, seed=1) ** 2, 2 * random(60, seed=2)
    f = diagonal(h, c)
    assert not f(c)[1].any()  # exactly stationary: the start that never moves
    result = box_sharpness(f, c, epsilon=epsilon)
    expected = 0.5 * epsilon**2 * float(h @ (c.abs() + 1) ** 2)
    assert expected > 0 and result.fmax - result.f0 == pytest.approx(expected, rel=1e-6)
    assert result.value == pytest.approx(100 * expected / 1.3, rel=1e-6)
    assert result.converged and result.fraction_at_bound == 1
    stalled = box_sharpness(f, c, epsilon=epsilon, solver="paper")
    assert (stalled.value, stalled.iterations, stalled.evaluations) == (0, 0, 1)  # its own number, not hidden


def test_diagonal_quadratic_beside_its_minimiser() -> None:
    h, c, d = random(60, seed=1) ** 2, random(60, seed=2), 1e-4 * random(60, seed=3)
    bound = 1e-3 * ((c + d).abs() + 1)
    expected = 0.5 * float(h @ ((d.abs() + bound) ** 2 - d**2))
    result = box_sharpness(diagonal(h, c), c + d)
    assert result.fmax - result.f0 == pytest.approx(expected, rel=1e-6)
    assert result.start == "paper"  # which moves here
    assert box_sharpness(diagonal(h, c), c + d, effort=Effort(from_paper=False)).start == "gradient"


def test_quadratic_in_a_subspace_at_its_minimiser() -> None:
    n, p = 40, 6
    h, c = random(n, seed=1) ** 2, random(n, seed=2)
    matrix = random(n, p, seed=3)
    bound = 1e-3 * ((torch.linalg.pinv(matrix) @ c).abs() + 1)
    inner = matrix.T @ torch.diag(h) @ matrix
    expected = max(0.5 * float(z @ inner @ z) for z in vertices(bound))
    result = box_sharpness(diagonal(h, c), c, subspace=matrix, effort=Effort(starts=8))
    assert result.fmax - result.f0 == pytest.approx(expected, rel=1e-6)


def test_quadratic_with_one_steep_direction_turns_to_it() -> None:
    n = 200
    v, c = random(n, seed=1), random(n, seed=2)
    f = quadratic(torch.outer(v, v), -v * float(v @ c), 1 + 0.5 * float(v @ c) ** 2)  # 1 + (v.(x - c))^2 / 2
    expected = 0.5 * (1e-3 * float(v.abs() @ (c.abs() + 1))) ** 2
    for seed in range(5):
        result = box_sharpness(f, c, seed=seed)
        assert result.fmax - result.f0 == pytest.approx(expected, rel=1e-6)


def test_single_precision() -> None:
    g, x = random(300, seed=1).float(), random(300, seed=2).float()

    def f(y: Tensor) -> tuple[float, Tensor]:
        assert y.dtype == torch.float32
        return 1000 + float(g.double() @ y.double()), g

    expected = 1e-3 * float(g.abs() @ (x.abs() + 1))
    for subspace in (None, torch.eye(300)):
        assert rise(box_sharpness(f, x, subspace=subspace)) == pytest.approx(expected, rel=1e-4)


# properties


@st.composite
def convex(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    """A positive semidefinite Q of any rank, g, x and epsilon, in two to six dimensions."""
    n, seed = draw(st.integers(2, 6)), draw(st.integers(0, 10_000))
    rank = draw(st.integers(1, n))
    factor = random(n, rank, seed=seed)
    slope = draw(st.sampled_from([0.0, 1e-6, 1e-2, 1.0]))
    x = draw(st.sampled_from([0.0, 1.0, 100.0])) * random(n, seed=seed + 2)
    minimum = draw(st.booleans())
    g = -(factor @ factor.T) @ x if minimum else random(n, seed=seed + 1)
    return (
        factor @ factor.T,
        g + slope * random(n, seed=seed + 3),
        x,
        draw(st.sampled_from([1e-3, 5e-4, 0.5])),
    )


def check_bounds(found: SharpnessResult, f: Recorder, bound: Tensor) -> float:
    """What holds for any solver on a convex function; returns the share of the true maximum it reached."""
    x = f.points[0]
    best = max(f.f(x + z)[0] for z in vertices(bound))
    slack = 1e-9 * (abs(best) + abs(found.f0))
    assert found.f0 == f.values[0] and found.fmax == max(f.values)  # so at least f0 and every start's value
    assert found.fmax <= best + slack
    assert found.value >= 0
    assert found.maximiser is not None and (found.maximiser.abs() <= bound * (1 + 1e-12)).all()
    assert f.f(x + found.maximiser)[0] == found.fmax
    assert all(((point - x).abs() <= bound * (1 + 1e-9) + 1e-12 * x.abs()).all() for point in f.points)
    assert found.evaluations == len(f.values)
    assert best >= found.f0
    return 1.0 if best - found.f0 <= slack else (found.fmax - found.f0) / (best - found.f0)


@SOLVER
@given(problem=convex())
@settings(max_examples=60, deadline=None)
def test_convex_quadratics_against_every_vertex(
    solver: str, problem: tuple[Tensor, Tensor, Tensor, float]
) -> None:
    q, g, x, epsilon = problem
    f = quadratic(q, g, 0.0)
    assume(f.f(x)[0] > -1e8)
    f = quadratic(q, g, 1.0 - f.f(x)[0])  # f(x) = 1, as a loss
    found = box_sharpness(f, x, epsilon=epsilon, solver=solver, keep_maximiser=True)
    check_bounds(found, f, epsilon * (x.abs() + 1))


@given(st.integers(2, 16), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_quadratic_in_a_small_space_is_maximised_over_all_its_vertices(p: int, seed: int) -> None:
    """The model is exact but for rounding up to 12 dimensions, and good beyond: the maximum of all 2^p."""
    factor, c = random(p, p, seed=seed), random(p, seed=seed + 1)
    q = factor @ factor.T
    f = quadratic(q, -q @ c, 1.0 + 0.5 * float(c @ q @ c))
    # with the default budget of 40, two of 400 have the maximum and do not claim it
    found = box_sharpness(f, c, epsilon=0.1, effort=Effort(budget=200))
    corners = vertices(0.1 * (c.abs() + 1))
    best = float(0.5 * ((corners @ q) * corners).sum(1).max())
    if p <= 12:
        assert rise(found) == pytest.approx(best, rel=1e-6) and found.converged
    else:  # 1 of 80 of these was 0.12 % below, and 1 did not claim what it had found
        assert 0.99 * best <= rise(found) <= best * (1 + 1e-9)


def test_how_often_starts_in_a_large_space_find_the_global_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the model: a maximum over a box is NP-hard, and the value a lower bound. How good a one?

    At the minimiser of 100 random quadratics in 2 to 8 dimensions, measured with 8 starts: the maximum in 98,
    on average 99.4 % of it; 65 claims of convergence, one of them at another maximum (6 of 76 with the
    default of 4 starts; none of 28 on trained networks).
    """
    monkeypatch.setattr(neighbourhood, "SMALL", 0)
    shares, claims = [], []
    for seed in range(100):
        n = 2 + seed % 7
        factor, c = random(n, n, seed=seed), random(n, seed=seed + 1000)
        q = factor @ factor.T
        f = quadratic(q, -q @ c, 1.0 + 0.5 * float(c @ q @ c))
        found = box_sharpness(f, c, epsilon=0.1, keep_maximiser=True, seed=seed, effort=Effort(starts=8))
        shares.append(check_bounds(found, f, 0.1 * (c.abs() + 1)))
        claims.append(found.converged)
    wrong = sum(claim and share < 0.99 for claim, share in zip(claims, shares, strict=True))
    assert sum(claims) > 60 and wrong <= 2
    assert sum(share > 1 - 1e-6 for share in shares) >= 90
    assert sum(shares) >= 98


@SOLVER
@given(st.integers(0, 500))
@settings(max_examples=40, deadline=None)
def test_never_negative_on_any_function(solver: str, seed: int) -> None:
    """Wiggles, concave tops and slopes: whatever f is, the result is the highest that it was in the box."""
    a, b, x = random(5, seed=seed), 30 * random(5, seed=seed + 1), random(5, seed=seed + 2)

    def wiggle(y: Tensor) -> tuple[float, Tensor]:
        return 20 + float(a @ torch.sin(b * y)), a * b * torch.cos(b * y)

    f = Recorder(wiggle)
    found = box_sharpness(f, x, epsilon=0.3, solver=solver, keep_maximiser=True)
    assert found.value >= 0 and found.fmax == max(f.values) and found.evaluations == len(f.values)
    assert found.maximiser is not None and (found.maximiser.abs() <= 0.3 * (x.abs() + 1)).all()


@SOLVER
def test_the_value_is_the_highest_that_was_seen_to_the_last_bit(solver: str) -> None:
    """f has another value at each bit of its point: a search may not come back to a point by its rounding."""

    def rough(y: Tensor) -> tuple[float, Tensor]:
        return float(zlib.crc32(y.numpy().tobytes())), torch.cos(30 * y)

    for seed in range(50):
        f, x = Recorder(rough), 1e-3 * random(5, seed=seed)
        found = box_sharpness(f, x, epsilon=0.3, solver=solver, keep_maximiser=True)
        assert found.maximiser is not None and found.fmax == max(f.values) == rough(x + found.maximiser)[0]


@SOLVER
def test_a_maximiser_of_f_is_flat(solver: str) -> None:
    c = random(5)
    found = box_sharpness(
        diagonal(-torch.ones(5, dtype=torch.float64), c), c, solver=solver, keep_maximiser=True
    )
    assert found.value == 0 and found.fmax == found.f0 and found.start == "origin"
    assert found.maximiser is not None and not found.maximiser.any() and found.fraction_at_bound == 0


@SOLVER
def test_monotone_in_epsilon_for_linear_f(solver: str) -> None:
    g, x = random(30, seed=1), random(30, seed=2)
    epsilons = (1e-5, 5e-4, 1e-3, 1e-2, 1.0)
    values = [box_sharpness(linear(g), x, epsilon=e, solver=solver).value for e in epsilons]
    assert all(a < b for a, b in itertools.pairwise(values)) and values[0] > 0


def test_fraction_at_bound_and_maximiser() -> None:
    x = torch.zeros(4, dtype=torch.float64)

    def f(y: Tensor) -> tuple[float, Tensor]:  # a ridge inside the box in two coordinates, a slope in two
        inner = y[:2] - 5e-4
        return 1 + float(y[2:].sum() - 1e4 * inner @ inner), torch.cat([-2e4 * inner, torch.ones(2).double()])

    found = box_sharpness(f, x, epsilon=1e-3, solver="paper", keep_maximiser=True)
    assert found.maximiser is not None
    torch.testing.assert_close(
        found.maximiser, torch.tensor([5e-4, 5e-4, 1e-3, 1e-3]).double(), rtol=1e-3, atol=0
    )
    assert found.fraction_at_bound == 0.5
    assert box_sharpness(f, x, solver="paper").maximiser is None


@SOLVER
def test_evaluations_are_counted_exactly(solver: str) -> None:
    for subspace in (None, 4):
        f = diagonal(random(20) ** 2, random(20, seed=1))
        found = box_sharpness(f, random(20, seed=2), solver=solver, subspace=subspace)
        assert found.evaluations == len(f.values) >= 2 and found.iterations >= 1


def test_convergence_is_claimed_only_where_starts_agree() -> None:
    """Hills of all heights in sixty dimensions: hardly two starts end on one; a single ridge: all do."""
    a, b = random(60, 60, seed=4), 30 * random(60, seed=5)

    def hills(y: Tensor) -> tuple[float, Tensor]:
        wave = 40 * (a @ y) + b
        return 200 + float(wave.cos().sum()), -40 * (a.T @ wave.sin())

    x = torch.zeros(60, dtype=torch.float64)
    found = box_sharpness(hills, x, epsilon=0.3)
    assert found.value > 0 and not found.converged and found.evaluations >= 60
    v = random(60, seed=6)
    ridge = box_sharpness(quadratic(torch.outer(v, v), 0 * v, 1.0), x)
    assert ridge.converged and ridge.evaluations < 80


@pytest.mark.parametrize(("samples", "classes"), [(5, 2), (40, 40), (300, 10), (3000, 150)])
def test_few_samples_or_many_classes_cost_no_more(samples: int, classes: int) -> None:
    """Starts towards the classes are put in order for a few evaluations, whatever the data."""
    torch.manual_seed(0)
    data = torch.randn(samples, 6), torch.arange(samples) % classes
    f = Objective(torch.nn.Linear(6, classes), data)
    near = Neighbourhood(f, f.x)
    near.spent = 0.0
    found = near._classes(f, near.scale)
    assert 1 <= len(found) <= 3 and 0 < near.spent <= 6
    assert all(set(u.unique().tolist()) <= {-1.0, 0.0, 1.0} for u in found.values())


def test_boxes_and_solvers_of_one_neighbourhood_share_what_they_evaluate() -> None:
    factor, c = random(300, 40, seed=4), random(300, seed=5)
    f = quadratic(
        factor @ factor.T, -factor @ (factor.T @ c), 1.0 + 0.5 * float((factor.T @ c) @ (factor.T @ c))
    )
    near = Neighbourhood(f, c, Subspace(300, 20, like=c))
    found = [near.sharpness(e, s) for e in (1e-3, 5e-4) for s in ("paper", "converged")]
    assert sum(result.evaluations for result in found) == len(f.values)
    alone = [
        box_sharpness(f, c, epsilon=e, solver=s, subspace=20).evaluations
        for e in (1e-3, 5e-4)
        for s in ("paper", "converged")
    ]
    assert len(f.values) - sum(alone) < 0.7 * sum(alone)
    assert found[3].value == pytest.approx(found[1].value / 4, rel=1e-9)  # a quadratic's box of half the size


@SOLVER
@pytest.mark.parametrize("subspace", [None, 5])
def test_same_seed_same_result(solver: str, subspace: int | None) -> None:
    factor, c = random(12, 12), random(12, seed=1)
    f = quadratic(factor @ factor.T, -factor @ factor.T @ c, 1000.0)

    def run(**options: Any) -> dict[str, Any]:
        found = box_sharpness(f, c, solver=solver, subspace=subspace, keep_maximiser=True, **options)
        kept = dataclasses.asdict(found)
        del kept["seconds"]
        kept["maximiser"] = kept["maximiser"].tolist()
        return kept

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = run(seed=3)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    torch.rand(1)
    assert run(seed=3) == first
    if solver == "converged":
        assert len({run(seed=seed)["evaluations"] for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0: must be from"),
        ({"epsilon": -1e-3}, "epsilon=-0.001: must be from"),
        ({"epsilon": float("nan")}, "epsilon=nan: must be from"),
        ({"epsilon": float("inf")}, "epsilon=inf: must be from"),
        ({"starts": 0}, "starts=0: must be at least 1"),
        ({"budget": 0}, "budget=0: must be at least 1"),
        ({"tolerance": 1.0}, "tolerance=1.0: must be between 0 and 1"),
        ({"subspace": 2, "convention": "sparse"}, "convention=sparse: must be one of gaussian, unit_columns"),
        ({"solver": "lbfgs"}, "solver=lbfgs: must be one of paper, converged"),
        ({"subspace": 6}, "subspace=6: must be between 1 and the number of parameters, 5"),
        ({"subspace": 0}, "subspace=0: must be between 1 and the number of parameters, 5"),
        ({"subspace": -1}, "subspace=-1: must be between 1"),
        ({"subspace": torch.ones(1, 2).double()}, "subspace: A has shape (1, 2); must have 5 rows"),
        ({"subspace": torch.ones(4, 2).double()}, "subspace: A has shape (4, 2); must have 5 rows"),
        ({"subspace": torch.ones(5).double()}, "subspace: A has shape (5,); must have 5 rows"),
        ({"x": torch.tensor([0, 1, float("nan"), 0, 0])}, "x: the parameters hold NaN or infinity"),
        ({"x": torch.tensor([0, 1, float("inf"), 0, 0])}, "x: the parameters hold NaN or infinity"),
        ({"f": lambda x: (float("nan"), x)}, "f(x)=nan: the loss must be finite"),
        ({"f": lambda x: (float("inf"), x)}, "f(x)=inf: the loss must be finite"),
        ({"f": lambda x: (-2.0, x)}, "f(x)=-2.0: the loss must be finite and above -1"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], says: str) -> None:
    f = linear(random(5))
    arguments: dict[str, Any] = {"f": f, "x": random(5, seed=1), **changes}
    with pytest.raises(InputError) as info:
        fields = {key: arguments.pop(key) for key in ("starts", "budget", "tolerance") if key in arguments}
        box_sharpness(arguments.pop("f"), arguments.pop("x"), effort=Effort(**fields), **arguments)
    assert str(info.value).startswith(says) and "\n" not in str(info.value)
    assert f.values == []  # refused before anything is evaluated


def test_a_box_that_reaches_nan_is_survived() -> None:
    x = torch.zeros(3, dtype=torch.float64)

    def f(y: Tensor) -> tuple[float, Tensor]:
        value = 1 + float(y.sum()) if float(y[0]) < 1e-4 else float("nan")
        return value, torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)

    for solver in SOLVERS:
        found = box_sharpness(f, x, solver=solver)
        assert found.value > 0 and found.fmax > found.f0


def test_a_box_of_which_nothing_is_a_number_is_refused() -> None:
    x = torch.zeros(3, dtype=torch.float64)

    def f(y: Tensor) -> tuple[float, Tensor]:
        return float("nan") if y.any() else 1.0, torch.ones(3, dtype=torch.float64)

    for solver in SOLVERS:
        with pytest.raises(InputError, match=r"epsilon=0\.001: the loss overflows"):
            box_sharpness(f, x, solver=solver)


# subspaces


@pytest.fixture(params=["kept", "streamed"])
def streamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Blocks of few rows, and A kept in memory or drawn again for each product."""
    monkeypatch.setattr(subspace_module, "_ROWS", 16)
    if request.param == "streamed":
        monkeypatch.setattr(subspace_module, "_IN_MEMORY", 0)
    return bool(request.param == "streamed")


@pytest.mark.parametrize(("n", "p"), [(16, 3), (50, 7), (64, 64), (3, 1)])
def test_subspace_is_its_dense_matrix(streamed: bool, n: int, p: int) -> None:
    x, y, g = random(n, seed=1), random(p, seed=2), random(n, seed=3)
    space = Subspace(n, p, seed=4, draw=1, like=x)
    assert (space._kept is None) == streamed
    matrix = torch.cat(list(space._blocks()))
    assert matrix.shape == (n, p) and matrix.dtype == torch.float64
    torch.testing.assert_close(space.times(y), matrix @ y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(space.transpose(g), matrix.T @ g, rtol=1e-10, atol=1e-10)
    inverse = torch.linalg.pinv(matrix) @ x
    torch.testing.assert_close(space.pseudo_inverse(x), inverse, rtol=1e-8, atol=1e-8 if n == p else 1e-10)
    assert float(space.times(y) @ g) == pytest.approx(float(y @ space.transpose(g)), rel=1e-10)
    given_ = Subspace(n, p, like=x, matrix=matrix)
    assert torch.equal(given_.times(y), space.times(y))
    torch.testing.assert_close(space.pseudo_inverse(space.times(y)), y, rtol=1e-8, atol=1e-8)  # A+ A = I


def test_streamed_equals_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspace_module, "_ROWS", 16)
    x, y, f = random(50, seed=1), random(7, seed=2), diagonal(random(50) ** 2, random(50, seed=1))
    kept = Subspace(50, 7, seed=4, draw=1, like=x)
    kept_result = box_sharpness(f, x, subspace=kept)
    monkeypatch.setattr(subspace_module, "_IN_MEMORY", 0)
    streamed = Subspace(50, 7, seed=4, draw=1, like=x)
    assert kept._kept is not None and streamed._kept is None
    assert torch.equal(kept.times(y), streamed.times(y))
    assert torch.equal(kept.transpose(x), streamed.transpose(x))
    assert torch.equal(kept.pseudo_inverse(x), streamed.pseudo_inverse(x))
    assert box_sharpness(f, x, subspace=streamed).fmax == kept_result.fmax


@given(st.integers(1, 80), st.data())
@settings(max_examples=40, deadline=None)
def test_adjointness(n: int, data: st.DataObject) -> None:
    p = data.draw(st.integers(1, n))
    space = Subspace(
        n, p, seed=data.draw(st.integers(0, 1000)), draw=data.draw(st.integers(0, 9)), like=random(1)
    )
    y, g = random(p, seed=n), random(n, seed=n + 1)
    slack = 1e-10 * float(y.norm() * g.norm()) * n
    assert float(space.times(y) @ g) == pytest.approx(float(y @ space.transpose(g)), rel=1e-10, abs=slack)


def test_draws_and_seeds_differ_and_repeat() -> None:
    def matrix(seed: int, draw: int) -> Tensor:
        return torch.cat(list(Subspace(40, 5, seed=seed, draw=draw, like=random(1))._blocks()))

    assert torch.equal(matrix(0, 0), matrix(0, 0)) and torch.equal(matrix(3, 2), matrix(3, 2))
    drawn = [matrix(seed, draw) for seed in range(4) for draw in range(4)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


def test_blocks_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspace_module, "_ROWS", 8)
    blocks = list(Subspace(64, 3, like=random(1))._blocks())
    assert len(blocks) == 8 and all(not torch.equal(a, b) for a, b in itertools.combinations(blocks, 2))


def test_matrix_is_standard_normal() -> None:
    matrix = torch.cat(list(Subspace(100_000, 4, like=torch.zeros(1))._blocks()))  # two blocks
    assert matrix.shape == (100_000, 4) and matrix.dtype == torch.float32
    assert matrix.mean(0).abs().max() < 0.02 and (matrix.std(0) - 1).abs().max() < 0.02
    assert (torch.corrcoef(matrix.T) - torch.eye(4)).abs().max() < 0.02


def test_conventions(streamed: bool) -> None:
    x = random(50)
    made = {c: Subspace(50, 7, convention=c, like=x) for c in CONVENTIONS}
    dense = {c: torch.cat(list(space._blocks())) for c, space in made.items()}
    lengths = dense["gaussian"].norm(dim=0)
    torch.testing.assert_close(dense["unit_columns"], dense["gaussian"] / lengths)
    assert dense["uniform"].min() >= 0 and dense["uniform"].max() < 1 and dense["uniform"].mean() > 0.4
    for convention, space in made.items():
        torch.testing.assert_close(space.times(x[:7]), dense[convention] @ x[:7])
        torch.testing.assert_close(space.pseudo_inverse(x), torch.linalg.pinv(dense[convention]) @ x)


def test_full_space_is_the_identity() -> None:
    x, space = random(5), FullSpace(5)
    assert space.dimension == 5
    assert all(
        torch.equal(operation(x), x) for operation in (space.times, space.transpose, space.pseudo_inverse)
    )


@pytest.mark.parametrize("name", ["mnist1d", "f1-mnist-4000", "f2-fsdd-4000"])
def test_what_a_measurement_is_said_to_cost_is_about_what_it_took(name: str) -> None:
    """Over a study, as its estimate is."""
    rows = lbdist.results.load(ROOT / "experiments" / "evidence" / name).query("measure == 'sharpness'")
    said = 0.0
    for _, own in rows.groupby("measurement"):
        kinds = {key: sorted(own[key].unique()) for key in ("space", "solver", "epsilon")}
        part = BoxSharpness(epsilons=kinds["epsilon"], spaces=kinds["space"], solvers=kinds["solver"], draw=0)
        said += part.cost()
    assert 0.7 < said / rows["evaluations"].sum() < 1.4
