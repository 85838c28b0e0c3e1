"""Landscapes: loss and score along a line or a curve between two models, and over a plane around one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from lbdist.errors import require
from lbdist.networks.flat import trainable
from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser

_BATCH_NORM = "batch"
"""Between models there are no running averages; each evaluated batch has statistics, as in Keskar's code."""

SPLITS = ("train", "test")


def _rows(minimiser: Minimiser, x: Tensor, splits: Sequence[str], micro_batch_size: int) -> list[Row]:
    rows = []
    for split in splits:
        f = minimiser.objective(split=split, batch_norm=_BATCH_NORM, micro_batch_size=micro_batch_size)
        loss, score = f.measure(x)
        row = {"split": split, "batch_norm": _BATCH_NORM}
        rows.append({**row, "metric": "loss", "value": loss})
        rows.append({**row, "metric": f.loss.score, "value": score})
    return rows


@dataclass
class Slice(Measure):
    """f and the score along alpha x_1 + (1 - alpha) x_0, from a model x_0 (alpha 0) to x_1 (alpha 1).

    With `curvilinear`, along sin(alpha pi / 2) x_1 + cos(alpha pi / 2) x_0 (Keskar et al., Figures 3 and 7).
    Batch normalisation takes the statistics of each evaluated batch.

    Attributes:
        curvilinear: Whether the path is curved.
        low: First alpha.
        high: Last alpha.
        count: Points, evenly spaced.
        splits: `train` and `test`.
        micro_batch_size: Samples taken through the network at once.
    """

    points: ClassVar[int] = 2
    curvilinear: bool = False
    low: float = -1.0
    high: float = 2.0
    count: int = 25
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    micro_batch_size: int = 5000

    def __post_init__(self) -> None:
        require(-1e6 < self.low < self.high < 1e6, "high", self.high, f"above low={self.low}")
        require(2 <= self.count <= 100_000, "count", self.count, "from 2 to 100,000")
        require(set(self.splits) <= set(SPLITS), "splits", self.splits, "among train, test")
        require(self.micro_batch_size >= 1, "micro_batch_size", self.micro_batch_size, "at least 1")

    def cost(self) -> float:
        """A value at each point."""
        return len(self.splits) * self.count / 3

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """Rows `loss` and the score by `position`, alpha."""
        first, second = at
        rows = []
        for alpha in torch.linspace(self.low, self.high, self.count, dtype=torch.float64).tolist():
            one, other = alpha, 1 - alpha
            if self.curvilinear:
                one, other = math.sin(alpha * math.pi / 2), math.cos(alpha * math.pi / 2)
            x = one * second.x + other * first.x
            found = _rows(first, x, self.splits, self.micro_batch_size)
            rows += [{**row, "position": alpha, "curvilinear": self.curvilinear} for row in found]
        return rows


def filter_normalised(network: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction whose every filter is as long as that of x (Li et al. 2018, section 4).

    A filter is a row of a weight of two dimensions or more; what has one (biases, batch norm) stays.

    Args:
        network: Whose parameters x are.
        x: Shape (n,).
        generator: Draws it, on the CPU.
    """
    parts, at = [], 0
    for _, parameter in trainable(network):
        own = x[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
        if parameter.ndim < 2:
            parts.append(torch.zeros_like(own).reshape(-1))
            continue
        drawn = torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own)
        lengths = [rows.flatten(1).norm(dim=1).view(-1, *[1] * (own.ndim - 1)) for rows in (own, drawn)]
        parts.append((drawn * lengths[0] / lengths[1]).reshape(-1))
    return torch.cat(parts)


@dataclass
class Plane(Measure):
    """f and the score over x + a d_1 + b d_2 with filter-normalised random directions (Li et al. 2018).

    Batch normalisation takes the statistics of each evaluated batch.

    Attributes:
        extent: a and b run from -extent to extent.
        count: Points along each.
        splits: `train` and `test`.
        seed: Of the directions.
        micro_batch_size: Samples taken through the network at once.
    """

    extent: float = 0.5
    count: int = 21
    splits: list[str] = field(default_factory=lambda: ["train"])
    seed: int = 0
    micro_batch_size: int = 5000

    def __post_init__(self) -> None:
        require(0 < self.extent < 1e6, "extent", self.extent, "above 0")
        require(2 <= self.count <= 1000, "count", self.count, "from 2 to 1000")
        require(set(self.splits) <= set(SPLITS), "splits", self.splits, "among train, test")
        require(self.micro_batch_size >= 1, "micro_batch_size", self.micro_batch_size, "at least 1")

    def cost(self) -> float:
        """A value at each point."""
        return len(self.splits) * self.count**2 / 3

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """Rows `loss` and the score by `position` and `position_2`, a and b."""
        (minimiser,) = at
        x = minimiser.x
        f = minimiser.objective(split="train", batch_norm=_BATCH_NORM, micro_batch_size=self.micro_batch_size)
        generator = torch.Generator().manual_seed(self.seed)
        directions = [filter_normalised(f.network, x, generator) for _ in range(2)]
        steps = torch.linspace(-self.extent, self.extent, self.count, dtype=torch.float64).tolist()
        rows = []
        for a in steps:
            for b in steps:
                found = _rows(
                    minimiser, x + a * directions[0] + b * directions[1], self.splits, self.micro_batch_size
                )
                rows += [{**row, "position": a, "position_2": b} for row in found]
        return rows
