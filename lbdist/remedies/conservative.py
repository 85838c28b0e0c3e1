"""Conservative training (Keskar et al., section 4.2 and Table 7; Li et al., KDD 2014)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbdist.errors import require
from lbdist.remedies.base import Batch, Learner, Remedy


@dataclass
class Conservative(Remedy):
    """Solves a proximal sub-problem on each batch: x_{k+1} = argmin_x f_B(x) + lambda/2 |x - x_k|^2.

    Attributes:
        proximal: lambda (paper: 1e-3).
        iterations: Inexact solution by this many steps of the optimiser (paper: 3 of ADAM).
    """

    proximal: float = 1e-3
    iterations: int = 3

    def __post_init__(self) -> None:
        require(self.proximal >= 0, "proximal", self.proximal, "0 or more")
        require(self.iterations >= 1, "iterations", self.iterations, "at least 1")

    def step(self, learner: Learner, batch: Batch, gradient: Callable[[], None]) -> None:
        """A few optimiser steps on f_B + lambda/2 |x - x_k|^2."""
        centre = learner.x.clone()
        for _ in range(self.iterations):
            gradient()
            learner.g.add_(learner.x - centre, alpha=self.proximal)
            learner.update()

    def gradients_per_step(self) -> float:
        """One gradient per iteration."""
        return float(self.iterations)
