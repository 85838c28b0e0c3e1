"""The trace of the Fisher information: the mean squared length of a sample's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbdist.errors import InputError, require
from lbdist.losses import CrossEntropy
from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser, check_objective


@dataclass
class FisherTrace(Measure):
    """tr F = E |grad log p(y | sample)|^2, with y drawn from the model, or as the labels say (`empirical`).

    With signs s_i that are +1 or -1 with equal chance, E |sum_i s_i g_i|^2 = sum_i |g_i|^2: one backward pass
    of signed losses estimates the sum for a whole group of samples without any sample's own gradient, in any
    module. In groups of one it is exact.

    Attributes:
        empirical: Whether y is the label; else it is drawn from the model's softmax.
        group: Samples that share a backward pass.
        probes: Passes over the data, each with signs (and y) of its own.
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
    """

    empirical: bool = False
    group: int = 100
    probes: int = 4
    batch_norm: str = "running"

    def __post_init__(self) -> None:
        require(1 <= self.probes <= 10_000, "probes", self.probes, "from 1 to 10,000")
        require(self.group >= 1, "group", self.group, "at least 1")
        require(self.batch_norm != "batch", "batch_norm", self.batch_norm, "running or recalibrated")
        check_objective(self.batch_norm, self.group)

    def cost(self) -> float:
        """A gradient of each group in every pass."""
        return 2.0 * self.probes

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """The trace, and its standard error from the spread over groups."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.group)
        if not (self.empirical or type(f.loss) is CrossEntropy):
            raise InputError("empirical=False: must be true for a loss other than cross-entropy over classes")
        generator = torch.Generator(minimiser.x.device).manual_seed(0)
        sums: list[tuple[float, int]] = []

        def visit(outputs: Tensor, labels: Tensor) -> None:
            if not self.empirical:
                chances = outputs.detach().double().softmax(1)
                labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
            up = torch.rand(len(labels), generator=generator, device=outputs.device) < 0.5
            signed = [
                sign * f.loss.total(outputs[chosen], labels[chosen])
                for sign, chosen in ((1, up), (-1, ~up))
                if chosen.any()
            ]
            total = torch.stack(signed).sum()
            sums.append((float(f.slope(total).double().square().sum()), len(labels)))

        for _ in range(self.probes):
            f.visit(minimiser.x, visit)
        found = torch.tensor([value / count for value, count in sums], dtype=torch.float64)
        weight = torch.tensor([count for _, count in sums], dtype=torch.float64)
        mean = float((found * weight).sum() / weight.sum())
        error = (
            float((weight * (found - mean)).square().sum().sqrt() / weight.sum()) if self.group > 1 else 0.0
        )
        metric = "empirical_fisher_trace" if self.empirical else "fisher_trace"
        row = {"split": "train", "batch_norm": self.batch_norm, "evaluations": self.probes}
        return [
            {**row, "metric": metric, "value": mean},
            {**row, "metric": f"{metric}_error", "value": error},
        ]
