"""The learning rate during training: a warm-up, then constant, along a cosine, or in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LearningRate:
    """A factor on the learning rate, a function of the epoch, of which a step is a part.

    Attributes:
        warmup: Epochs in which it rises linearly (Goyal et al., arXiv:1706.02677, section 2.2).
        decay: `constant`; `cosine`, to zero (Loshchilov & Hutter, ICLR 2017, equation 5); `step`.
        milestones: Of `step`: the parts of the run after each of which it falls.
        gamma: Of `step`: by which factor.
    """

    warmup: float = 0.0
    decay: str = "constant"
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    gamma: float = 0.1

    def factor(self, step: int, steps: int, epoch: int, epochs: int) -> float:
        """The factor of a step.

        Args:
            step: The step's number in its epoch, from 0.
            steps: Steps of the epoch.
            epoch: The epoch, from 0.
            epochs: Epochs of the run.

        Example:
            >>> [round(LearningRate(warmup=1).factor(k, 4, 0, 10), 3) for k in range(4)]
            [0.25, 0.5, 0.75, 1.0]
            >>> [round(LearningRate(decay="cosine").factor(0, 4, epoch, 4), 3) for epoch in range(4)]
            [1.0, 0.854, 0.5, 0.146]
            >>> [round(LearningRate(decay="step").factor(0, 4, epoch, 4), 3) for epoch in range(4)]
            [1.0, 1.0, 0.1, 0.01]
        """
        before, after = epoch + step / steps, epoch + (step + 1) / steps
        if after <= self.warmup:
            return after / self.warmup
        if self.decay == "cosine":
            gone = max(0.0, before - self.warmup)  # the warm-up may end within a step
            return (1 + math.cos(math.pi * gone / (epochs - self.warmup))) / 2
        if self.decay == "step":
            return self.gamma ** sum(before >= part * epochs for part in self.milestones)
        return 1.0
