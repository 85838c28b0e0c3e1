"""The gradient noise scale: from which batch on a step is hardly less noisy for more samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbdist.errors import require
from lbdist.random import permutation
from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser, check_objective


@dataclass
class NoiseScale(Measure):
    """B_simple = tr Sigma / |G|^2 (McCandlish et al., arXiv:1812.06162, section 2.2), in samples.

    G is the gradient over the whole training set, and Sigma the covariance of a sample's own. Groups of b of
    the N samples, drawn without replacement, have E |g - G|^2 = tr Sigma / b * (N - b) / (N - 1), which gives
    tr Sigma without any sample's own gradient, and without a bias, since G is known.

    Attributes:
        group: Samples in a group.
        batch_norm: Statistics while measuring: `running` or `recalibrated`, by which samples are independent.
    """

    group: int = 32
    batch_norm: str = "running"

    def __post_init__(self) -> None:
        check_objective(self.batch_norm, self.group)
        require(self.batch_norm != "batch", "batch_norm", self.batch_norm, "running or recalibrated")

    def check_samples(self, samples: int) -> None:
        """There are two groups or more."""
        require(
            2 * self.group <= samples, "group", self.group, f"at most half of the {samples} training samples"
        )

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """Rows `noise_scale`, its standard error `noise_scale_error` by the spread over the groups,
        `gradient_variance` (tr Sigma) and `gradient_square` (|G|^2).
        """
        (minimiser,) = at
        x = minimiser.x
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.group)
        samples = len(f.labels)
        self.check_samples(samples)
        _, whole = f(x)
        # groups by chance: the data may be sorted
        shuffled = f.over(permutation(samples, seed=0, epoch=0))
        found: list[tuple[float, int]] = []

        def visit(outputs: Tensor, labels: Tensor) -> None:
            slope = f.slope(f.loss.total(outputs, labels)) / len(labels)
            found.append((float((slope - whole).double().square().sum()), len(labels)))

        shuffled.visit(x, visit)
        apart, sizes = torch.tensor(found, dtype=torch.float64).unbind(1)
        variances = apart * sizes * (samples - 1) / (samples - sizes)
        variance, square = float(variances.mean()), float(whole.double().square().sum())
        error = float(variances.std() / len(found) ** 0.5)
        row = {"split": "train", "batch_norm": self.batch_norm, "evaluations": 2}
        values = {
            "noise_scale": variance / square if square else float("inf"),
            "noise_scale_error": error / square if square else float("inf"),
            "gradient_variance": variance,
            "gradient_square": square,
        }
        return [{**row, "metric": metric, "value": value} for metric, value in values.items()]
