"""Every measure, found by listing the folder: one on made-up models whose answer is known in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lbdist.config.build import build, plain
from lbdist.config.compose import config_root
from lbdist.errors import InputError
from lbdist.losses import MeanSquaredError
from lbdist.objective import Objective
from lbdist.plan import Cell, Measurement, Point
from lbdist.results import SCHEMA
from lbdist.sharpness.evaluator import Evaluator
from lbdist.sharpness.measure import Measure, Minimiser
from lbdist.sharpness.slices import filter_normalised
from lbdist.sharpness.spectrum import lambda_max
from lbdist.storage import Store
from lbdist.training.cell import run_cell
from tests.support.cells import make_cell
from tests.support.samples import signals

NAMES = sorted(path.stem for path in (config_root() / "measure").glob("*.yaml"))
CELL = Cell(network={}, data={}, loss={}, optimizer={}, remedies=(), global_batch_size=1, epochs=1, seed=0)


def node(name: str, **changes: Any) -> dict[str, Any]:
    return {**plain(OmegaConf.load(config_root() / "measure" / f"{name}.yaml"))[name], **changes}


class Line:
    """f(x) = |X x - y|^2 / n of a linear network, whose Hessian is 2 X'X / n."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
        self.labels = self.inputs @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
        self.hessian = 2 * self.inputs.T @ self.inputs / 60
        self.x = torch.linalg.lstsq(self.inputs, self.labels[:, None]).solution[:, 0]

    def minimiser(self, start: Tensor | None = None) -> Minimiser:
        network = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Flatten(0)).double()
        network[0].weight.data = self.x[None].clone()

        def objective(split: str = "train", **options: Any) -> Objective:
            few = slice(None) if split == "train" else slice(20)  # of which the rest is the test set
            data = self.inputs[few], self.labels[few]
            return Objective(network, data, loss=MeanSquaredError(), **options)

        return Minimiser(self.x, torch.zeros(4).double() if start is None else start, objective)

    def sharpness(self, epsilon: float) -> float:
        """A convex function has its maximum over a box at a corner: all of them are tried."""
        bound = epsilon * (self.x.abs() + 1)
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4) * bound
        rises = 0.5 * ((corners @ self.hessian) * corners).sum(1)
        return float(100 * rises.max())  # f(x) = 0


LINE = Line()
EIGENVALUES = torch.linalg.eigvalsh(LINE.hessian).flip(0)
SCALED = LINE.x.abs()[:, None] * LINE.hessian * LINE.x.abs()
CORNERS = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
KNOWN: dict[str, dict[str, Any]] = {
    "sharpness": {"epsilons": [0.1], "spaces": ["full"], "solvers": ["converged"], "starts": 32},
    "lambda_max": {"tolerance": 1e-8},
    "distance": {},
    "ball": {"radius": 0.1, "steps": 2000, "tolerance": 1e-9},
    "adaptive": {"radius_2": 0.1, "radius_inf": 0.1, "steps": 2000, "tolerance": 1e-9},
    "average": {"sigma": 0.1, "draws": 4000},
    "fisher": {"empirical": True, "group": 1, "probes": 1},
    "spectrum": {"top": 3, "lanczos": 4, "thresholds": [2.0], "tolerance": 1e-8},
}
ANSWERS = {
    "sharpness": {"sharpness": LINE.sharpness(0.1)},
    "lambda_max": {"lambda_max": float(EIGENVALUES[0])},
    "distance": {"distance_from_start": float(LINE.x.norm()), "relative_distance": math.nan},
    "ball": {"ball_sharpness": 0.5 * 0.1**2 * float(EIGENVALUES[0])},
    "adaptive": {
        "adaptive_sharpness_2": 0.5 * 0.1**2 * float(torch.linalg.eigvalsh(SCALED)[-1]),
        "adaptive_sharpness_inf": 0.5 * 0.1**2 * float(((CORNERS @ SCALED) * CORNERS).sum(1).max()),
    },
    "fisher": {"empirical_fisher_trace": 0.0, "empirical_fisher_trace_error": 0.0},  # every residual is 0
}
CLOSED = sorted(ANSWERS)


