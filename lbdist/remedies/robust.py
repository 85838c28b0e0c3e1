"""Robust training in weight space (Keskar et al., section 4.3: stated there, not run)."""

from __future__ import annotations

from dataclasses import dataclass

from lbdist.errors import require
from lbdist.remedies.base import Batch, Learner, Remedy, project_to_ball


@dataclass
class Robust(Remedy):
    """min over x of the max over |d| <= rho of f_B(x + d), the inner maximum by projected ascent.

    One ascent step in the 2-norm is sharpness-aware minimisation (Foret et al., ICLR 2021, equation 2). The
    perturbation comes from the global gradient (m-sharpness with m = the global batch).

    Attributes:
        rho: Radius of the ball.
        ascent_steps: Projected ascent steps k, each of length rho / k.
        norm: `2` or `inf`.
    """

    rho: float = 0.5
    ascent_steps: int = 1
    norm: str = "2"

    def __post_init__(self) -> None:
        require(self.rho >= 0, "rho", self.rho, "0 or more")
        require(self.ascent_steps >= 1, "ascent_steps", self.ascent_steps, "at least 1")
        require(self.norm in ("2", "inf"), "norm", self.norm, "2 or inf")

    def gradient(self, learner: Learner, batch: Batch) -> None:
        """The gradient at the point that an ascent from x reaches."""
        centre = learner.x.clone()
        learner.gradient(batch)
        # k steps of length rho / k stay in the ball by the triangle inequality
        for _ in range(self.ascent_steps):
            learner.x.add_(project_to_ball(learner.g, self.rho / self.ascent_steps, self.norm))
            learner.gradient(batch, statistics=False)
        learner.x.copy_(centre)

    def gradients_per_step(self) -> float:
        """One at x, one after each ascent step."""
        return 1.0 + self.ascent_steps
