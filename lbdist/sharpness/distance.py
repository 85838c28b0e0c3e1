"""How far a run has moved (Keskar et al., section 2.2: LB stays close to its start)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser


@dataclass
class Distance(Measure):
    """|x - x0| in the 2-norm, and as a share of |x0|.

    Example:
        >>> import torch
        >>> at = Minimiser(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]), objective=None)
        >>> [(row["metric"], round(row["value"], 3)) for row in Distance()([at])]
        [('distance_from_start', 4.0), ('relative_distance', 1.333)]
    """

    def cost(self) -> float:
        """f is not evaluated."""
        return 0.0

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """Two rows; the second is NaN for a start at 0."""
        (minimiser,) = at
        moved = float((minimiser.x - minimiser.start).double().norm())
        length = float(minimiser.start.double().norm())
        share = moved / length if length else float("nan")
        return [
            {"metric": "distance_from_start", "value": moved},
            {"metric": "relative_distance", "value": share},
        ]