def test_each_measure_has_its_closed_form() -> None:
    """Here, or in a test of its own below."""
    below = {"average", "spectrum", "rescaling", "fit", "choices", "slice", "curve", "plane", "noise_scale"}
    assert set(NAMES) == set(CLOSED) | below


@pytest.mark.parametrize("name", CLOSED)
def test_a_measure_gives_what_is_known_in_closed_form(name: str) -> None:
    measure: Measure = build(node(name, **KNOWN[name]), f"measure.{name}", kind=Measure)
    rows = measure([LINE.minimiser()])
    values = {row["metric"]: row["value"] for row in rows}
    assert values == pytest.approx(ANSWERS[name], rel=1e-6, abs=1e-20, nan_ok=True)
    assert all(set(row) <= set(SCHEMA.names) for row in rows)
    assert all(row.get("converged", True) for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_measure_are_built_and_cover_it(name: str) -> None:
    measure: Measure = build(node(name), f"measure.{name}", kind=Measure)
    parts = measure.parts(node(name), CELL)
    made = [build(part, f"measure.{name}", kind=Measure) for part in parts]
    assert made and all("metric" in each.failed() for each in made)
    if name == "sharpness":
        assert len(parts) == 6  # the full space and five subspaces, each for both boxes and solvers
        assert [(p["spaces"], p.get("draw")) for p in parts] == [
            (["full"], None),
            *((["subspace"], draw) for draw in range(5)),
        ]
        assert all(part["epsilons"] == [1e-3, 5e-4] and len(part["solvers"]) == 2 for part in parts)


def rows_of(name: str, minimiser: Minimiser, **changes: Any) -> list[dict[str, Any]]:
    measure: Measure = build(node(name, **changes), f"measure.{name}", kind=Measure)
    return measure([minimiser])


def test_fit_is_loss_and_score_on_both_splits() -> None:
    at = LINE.minimiser()
    moved = Minimiser(LINE.x + 0.1, at.start, at.objective)
    found = {(row["split"], row["metric"]): row["value"] for row in rows_of("fit", moved)}
    for split, few in (("train", 60), ("test", 20)):
        off = (0.1 * LINE.inputs[:few].sum(1)).square()
        spread = (LINE.labels[:few] - LINE.labels[:few].mean()).square().sum()
        assert found[split, "loss"] == pytest.approx(float(off.mean()), rel=1e-9)
        assert found[split, "r2"] == pytest.approx(float(1 - off.sum() / spread), rel=1e-9)


def test_choices_without_batch_norm_and_in_the_whole_space_are_one_number() -> None:
    rows = rows_of("choices", LINE.minimiser(), epsilon=0.1, conventions=[])
    boxes = [row for row in rows if row["metric"] == "sharpness"]
    assert [row["batch_norm"] for row in boxes] == ["running", "batch", "recalibrated"]
    assert [row["value"] for row in boxes] == pytest.approx([LINE.sharpness(0.1)] * 3, rel=1e-6)
    assert all(row["converged"] and row["space"] == "full" for row in boxes)
    fits = [row["value"] for row in rows if (row["metric"], row["split"]) == ("loss", "train")]
    assert fits == pytest.approx([0.0] * 3, abs=1e-20)


@pytest.mark.parametrize("name", ["slice", "curve"])
def test_a_slice_of_a_quadratic_is_a_parabola(name: str) -> None:
    first, step = LINE.minimiser(), torch.tensor([1.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    second = Minimiser(LINE.x + step, first.start, first.objective)
    measure: Measure = build(node(name, count=13), f"measure.{name}", kind=Measure)
    rows = [row for row in measure([first, second]) if row["metric"] == "loss"]
    assert [row["position"] for row in rows[::2]] == pytest.approx([-1 + 0.25 * k for k in range(13)])
    for row in rows:
        alpha = row["position"]
        one, other = (alpha, 1 - alpha)
        if name == "curve":
            one, other = math.sin(alpha * math.pi / 2), math.cos(alpha * math.pi / 2)
        off = one * (LINE.x + step) + other * LINE.x - LINE.x
        inputs = LINE.inputs[: 60 if row["split"] == "train" else 20]
        assert row["value"] == pytest.approx(float((inputs @ off).square().mean()), rel=1e-9, abs=1e-18)


def test_a_plane_has_directions_as_long_as_each_filter() -> None:
    rows = [row for row in rows_of("plane", LINE.minimiser(), count=5) if row["metric"] == "loss"]
    assert {(row["position"], row["position_2"]) for row in rows} == {
        (a / 4, b / 4) for a in range(-2, 3) for b in range(-2, 3)
    }
    generator = torch.Generator().manual_seed(0)
    network = LINE.minimiser().objective().network
    one, other = (filter_normalised(network, LINE.x, generator) for _ in range(2))
    assert one.norm() == pytest.approx(float(LINE.x.norm())) == other.norm()
    for row in rows:
        off = row["position"] * one + row["position_2"] * other
        assert row["value"] == pytest.approx(0.5 * float(off @ LINE.hessian @ off), rel=1e-9, abs=1e-18)


def test_biases_and_batch_norm_stay_in_a_plane() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    x = torch.cat([p.detach().reshape(-1) for p in network.parameters()]) + 1
    found = filter_normalised(network, x, torch.Generator().manual_seed(0))
    sizes = [p.numel() for p in network.parameters()]
    weight, bias, gamma, beta, dense, last = found.split(sizes)
    own = x.split(sizes)
    assert not any(part.any() for part in (bias, gamma, beta, last))
    torch.testing.assert_close(weight.view(2, 9).norm(dim=1), own[0].view(2, 9).norm(dim=1))
    torch.testing.assert_close(dense.view(3, 2).norm(dim=1), own[4].view(3, 2).norm(dim=1))


def test_average_sharpness_is_half_the_variance_times_the_trace() -> None:
    for adaptive, trace in ((False, EIGENVALUES.sum()), (True, SCALED.trace())):
        mean, error = rows_of("average", LINE.minimiser(), sigma=0.1, draws=3000, adaptive=adaptive)
        assert mean["value"] == pytest.approx(0.5 * 0.1**2 * float(trace), abs=5 * error["value"])
        assert 0 < error["value"] < 0.05 * mean["value"]
        assert mean["evaluations"] == 2 * 3000 + 1  # both ends of each draw, and x


def test_a_spectrum_of_which_no_eigenvalue_is_reached_has_bounds() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    data = torch.randn(40, 30, dtype=torch.float64), torch.arange(40) % 3
    f = Objective(network, data)
    minimiser = Minimiser(f.x, f.x, lambda split="train", **options: f)
    rows = rows_of("spectrum", minimiser, tolerance=1e-15, iterations=1, thresholds=[0.01])
    assert not [row for row in rows if row["metric"] == "eigenvalue"]
    (bound,) = [row for row in rows if row["metric"] == "lambda_max"]
    highest = torch.linalg.eigvalsh(torch.stack([f.curvature(f.x, v) for v in torch.eye(len(f.x)).double()]))
    assert not bound["converged"] and 0.9 < bound["value"] / float(highest[-1]) < 1 + 1e-9
    (above,) = [row for row in rows if row["metric"] == "eigenvalues_above"]
    assert above["value"] > 0 and not above["converged"]


def test_the_spectrum_is_that_of_the_dense_hessian() -> None:
    found = rows_of("spectrum", LINE.minimiser(), **KNOWN["spectrum"], probes=200)
    of = lambda metric: [row["value"] for row in found if row["metric"] == metric]  # noqa: E731
    assert of("eigenvalue") == pytest.approx(EIGENVALUES[:3].tolist(), rel=1e-6)
    assert max(of("residual")) < 1e-6 and of("lambda_max") == of("eigenvalue")[:1]
    assert of("trace")[0] == pytest.approx(float(EIGENVALUES.sum()), abs=5 * of("trace_error")[0])
    above = int((EIGENVALUES > 2).sum())
    assert of("eigenvalues_above") == [above] and of("share_above") == [above / 4]
    where = [row["position"] for row in found if row["metric"] == "density"]
    density = of("density")
    assert len(where) == 256 and min(density) >= 0
    mass = sum(density) * (where[1] - where[0])
    assert 0.75 < mass < 1.05  # some of the bumps, wide after four steps, lies beyond the ends


def test_spectra_agree_with_curvlinops_and_hessian_eigenthings() -> None:
    """Eigenvalues and Hessian products of a small network with batch norm, in float64."""
    import hessian_eigenthings
    from curvlinops import HessianLinearOperator

    classes = Classes(hidden=1)
    classes.network.eval()
    at = classes.minimiser()
    f = at.objective(micro_batch_size=17)
    data = [(classes.inputs, classes.labels)]
    theirs = HessianLinearOperator(
        classes.network, nn.CrossEntropyLoss(), list(classes.network.parameters()), data
    )
    dense = theirs @ torch.eye(len(at.x), dtype=torch.float64)
    v = torch.randn(len(at.x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(f.curvature(at.x, v), dense @ v, rtol=1e-9, atol=1e-12)
    known = torch.linalg.eigvalsh(dense).flip(0)
    found = rows_of("spectrum", at, top=5, tolerance=1e-9, lanczos=20, iterations=200)
    values = [row["value"] for row in found if row["metric"] == "eigenvalue"]
    assert values == pytest.approx(known[:5].tolist(), rel=1e-6)
    operator = hessian_eigenthings.HessianOperator(
        classes.network, data, lambda network, batch: nn.functional.cross_entropy(network(batch[0]), batch[1])
    )
    other = hessian_eigenthings.lanczos(
        operator, k=5, which="LA", max_iter=len(at.x) - 1, seed=0, reorthogonalize=True
    )
    assert sorted(other.eigenvalues.tolist())[::-1] == pytest.approx(values, rel=1e-6)


def test_counts_beyond_the_largest_eigenvalues_are_estimates_and_say_so() -> None:
    found = rows_of("spectrum", LINE.minimiser(), top=1, lanczos=4, thresholds=[0.0, 1e6], probes=50)
    counts = {row["position"]: row for row in found if row["metric"] == "eigenvalues_above"}
    assert counts[0.0]["value"] == pytest.approx(4) and not counts[0.0]["converged"]
    assert counts[1e6]["value"] == 0 and counts[1e6]["converged"]


class Classes:
    """A linear classifier on random data, in float64, away from any minimum."""

    def __init__(self, hidden: int = 0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(50, 4, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(0, 3, (50,), generator=generator)
        torch.manual_seed(0)
        layers = (
            [nn.Linear(4, 8), nn.BatchNorm1d(8).eval(), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
            if hidden
            else []
        )
        self.network = nn.Sequential(*layers, nn.Linear(8 if hidden else 4, 3)).double()

    def minimiser(self) -> Minimiser:
        def objective(**options: Any) -> Objective:
            return Objective(self.network, (self.inputs, self.labels), **options)

        x = torch.cat([p.detach().reshape(-1) for p in self.network.parameters()])
        return Minimiser(x, torch.zeros_like(x), objective)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Each sample's gradient of log p(y) for each class y, (N, C, n), and p, (N, C)."""
        logs = self.network(self.inputs).log_softmax(1)
        found = [
            torch.cat(
                [
                    g.reshape(-1)
                    for g in torch.autograd.grad(one, list(self.network.parameters()), retain_graph=True)
                ]
            )
            for one in logs.reshape(-1)
        ]
        return torch.stack(found).reshape(50, 3, -1), logs.exp().detach()


def test_the_fisher_trace_is_the_mean_squared_gradient() -> None:
    classes = Classes()
    gradients, p = classes.gradients()
    squares = gradients.square().sum(2)
    labelled = float(squares[torch.arange(50), classes.labels].mean())
    exact = rows_of("fisher", classes.minimiser(), empirical=True, group=1, probes=1)
    assert exact[0]["value"] == pytest.approx(labelled, rel=1e-9) and exact[1]["value"] == 0
    for empirical, known in ((True, labelled), (False, float((p * squares).sum(1).mean()))):
        mean, error = rows_of("fisher", classes.minimiser(), empirical=empirical, group=10, probes=400)
        assert mean["value"] == pytest.approx(known, abs=5 * error["value"])
        assert error["value"] < 0.1 * known


@pytest.mark.parametrize("group", [1, 7, 10])
def test_the_noise_scale_is_the_covariance_over_the_squared_gradient(group: int) -> None:
    classes = Classes()
    classes.labels = classes.labels.sort().values  # as many data sets lie
    gradients, _ = classes.gradients()
    own = gradients[torch.arange(50), classes.labels]
    whole = own.mean(0)
    variance, square = float((own - whole).square().sum(1).mean()), float(whole.square().sum())
    found = {row["metric"]: row["value"] for row in rows_of("noise_scale", classes.minimiser(), group=group)}
    assert found["gradient_square"] == pytest.approx(square, rel=1e-9)
    if group == 1:
        assert found["gradient_variance"] == pytest.approx(variance, rel=1e-9)
        assert found["noise_scale"] == pytest.approx(variance / square, rel=1e-9)
    error = found["noise_scale_error"] * square
    assert abs(found["gradient_variance"] - variance) < 4 * error < 4 * variance
    with pytest.raises(InputError, match="group=26: must be at most half of the 50 training samples"):
        rows_of("noise_scale", classes.minimiser(), group=26)


def test_m_sharpness_is_the_mean_over_parts() -> None:
    """Of one sample a part: each sample's own quadratic, 2 (x.d)^2 / 2, rises by radius^2 |x|^2."""
    (row,) = rows_of("ball", LINE.minimiser(), radius=0.1, m=1, steps=50, tolerance=1e-8)
    assert row["value"] == pytest.approx(0.1**2 * float(LINE.inputs.square().sum(1).mean()), rel=1e-6)
    (whole,) = rows_of("ball", LINE.minimiser(), radius=0.1, m=None, steps=2000, tolerance=1e-8)
    assert whole["value"] <= row["value"]


def test_normalised_logits_do_not_see_the_scale_of_the_last_layer() -> None:
    values = []
    for factor in (1.0, 7.0):
        classes = Classes()
        with torch.no_grad():
            for p in classes.network.parameters():
                p *= factor
        values.append(
            [
                [
                    row["value"]
                    for row in rows_of(
                        "adaptive", classes.minimiser(), normalise_logits=normalise, radius_2=0.05
                    )
                ]
                for normalise in (True, False)
            ]
        )
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-6)
    assert values[0][1] != pytest.approx(values[1][1], rel=0.1)


def test_the_audit_tells_what_a_rescaling_moves() -> None:
    inner = {
        "sharpness": node("sharpness", epsilons=[1e-3], spaces=["full"], solvers=["converged"]),
        "ball": node("ball"),
        "adaptive": node("adaptive", radius_2=0.05),
        "lambda_max": node("lambda_max"),
    }
    found = rows_of("rescaling", Classes(hidden=1).minimiser(), factors=[0.25, 1, 4], measures=inner)
    assert {row["start"] for row in found} == {
        "0, 1"
    }  # the first layer and its batch norm, whose running mean is 0
    moved = {}
    for metric in {row["metric"] for row in found}:
        values = [row["value"] for row in found if row["metric"] == metric]
        moved[metric] = max(values) / min(values) - 1
    assert moved["rescaled_adaptive_sharpness_2"] < 1e-3 and moved["rescaled_adaptive_sharpness_inf"] < 1e-5
    for metric in ("sharpness", "ball_sharpness", "lambda_max"):
        assert moved[f"rescaled_{metric}"] > 0.01


def test_a_network_without_layers_to_rescale_is_refused() -> None:
    with pytest.raises(InputError, match="rescaling: needs two layers"):
        rows_of("rescaling", LINE.minimiser(), measures={"ball": node("ball")})


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_lambda_max_of_a_matrix(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    value, converged, products = lambda_max(lambda v: matrix @ v, matrix[0], tolerance=1e-9, iterations=100)
    assert converged and value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-7)
    assert products >= 1


def test_lambda_max_that_is_not_reached_is_a_lower_bound_and_says_so() -> None:
    matrix = torch.diag(torch.linspace(0, 1, 400, dtype=torch.float64) ** 0.05)
    value, converged, _ = lambda_max(lambda v: matrix @ v, matrix[0], tolerance=1e-12, iterations=1)
    assert not converged and 0 < value <= 1


def test_curvature_is_the_hessians_product() -> None:
    f = LINE.minimiser().objective(micro_batch_size=7)
    for v in torch.eye(4, dtype=torch.float64):
        torch.testing.assert_close(f.curvature(LINE.x + 1, v), LINE.hessian @ v)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("sharpness", {"epsilons": [0]}, "measure.sharpness.epsilons=[0.0]: must be all from 1e-7 to 1e3"),
        ("sharpness", {"solvers": ["x"]}, "measure.sharpness.solvers=['x']: must be among paper, converged"),
        ("sharpness", {"remedy_solvers": ["x"]}, "measure.sharpness.remedy_solvers=['x']: must be among"),
        (
            "sharpness",
            {"spaces": ["half"]},
            "measure.sharpness.spaces=['half']: must be among full, subspace",
        ),
        ("sharpness", {"batch_norm": "x"}, "measure.sharpness.batch_norm=x: must be running"),
        ("sharpness", {"draws": 0}, "measure.sharpness.draws=0: must be from 1 to 10,000"),
        ("lambda_max", {"tolerance": 2}, "measure.lambda_max.tolerance=2.0: must be between 0 and 1"),
        ("ball", {"radius": 0}, "measure.ball.radius=0.0: must be above 0"),
        ("ball", {"m": 0}, "measure.ball.m=0: must be null or at least 1"),
        ("adaptive", {"norms": ["1"]}, "measure.adaptive.norms=['1']: must be among 2, inf"),
        ("adaptive", {"radius_inf": -1}, "measure.adaptive.radius_inf=-1.0: must be above 0"),
        ("average", {"sigma": 0}, "measure.average.sigma=0.0: must be above 0"),
        ("average", {"draws": 1}, "measure.average.draws=1: must be from 2 to 10,000"),
        ("noise_scale", {"batch_norm": "batch"}, "measure.noise_scale.batch_norm=batch: must be running or"),
        ("noise_scale", {"group": 0}, "measure.noise_scale.micro_batch_size=0: must be at least 1"),
        ("fisher", {"batch_norm": "batch"}, "measure.fisher.batch_norm=batch: must be running or"),
        ("spectrum", {"lanczos": 1}, "measure.spectrum.lanczos=1: must be from 2 to 10,000"),
        ("rescaling", {"measures": {}}, "measure.rescaling.measures={}: must be one or more measures"),
        ("lambda_max", {"iterations": 0}, "measure.lambda_max.iterations=0: must be at least 1"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(name: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        build(node(name, **fields), f"measure.{name}")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "lbdist.sharpness.ball.BallSharpness", "radius": 1e30},
        {"_target_": "lbdist.sharpness.average.AverageSharpness", "sigma": 1e30},
        {"_target_": "lbdist.sharpness.adaptive.AdaptiveSharpness", "radius_2": 1e30, "radius_inf": 1e30},
    ],
)
def test_what_overflows_is_not_measured_and_says_so(node: dict[str, Any], tmp_path: Path) -> None:
    cell, data, store = make_cell(), signals(), Store(tmp_path)
    run_cell(cell, data, store)
    rows = Evaluator(data, store, "cpu").measure(Measurement({**node, "name": "m"}, (Point(cell),)))
    assert rows and all(math.isnan(row["value"]) and "overflows" in row["error"] for row in rows)
    assert not any(row.get("converged") for row in rows)
