"""Adversarial training (Keskar et al., section 4.3; Goodfellow et al., ICLR 2015)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lbdist.data.base import Dataset, are_tokens
from lbdist.errors import require
from lbdist.remedies.base import Batch, Learner, Remedy


@dataclass
class Adversarial(Remedy):
    """Trains on a mix of the samples and their fast-gradient-sign perturbations.

    The loss is weight f(x; s) + (1 - weight) f(x; s + epsilon sign(grad_s f)); the paper does not state its
    epsilon (choice).

    Attributes:
        epsilon: Size of the perturbation of each input.
        weight: Share of the clean samples (Goodfellow et al., section 6: 0.5).
    """

    epsilon: float = 0.1
    weight: float = 0.5

    def __post_init__(self) -> None:
        require(self.epsilon >= 0, "epsilon", self.epsilon, "0 or more")
        require(0 <= self.weight <= 1, "weight", self.weight, "between 0 and 1")

    def leaves_out(self, data: Dataset) -> str:
        """Whole numbers that are no pixels: a loss has no gradient with respect to them."""
        return (
            "it moves inputs along a gradient, and tokens have none" if are_tokens(data.train.inputs) else ""
        )

    def gradient(self, learner: Learner, batch: Batch) -> None:
        """The gradient of the mixed loss."""
        attacked = batch.inputs + self.epsilon * learner.input_gradient(batch).sign()
        learner.gradient(batch, weight=self.weight)
        learner.gradient(replace(batch, inputs=attacked), weight=1 - self.weight, add=True, statistics=False)

    def gradients_per_step(self) -> float:
        """The attack, the clean batch, the attacked batch."""
        return 3.0
