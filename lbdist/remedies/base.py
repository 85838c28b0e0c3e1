"""What a remedy is: hooks into the training loop.

    for epoch in epochs:
        for batch in batches(seed, epoch, remedy.batch_size(...)):   # this worker's slice of each
            batch = remedy.transform(batch)        # augmentation
            remedy.step(learner, batch)            # one gradient step, or several
        remedy.after_epoch(learner, batch)         # say, whether to grow the batch
        evaluate; report; checkpoint

Every gradient that a hook sees is the global one, summed over the workers, so a remedy gives the same
trajectory on any number of them. A remedy is a dataclass: its fields are its hyperparameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lbdist import random


@dataclass(frozen=True)
class Batch:
    """This worker's slice of a global batch.

    Attributes:
        inputs: Samples, floating point, of shape (N, ...); N may be 0.
        labels: Classes, int64 of shape (N,).
        samples: Numbers of the samples in the training set, int64 of shape (N,).
        size: Samples in the whole global batch.
        offset: Position of the slice's first sample in the global batch.
        seed: The run's seed.
        epoch: The epoch.
    """

    inputs: Tensor
    labels: Tensor
    samples: Tensor
    size: int
    offset: int
    seed: int
    epoch: int

    def keys(self, stream: int) -> Tensor:
        """One random key a sample for a consumer (see `lbdist.random.keys`)."""
        return random.keys(self.samples, seed=self.seed, epoch=self.epoch, stream=stream)

    def local(self, start: int, stop: int) -> Batch:
        """The slice's own samples start to stop, still of the same global batch."""
        cut = slice(start, stop)
        return replace(
            self,
            inputs=self.inputs[cut],
            labels=self.labels[cut],
            samples=self.samples[cut],
            offset=self.offset + start,
        )

    def part(self, start: int, stop: int) -> Batch:
        """This worker's slice of the sub-batch of global positions start to stop, a batch of its own."""
        low, high = (min(max(at - self.offset, 0), len(self.labels)) for at in (start, stop))
        cut = self.local(low, high)
        return replace(cut, size=min(stop, self.size) - start, offset=max(cut.offset - start, 0))


class Learner(Protocol):
    """What a remedy may do with the network in training.

    Attributes:
        x: Parameters, shape (n,); written in place.
        g: The global gradient that `gradient` left there, shape (n,); written in place.
    """

    x: Tensor
    g: Tensor

    def gradient(
        self, batch: Batch, *, weight: float = 1.0, add: bool = False, statistics: bool = True
    ) -> None:
        """Sets g to the gradient of the global batch's mean loss at x.

        Args:
            batch: This worker's slice.
            weight: Factor of the loss.
            add: Adds to g instead of replacing it.
            statistics: Whether the running averages of batch norm take part.
        """

    def input_gradient(self, batch: Batch) -> Tensor:
        """The gradient of the global batch's summed loss with respect to this worker's inputs."""

    def update(self) -> None:
        """One step of the optimiser along g."""


@dataclass
class Remedy:
    """No remedy: plain mini-batch training. The others override its hooks."""

    def batch_size(self, full: int, epoch: int, epochs: int) -> int:
        """The global batch of an epoch (from 0) of a run of `epochs`, given the cell's full batch."""
        return full

    def transform(self, batch: Batch) -> Batch:
        """Changes the samples of a batch."""
        return batch

    def step(self, learner: Learner, batch: Batch) -> None:
        """Takes one training step on a batch."""
        learner.gradient(batch)
        learner.update()

    def after_epoch(self, learner: Learner, batch: Batch) -> None:
        """Looks back on an epoch; `batch` is its last whole one."""

    def gradients_per_step(self) -> float:
        """Gradient evaluations a step, for estimates of time."""
        return 1.0

    def state(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""


@torch.no_grad()
def project_to_ball(step: Tensor, radius: float, norm: str) -> Tensor:
    """The step of the given length along a gradient: steepest ascent in the 2-norm or the max-norm."""
    if norm == "inf":
        return radius * step.sign()
    return step * (radius / step.norm().clamp_min(torch.finfo(step.dtype).tiny))
