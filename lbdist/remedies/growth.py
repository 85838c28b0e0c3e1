"""Dynamic sampling: the batch grows during training (Keskar et al., section 5; Byrd et al. 2012)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch

from lbdist.errors import require
from lbdist.remedies.base import Batch, Learner, Remedy


@dataclass
class Growth(Remedy):
    """Starts from the small batch and ends at the large one.

    `schedule` multiplies the batch by a constant factor at equal intervals, so that the small batch is
    reached at epoch 0 and the large one for the last interval (Smith et al., ICLR 2018). `norm_test` grows it
    when a sample of the gradients says that the batch is too small to give a descent direction (Byrd et
    al., Math. Program. 2012, section 3): |Var|_1 / B <= theta^2 |g|^2, with the variance estimated over the
    groups of one batch at the end of an epoch; if it fails, the batch becomes |Var|_1 / (theta^2 |g|^2).

    Attributes:
        start: First global batch.
        stages: Batch sizes of the schedule, the first and the last included.
        rule: `schedule` or `norm_test`.
        theta: Tolerance of the norm test.
        groups: Groups into which a batch is cut to estimate the variance.
    """

    start: int = 32
    stages: int = 4
    rule: str = "schedule"
    theta: float = 1.0
    groups: int = 8

    def __post_init__(self) -> None:
        require(self.start >= 1, "start", self.start, "at least 1")
        require(self.stages >= 2, "stages", self.stages, "at least 2")
        require(self.rule in ("schedule", "norm_test"), "rule", self.rule, "schedule or norm_test")
        require(self.theta > 0, "theta", self.theta, "above 0")
        require(self.groups >= 2, "groups", self.groups, "at least 2")
        self._current = self.start

    def batch_size(self, full: int, epoch: int, epochs: int) -> int:
        """The batch of an epoch, never above the cell's."""
        if self.rule == "norm_test":
            return min(self._current, full)
        stage = min(self.stages - 1, epoch * self.stages // epochs)
        return min(full, round(self.start * (full / self.start) ** (stage / (self.stages - 1))))

    def after_epoch(self, learner: Learner, batch: Batch) -> None:
        """Runs the norm test on the groups of the epoch's last whole batch."""
        if self.rule != "norm_test" or batch.size < 2 * self.groups:
            return
        total, squares = torch.zeros_like(learner.g), torch.zeros_like(learner.g)
        bounds = [batch.size * j // self.groups for j in range(self.groups + 1)]
        for start, stop in itertools.pairwise(bounds):
            learner.gradient(batch.part(start, stop), statistics=False)
            total += learner.g
            squares += learner.g**2
        mean = total / self.groups
        # unbiased variance of a group's gradient, times the group's size, is a sample's
        variance = (squares - self.groups * mean**2).sum() / (self.groups - 1) * (batch.size / self.groups)
        wanted = float(variance / (self.theta**2 * (mean**2).sum()))
        if math.isfinite(wanted):
            self._current = max(self._current, math.ceil(wanted))

    def state(self) -> dict[str, Any]:
        """The batch that the norm test has reached."""
        return {"current": self._current}

    def restore(self, state: dict[str, Any]) -> None:
        """Sets the batch to the one in the state."""
        self._current = state["current"]
