"""Adaptive worst-case sharpness, which a rescaling of layers does not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lbdist.errors import require
from lbdist.losses import NormalisedLogits
from lbdist.objective import Objective
from lbdist.results import Row
from lbdist.sharpness.ball import Rise, check_ball, in_parts, mean_rise, worst_case
from lbdist.sharpness.measure import Measure, Minimiser, check_objective
from lbdist.sharpness.neighbourhood import Neighbourhood
from lbdist.sharpness.solvers import Effort

NORMS = ("2", "inf")


@dataclass
class AdaptiveSharpness(Measure):
    """max over |d / |x||_p <= radius of f(x + d) - f(x) (Kwon et al. 2021; Andriushchenko et al. 2023).

    Coordinates are measured in their own size, so that multiplying one layer and dividing the next by a
    number leaves it alone. With `normalise_logits` so does a number that multiplies the last layer, as a
    longer training does.

    Attributes:
        norms: `2` and `inf`.
        radius_2: Size of the ball in the 2-norm.
        radius_inf: Size of the ball in the maximum norm.
        normalise_logits: Whether each sample's outputs are divided by their standard deviation over classes.
        m: Samples of a part, each of which has a maximum of its own; None for all at once.
        steps: Most steps of an ascent in the 2-ball.
        tolerance: Share of the rise to which starts agree.
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
        micro_batch_size: Samples taken through the network at once.
    """

    norms: list[str] = field(default_factory=lambda: list(NORMS))
    radius_2: float = 0.5
    radius_inf: float = 2e-3
    normalise_logits: bool = False
    m: int | None = None
    steps: int = 20
    tolerance: float = 0.01
    batch_norm: str = "running"
    micro_batch_size: int = 1000

    def __post_init__(self) -> None:
        require(set(self.norms) <= set(NORMS), "norms", self.norms, "among 2, inf")
        for radius in ("radius_2", "radius_inf"):
            require(0 < getattr(self, radius) < float("inf"), radius, getattr(self, radius), "above 0")
        check_ball(self.radius_2, self.m, self.steps, self.tolerance)
        check_objective(self.batch_norm, self.micro_batch_size)

    def _rise(self, f: Objective, x: Tensor, norm: str) -> Rise:
        if norm == "2":
            steps, tolerance = self.steps, self.tolerance
            return worst_case(f, x, self.radius_2, scale=x.abs(), steps=steps, tolerance=tolerance)
        near = Neighbourhood(f, x, scale=x.abs())  # a box, as Metric 2.1 has one
        found = near.sharpness(self.radius_inf, effort=Effort(tolerance=self.tolerance, from_paper=False))
        return Rise(found.fmax - found.f0, found.converged, found.evaluations)

    def cost(self) -> float:
        """Three ascents in the 2-norm; in the maximum norm the search of Metric 2.1."""
        of_norm = {"2": 3.0 * min(self.steps, 8), "inf": 40.0}
        return sum(of_norm[norm] for norm in self.norms)

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """A row per norm."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size)
        if self.normalise_logits:
            f = f.under(NormalisedLogits(f.loss))
        rows = []
        for norm in self.norms:
            rises = [(self._rise(part, minimiser.x, norm), share) for part, share in in_parts(f, self.m)]
            metric = f"adaptive_sharpness_{norm}" + ("_normalised" if self.normalise_logits else "")
            rows.append({"metric": metric, "batch_norm": self.batch_norm, **mean_rise(rises)})
        return rows
