"""What a remedy is: hooks into the training loop.

    for epoch in epochs:
        for batch in batches(seed, epoch, remedy.batch_size(...)):   # this worker's slice of each
            batch = remedy.transform(batch)                # augmentation
            remedy.step(learner, batch, gradient)          # what is done with g: one step, or several
        remedy.after_epoch(learner, batch)                 # say, whether to grow the batch
        evaluate; report; checkpoint

where `gradient()` is `remedy.gradient(learner, batch)`: what g is, the plain gradient, SAM's, a mixture.
Remedies combine as long as no two of them say what the batch size, g or the step is (see `combine`).

Every gradient that a hook sees is the global one, summed over the workers, so a remedy gives the same
trajectory on any number of them. A remedy is a dataclass: its fields are its hyperparameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lbdist import random
from lbdist.config.build import build
from lbdist.data.base import Dataset
from lbdist.errors import InputError
from lbdist.plan import Node


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

    def leaves_out(self, data: Dataset) -> str:
        """Why it cannot take such inputs; empty where it can."""
        return ""

    def batch_size(self, full: int, epoch: int, epochs: int) -> int:
        """The global batch of an epoch (from 0) of a run of `epochs`, given the cell's full batch."""
        return full

    def transform(self, batch: Batch) -> Batch:
        """Changes the samples of a batch."""
        return batch

    def gradient(self, learner: Learner, batch: Batch) -> None:
        """Sets g to what the step is to go along, at x."""
        learner.gradient(batch)

    def step(self, learner: Learner, batch: Batch, gradient: Callable[[], None]) -> None:
        """Takes one training step on a batch; `gradient()` sets g at the present x."""
        gradient()
        learner.update()

    def after_epoch(self, learner: Learner, batch: Batch) -> None:
        """Looks back on an epoch; `batch` is its last whole one."""

    def gradients_per_step(self) -> float:
        """Gradient evaluations that a step takes with this remedy, for estimates of time."""
        return 1.0

    def state(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""


class Combined(Remedy):
    """Several remedies at once: transforms follow each other, other hooks come from the one that has them.

    Args:
        members: The remedies by name.

    Raises:
        InputError: Two of them say what the batch size, the gradient or the step is.
    """

    def __init__(self, members: Mapping[str, Remedy]) -> None:
        self.members = members
        self._owner: dict[str, Remedy] = {}
        for hook in ("batch_size", "gradient", "step"):
            names = [
                n for n, member in members.items() if getattr(type(member), hook) != getattr(Remedy, hook)
            ]
            if len(names) > 1:
                both = " and ".join(names)
                raise InputError(
                    f"combinations=[{','.join(members)}]: must not combine {both}: each has its own {hook}"
                )
            self._owner[hook] = members[names[0]] if names else Remedy()

    def leaves_out(self, data: Dataset) -> str:
        """What one of the members cannot take."""
        return next(filter(None, (member.leaves_out(data) for member in self.members.values())), "")

    def batch_size(self, full: int, epoch: int, epochs: int) -> int:
        """That of the member that grows the batch."""
        return self._owner["batch_size"].batch_size(full, epoch, epochs)

    def transform(self, batch: Batch) -> Batch:
        """Every member's, one after the other."""
        for member in self.members.values():
            batch = member.transform(batch)
        return batch

    def gradient(self, learner: Learner, batch: Batch) -> None:
        """That of the member that has its own."""
        self._owner["gradient"].gradient(learner, batch)

    def step(self, learner: Learner, batch: Batch, gradient: Callable[[], None]) -> None:
        """The step of the member that has one of its own."""
        self._owner["step"].step(learner, batch, gradient)

    def after_epoch(self, learner: Learner, batch: Batch) -> None:
        """Calls `after_epoch` of every member."""
        for member in self.members.values():
            member.after_epoch(learner, batch)

    def gradients_per_step(self) -> float:
        """The gradients of a step, each at the cost of one."""
        return float(math.prod(member.gradients_per_step() for member in self.members.values()))

    def state(self) -> dict[str, Any]:
        """The states of the members, by name."""
        return {name: member.state() for name, member in self.members.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Gives every member its state again."""
        for name, member in self.members.items():
            member.restore(state[name])


@torch.no_grad()
def project_to_ball(step: Tensor, radius: float, norm: str) -> Tensor:
    """The step of the given length along a gradient: steepest ascent in the 2-norm or the max-norm."""
    if norm == "inf":
        return radius * step.sign()
    return step * (radius / step.norm().clamp_min(torch.finfo(step.dtype).tiny))


def make_remedy(nodes: Sequence[Node]) -> Remedy:
    """The remedy of a cell: none, one, or several combined."""
    names = [str(node.get("name", f"{place}")) for place, node in enumerate(nodes)]
    made: list[Remedy] = [
        build(node, f"remedy.{name}", kind=Remedy) for name, node in zip(names, nodes, strict=True)
    ]
    if len(made) > 1:
        return Combined(dict(zip(names, made, strict=True)))
    return made[0] if made else Remedy()
