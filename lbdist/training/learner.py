"""The learner: a network in training, its global gradient and its optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lbdist.config.build import build
from lbdist.data.base import to_float
from lbdist.errors import InputError
from lbdist.losses import CrossEntropy, Loss
from lbdist.networks.flat import Flat, buffers, trainable
from lbdist.remedies.base import Batch
from lbdist.training.batch_norm import group_batch_norm
from lbdist.training.batches import Workers
from lbdist.training.dropout import Dropouts

OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


class Learner:
    """A network in training: the global gradient, the optimiser, and what they have cost so far.

    A remedy sees all parameters as one vector x, with g beside it; the optimiser sees the network's named
    parameters, which are views into them, so that layer-wise rules find their layers.

    Args:
        network: The network at its starting point, on its device and in its precision; changed in place.
        make_optimizer: Maps the named parameters to an optimiser.
        workers: The data-parallel group.
        ghost_batch_size: Batch-norm group in samples; None for the whole global batch.
        micro_batch_size: Samples taken through the network at once; None for all of this worker's share.
        criterion: What is learnt; None for cross-entropy over classes.
    """

    def __init__(
        self,
        network: nn.Module,
        make_optimizer: OptimizerFactory,
        workers: Workers,
        ghost_batch_size: int | None = None,
        micro_batch_size: int | None = None,
        criterion: Loss | None = None,
    ) -> None:
        self.network = network.train()
        self.criterion = criterion or CrossEntropy()
        self.workers = workers
        self.micro_batch_size, self.ghost_batch_size = micro_batch_size, ghost_batch_size
        self.norms = group_batch_norm(network, workers, ghost_batch_size)
        if micro_batch_size is not None and self.norms and ghost_batch_size is None:
            raise InputError(
                f"micro_batch_size={micro_batch_size}: batch normalisation over the global batch needs a "
                "worker's whole share at once; set ghost_batch_size as well, or micro_batch_size=null"
            )
        self.dropouts = Dropouts(network)
        flat = Flat(network)
        self.x, self.g = flat.x, flat.g
        self.optimizer = make_optimizer(trainable(network))
        self.loss = torch.zeros((), dtype=torch.float64, device=self.x.device)  # summed over samples
        self.loss_samples = 0.0
        self.counts = {"steps": 0, "gradient_evaluations": 0, "samples": 0}

    def gradient(
        self, batch: Batch, *, weight: float = 1.0, add: bool = False, statistics: bool = True
    ) -> None:
        """Sets g to the gradient of the global batch's mean loss at x (see `remedies.base.Learner`)."""
        before = self.g.clone() if add else None
        self.g.zero_()
        for norm in self.norms:
            norm.tracking = statistics
        scale = weight / batch.size
        for start, stop in self._micro_batches(len(batch.labels)):
            micro = batch.local(start, stop)
            self.dropouts.draw(micro)
            loss = self.criterion.total(self.network(micro.inputs), micro.labels) * scale
            loss.backward()
            self.loss += loss.detach() * batch.size
        for norm in self.norms:
            norm.finish()
        self.loss_samples += weight * batch.size
        self.workers.sum(self.g)
        if before is not None:
            self.g += before
        self.counts["gradient_evaluations"] += 1
        self.counts["samples"] += batch.size

    def _micro_batches(self, count: int) -> list[tuple[int, int]]:
        """Bounds of this worker's micro-batches; what is less than a ghost group joins the one before.

        A worker without samples still takes part, in the batch norm's collective calls.
        """
        size, ghost = self.micro_batch_size or max(1, count), self.ghost_batch_size or 1
        starts = [s for s in range(0, count, size) if s == 0 or count - s >= ghost] or [0]
        return list(zip(starts, [*starts[1:], count], strict=True))

    def input_gradient(self, batch: Batch) -> Tensor:
        """The gradient of the summed loss with respect to this worker's inputs, in training mode."""
        for norm in self.norms:
            norm.tracking = False
        self.dropouts.draw(batch)
        inputs = batch.inputs.detach().requires_grad_()
        loss = self.criterion.total(self.network(inputs), batch.labels)
        self.counts["gradient_evaluations"] += 1
        self.counts["samples"] += batch.size
        return torch.autograd.grad(loss, inputs)[0]

    def update(self) -> None:
        """One step of the optimiser along g."""
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, split: tuple[Tensor, Tensor], micro_batch_size: int = 1000) -> tuple[float, float]:
        """Mean loss and score over a split, with the running averages of batch norm."""
        inputs, labels = split
        start, stop = self.workers.share(len(labels))
        sums: Tensor | None = None
        self.network.eval()
        bounds = [(at, min(at + micro_batch_size, stop)) for at in range(start, stop, micro_batch_size)]
        for begin, end in bounds or [(0, 1)]:
            outputs = self.network(to_float(inputs[begin:end], self.x.dtype))
            loss = self.criterion.total(outputs, labels[begin:end]).double()[None]
            found = torch.cat([loss, self.criterion.scored(outputs, labels[begin:end])])
            sums = found if sums is None else sums + found
        if not bounds and sums is not None:
            sums.zero_()  # a worker without samples takes part in the sum with nothing
        self.network.train()
        assert sums is not None
        sums = self.workers.sum(sums)
        return float(sums[0]) / len(labels), self.criterion.value(sums[1:], len(labels))

    def model(self) -> dict[str, Tensor]:
        """The network's state dict, copied."""
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "x": self.x,
            "buffers": dict(buffers(self.network)),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.counts,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.x.copy_(state["x"])
        own = dict(buffers(self.network))
        for name, value in state["buffers"].items():
            own[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.counts = dict(state["counts"])


def optimizer_factory(node: Mapping[str, Any]) -> OptimizerFactory:
    """The constructor of a configured optimiser; PyTorch's fused kernels are used where it has them."""

    def make(parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = build(node, "optimizer", parameters)
        if "fused" in optimizer.defaults and optimizer.defaults["fused"] is None:
            return build({**node, "fused": True}, "optimizer", parameters)
        return optimizer

    return make
