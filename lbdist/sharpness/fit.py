"""How well a model fits: loss and score on the training and the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser, check_objective


@dataclass
class Fit(Measure):
    """Mean loss and score on both splits, which tell whether a checkpoint is what it is taken for.

    Attributes:
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
        micro_batch_size: Samples taken through the network at once.
    """

    batch_norm: str = "running"
    micro_batch_size: int = 1000

    def __post_init__(self) -> None:
        check_objective(self.batch_norm, self.micro_batch_size)

    def cost(self) -> float:
        """A value on either split."""
        return 2 / 3

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """Rows `loss` and `accuracy` (or what the loss's score is) on each `split`."""
        (minimiser,) = at
        rows = []
        for split in ("train", "test"):
            f = minimiser.objective(
                split=split, batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size
            )
            loss, score = f.measure(minimiser.x)
            row = {"split": split, "batch_norm": self.batch_norm}
            rows.append({**row, "metric": "loss", "value": loss})
            rows.append({**row, "metric": f.loss.score, "value": score})
        return rows
