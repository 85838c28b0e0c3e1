"""Every measure, found by listing the folder: one on made-up models whose answer is known in closed form."""

from __future__ import annotations

import math
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
from lbdist.plan import Cell
from lbdist.results import SCHEMA
from lbdist.sharpness.measure import Measure, Minimiser
from lbdist.sharpness.spectrum import lambda_max

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

        def objective(**options: Any) -> Objective:
            return Objective(network, (self.inputs, self.labels), loss=MeanSquaredError(), **options)

        return Minimiser(self.x, torch.zeros(4).double() if start is None else start, objective)

    def sharpness(self, epsilon: float) -> float:
        """A convex function has its maximum over a box at a corner: all of them are tried."""
        bound = epsilon * (self.x.abs() + 1)
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4) * bound
        rises = 0.5 * ((corners @ self.hessian) * corners).sum(1)
        return float(100 * rises.max())  # f(x) = 0


LINE = Line()
KNOWN: dict[str, dict[str, Any]] = {
    "sharpness": {"epsilons": [0.1], "spaces": ["full"], "solvers": ["converged"], "starts": 32},
    "lambda_max": {"tolerance": 1e-8},
    "distance": {},
}
ANSWERS = {
    "sharpness": {"sharpness": LINE.sharpness(0.1)},
    "lambda_max": {"lambda_max": float(torch.linalg.eigvalsh(LINE.hessian)[-1])},
    "distance": {"distance_from_start": float(LINE.x.norm()), "relative_distance": math.nan},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_gives_what_is_known_in_closed_form(name: str) -> None:
    measure: Measure = build(node(name, **KNOWN[name]), f"measure.{name}", kind=Measure)
    rows = measure([LINE.minimiser()])
    values = {row["metric"]: row["value"] for row in rows}
    assert values == pytest.approx(ANSWERS[name], rel=1e-6, nan_ok=True)
    assert all(set(row) <= set(SCHEMA.names) for row in rows)
    assert all(row.get("converged", True) for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_measure_are_built_and_cover_it(name: str) -> None:
    measure: Measure = build(node(name), f"measure.{name}", kind=Measure)
    parts = measure.parts(node(name), CELL)
    made = [build(part, f"measure.{name}", kind=Measure) for part in parts]
    assert made and all("metric" in each.failed() for each in made)
    if name == "sharpness":
        assert len(parts) == 8  # two boxes, spaces and solvers
        values = [value for each in made for value in each._values()]
        assert sorted(values) == sorted(measure._values())


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
        ("lambda_max", {"iterations": 0}, "measure.lambda_max.iterations=0: must be at least 1"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(name: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        build(node(name, **fields), f"measure.{name}")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
