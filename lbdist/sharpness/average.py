"""Average-case sharpness: how far the loss rises under Gaussian noise on the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lbdist.errors import require
from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser, check_objective


@dataclass
class AverageSharpness(Measure):
    """The mean of f(x + d) - f(x) over d from N(0, sigma^2 I), or from N(0, sigma^2 diag(x^2)).

    At a minimum it is sigma^2 tr(H) / 2 for small sigma. Draws come in pairs d and -d, of which the odd
    part of f cancels.

    Attributes:
        sigma: Standard deviation of the noise.
        adaptive: Whether each coordinate's noise is as large as the coordinate (Andriushchenko et al. 2023).
        draws: Pairs of draws.
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
        micro_batch_size: Samples taken through the network at once.
    """

    sigma: float = 0.01
    adaptive: bool = False
    draws: int = 10
    batch_norm: str = "running"
    micro_batch_size: int = 1000

    def __post_init__(self) -> None:
        require(0 < self.sigma < float("inf"), "sigma", self.sigma, "above 0")
        require(2 <= self.draws <= 10_000, "draws", self.draws, "from 2 to 10,000")
        check_objective(self.batch_norm, self.micro_batch_size)

    def cost(self) -> float:
        """A value for each draw and its opposite."""
        return 2 * self.draws / 3

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """The mean, and its standard error."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size)
        x = minimiser.x
        generator = torch.Generator(x.device).manual_seed(0)
        scale = self.sigma * (x.abs() if self.adaptive else torch.ones_like(x))
        f0, rises = f.value(x), []
        for _ in range(self.draws):
            d = scale * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            rises.append((f.value(x + d) + f.value(x - d)) / 2 - f0)
        found = torch.tensor(rises, dtype=torch.float64)
        metric = "adaptive_average_sharpness" if self.adaptive else "average_sharpness"
        row = {"split": "train", "batch_norm": self.batch_norm, "evaluations": 2 * self.draws + 1}
        error = float(found.std()) / self.draws**0.5
        return [
            {**row, "metric": metric, "value": float(found.mean())},
            {**row, "metric": f"{metric}_error", "value": error},
        ]
