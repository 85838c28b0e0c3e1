"""The learner: a network in training, its global gradient and its optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lbdist.config.build import build
from lbdist.data.base import bounds, handed_out
from lbdist.errors import InputError, require
from lbdist.losses import CrossEntropy, Loss
from lbdist.networks.flat import Flat, state_of, trainable
from lbdist.plan import Cell
from lbdist.remedies.base import Batch
from lbdist.training import buckets
from lbdist.training.batch_norm import group_batch_norm
from lbdist.training.batches import Workers
from lbdist.training.dropout import Dropouts
from lbdist.training.precision import EXACT, Arithmetic
from lbdist.training.proof import prove

OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]

Together = Callable[["Learner", Batch, float, bool], None]
"""Sets a learner's g to its share of the gradient, as `Learner.backward` does, for several at once."""


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
        arithmetic: Of forward and backward passes.
        together: Computes its gradients together with those of other cells; None for by themselves.
    """

    def __init__(
        self,
        network: nn.Module,
        make_optimizer: OptimizerFactory,
        workers: Workers,
        ghost_batch_size: int | None = None,
        micro_batch_size: int | None = None,
        criterion: Loss | None = None,
        arithmetic: Arithmetic = EXACT,
        together: Together | None = None,
    ) -> None:
        network.train()  # which a network's own may not return
        self.network, self.arithmetic, self.together = network, arithmetic, together
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
        self._passing = False
        self._proven, self._writes = False, True  # until a batch of a few samples has shown what it does
        flat = Flat(network)
        self.x, self._g = flat.x, flat.g
        self._views = [(p, p.grad) for _, p in trainable(network) if p.grad is not None]
        self.buckets: buckets.Buckets | None = None
        if workers.size > 1 and self._g.nbytes > buckets.BUCKET_BYTES:
            self.buckets = buckets.Buckets(
                [p for p, _ in self._views], self._g, workers, self._attach_gradients
            )
        self.optimizer = make_optimizer(trainable(network))
        evaluating(self.optimizer, False)
        self.loss = torch.zeros((), dtype=torch.float64, device=self.x.device)  # summed over samples
        self.loss_samples = 0.0
        self.counts = {"steps": 0, "gradient_evaluations": 0, "samples": 0}

    def gradient(
        self, batch: Batch, *, weight: float = 1.0, add: bool = False, statistics: bool = True
    ) -> None:
        """Sets g to the gradient of the global batch's mean loss at x (see `remedies.base.Learner`)."""
        if not self._proven:
            self.prove(batch)
        before = self.g.clone() if add else None
        if self.together is not None:
            self.together(self, batch, weight, statistics)
        else:
            self.backward(batch, weight, statistics)
        self.loss_samples += weight * batch.size
        if self.buckets is not None:
            self.buckets.finish()
        elif self.workers.size > 1:
            self.workers.sum(self.g)
        if before is not None:
            self.g.add_(before)
        self.counts["gradient_evaluations"] += 1
        self.counts["samples"] += batch.size

    def backward(self, batch: Batch, weight: float, statistics: bool) -> None:
        """This worker's share of `gradient`, in g, and of the loss."""
        self.track(statistics)
        scale = torch.full((), weight / batch.size, dtype=self.x.dtype, device=self.x.device)
        parts = self._micro_batches(len(batch.labels))
        for number, (start, stop) in enumerate(parts):
            micro = batch if stop - start == len(batch.labels) else batch.local(start, stop)
            if number == 0:
                self._detach_gradients()
            with self.dropouts.drawing(micro):
                loss = self._loss(micro.inputs, micro.labels)
                if self.buckets is not None and number == len(parts) - 1:
                    self.buckets.begin()
                loss.backward(scale)
            if number == 0 and (len(parts) > 1 or (self.buckets is None and self._odd)):
                self._attach_gradients(range(len(self._views)))
            self.loss.add_(loss.detach(), alpha=weight)
        if self.ghost_batch_size is not None:
            for norm in self.norms:
                norm.finish()

    @property
    def joinable(self) -> bool:
        """Whether its gradients may be computed together with those of others: all of a batch at once."""
        return not (self.ghost_batch_size or self.micro_batch_size or self.workers.size > 1)

    @property
    def g(self) -> Tensor:
        """The gradient, shape (n,); an optimiser that nobody else asks takes it where autograd left it."""
        self._attach_gradients(range(len(self._views)))
        return self._g

    @g.setter
    def g(self, value: Tensor) -> None:
        if value is not self._g:  # which `g *= 2` has written to
            self.g.copy_(value)

    @property
    def gradients(self) -> list[Tensor]:
        """g, cut into the parameters' own."""
        self._attach_gradients(range(len(self._views)))
        return [view for _, view in self._views]

    @property
    def _odd(self) -> bool:
        """Whether some gradient is not what an optimiser would find in g: missing, for 0, or sparse."""
        gradients = (parameter.grad for parameter, _ in self._views)
        return any(gradient is None or gradient.layout != torch.strided for gradient in gradients)

    def track(self, statistics: bool) -> None:
        """Whether the running averages of batch norm take part."""
        for norm in self.norms:
            if norm.tracking is not statistics:  # a module takes long to set an attribute
                norm.tracking = statistics

    def _detach_gradients(self) -> None:
        """Lets a backward pass leave each gradient where it computed it, and not add it to a zero."""
        for parameter, _ in self._views:
            parameter.grad = None

    @torch.no_grad()
    def _attach_gradients(self, which: Sequence[int]) -> None:
        """Takes the gradients of some parameters over into g, where they are not there yet."""
        views = [
            self._views[number]
            for number in which
            if self._views[number][0].grad is not self._views[number][1]
        ]
        found = [(view, p.grad) for p, view in views if p.grad is not None]
        if found:
            torch._foreach_copy_([view for view, _ in found], [gradient for _, gradient in found])
        for parameter, view in views:
            if parameter.grad is None:  # the loss does not depend on it
                view.zero_()
            parameter.grad = view

    def _micro_batches(self, count: int) -> list[tuple[int, int]]:
        """Bounds of this worker's micro-batches; what is less than a ghost group joins the one before.

        A worker without samples still takes part, in the batch norm's collective calls.
        """
        return bounds(0, count, self.micro_batch_size or max(1, count), self.ghost_batch_size or 1) or [
            (0, 0)
        ]

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of samples in training, whose network alone is computed in the arithmetic."""
        return self.criterion.total(self._computed(inputs, self.arithmetic), labels)

    def _computed(self, inputs: Tensor, arithmetic: Arithmetic) -> Tensor:
        """What the network makes of samples in an arithmetic, in the precision of its parameters."""
        with arithmetic.forward(self.x):
            outputs = self._outputs(inputs)
        return outputs.to(self.x.dtype) if outputs.is_floating_point() else outputs

    def _outputs(self, inputs: Tensor) -> Tensor:
        """What the network makes of samples, which it may only write to in a copy of its own."""
        given = self.arithmetic.laid_out(inputs.clone() if self._writes else inputs)
        outputs = self.network(given)
        if not isinstance(outputs, Tensor):
            mode = "training" if self.network.training else "evaluation"
            raise InputError(f"network: gives a {type(outputs).__name__} in {mode} mode, not a tensor")
        return outputs

    def input_gradient(self, batch: Batch) -> Tensor:
        """The gradient of the summed loss with respect to this worker's inputs, in training mode."""
        self.track(False)
        inputs = batch.inputs.detach().requires_grad_()
        with self.dropouts.drawing(batch):
            loss = self._loss(inputs, batch.labels)
            found = torch.autograd.grad(loss, inputs, materialize_grads=True)[0]
        self.counts["gradient_evaluations"] += 1
        self.counts["samples"] += batch.size
        return found

    def scale_rate(self, factor: float) -> None:
        """Sets the learning rate to a multiple of the one that the optimiser was made with."""
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def update(self) -> None:
        """One step of the optimiser along g."""
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(
        self,
        split: tuple[Tensor, Tensor],
        micro_batch_size: int = 1000,
        arithmetic: Arithmetic = EXACT,
    ) -> tuple[float, float]:
        """Mean loss and score over a split, with the running averages of batch norm.

        Args:
            split: Samples and their targets.
            micro_batch_size: Samples taken through the network at once.
            arithmetic: In which the network is computed: float32 unless asked.
        """
        with arithmetic.applied(), self.at_the_model():
            return self._evaluate(split, micro_batch_size, arithmetic)

    def _evaluate(
        self, split: tuple[Tensor, Tensor], micro_batch_size: int, arithmetic: Arithmetic
    ) -> tuple[float, float]:
        inputs, labels = split
        # layers that have no running averages take those of a micro-batch, which no worker may cut
        whole = any(norm.running_mean is None for norm in self.norms)
        start, stop = self.workers.share(len(labels), min(micro_batch_size, len(labels)) if whole else 1)
        sums: Tensor | None = None
        self.network.eval()
        parts = bounds(start, stop, micro_batch_size)
        for begin, end in parts or [(0, min(2, len(labels)))]:
            outputs = self._computed(
                handed_out(inputs[begin:end].to(self.x.device), self.x.dtype), arithmetic
            )
            targets = labels[begin:end].to(self.x.device, copy=True)
            loss = self.criterion.total(outputs, targets).double()[None]
            found = torch.cat([loss, self.criterion.scored(outputs, targets)])
            sums = found if sums is None else sums + found
        if not parts and sums is not None:
            sums.zero_()  # a worker without samples takes part in the sum with nothing
        self.network.train()
        assert sums is not None
        sums = self.workers.sum(sums)
        return float(sums[0]) / len(labels), self.criterion.value(sums[1:], len(labels))

    def check(self) -> None:
        """Refuses what training since the last check has shown to be worthless; it waits for the device.

        Raises:
            InputError: The workers were at different layers of the network at one time.
        """
        if any(norm.apart is not None and bool(norm.apart) for norm in self.norms):
            raise InputError(
                "network: some workers were at another batch norm than others; every worker must pass "
                "through the same layers in the same order"
            )

    def prove(self, batch: Batch, thorough: bool = False) -> None:
        """Shows that a pass in training mode is what training takes it for (see `training.proof`).

        Workers do not wait for each other here, since a batch may have too few samples for all of them.

        Raises:
            InputError: It is not.
        """
        if len(batch.labels) < 2:
            return
        self._proven, self._writes = True, False
        try:
            prove(self.network, self._proof, self._special, batch, thorough)
        finally:
            for norm in self.norms:
                norm.pending = None

    def _special(self, passing: bool) -> None:
        """Lets batch norm and dropout hand on what they are given, or not."""
        self._passing = passing
        for norm in self.norms:
            norm.passing = passing
        for dropout in self.dropouts.layers:
            dropout.passing = passing

    def _proof(self, batch: Batch) -> Tensor:
        """The outputs of a few samples; finds out whether the network writes to its inputs."""
        given = batch.inputs.clone()
        for norm in self.norms:
            norm.workers, norm.tracking = Workers(), False
        try:
            if self._passing:
                outputs = self._outputs(given)
            else:
                with self.dropouts.drawing(batch):
                    outputs = self._outputs(given)
        finally:
            for norm in self.norms:
                norm.workers = self.workers
        self._writes |= not torch.equal(given, batch.inputs)
        return outputs

    @contextlib.contextmanager
    def at_the_model(self) -> Iterator[None]:
        """The point that is the optimiser's model, while the context lasts; x is as it was afterwards.

        Optimisers that average (schedule-free ones) step at another point than the one that they give out.
        """
        if not (self.optimizer.state and hasattr(self.optimizer, "eval")):
            yield
            return
        x = self.x.clone()
        evaluating(self.optimizer, True)
        try:
            yield
        finally:
            evaluating(self.optimizer, False)
            self.x.copy_(x)  # to the last bit

    def model(self) -> dict[str, Tensor]:
        """The model's state dict, copied, with the versions of its modules."""
        with self.at_the_model():
            return state_of(self.network)

    def model_x(self) -> Tensor:
        """The model's parameters, shape (n,)."""
        with self.at_the_model():
            return self.x.clone()

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "x": self.x,
            "buffers": dict(self.network.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.counts,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.x.copy_(state["x"])
        own = dict(self.network.named_buffers())
        for name, value in state["buffers"].items():
            own[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.counts = dict(state["counts"])


def evaluating(optimizer: torch.optim.Optimizer, whether: bool) -> None:
    """Puts an optimiser that has such modes into evaluation, where parameters are its model, or training."""
    switch = getattr(optimizer, "eval" if whether else "train", None)
    if callable(switch):
        switch()


def optimizer_factory(node: Mapping[str, Any]) -> OptimizerFactory:
    """The constructor of a configured optimiser; PyTorch's fused kernels are used where it has them."""

    def make(parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = build(node, "optimizer", parameters, kind=torch.optim.Optimizer)
        require(
            not optimizer.defaults.get("maximize"), "optimizer.maximize", True, "false: a loss is minimised"
        )
        free = all(optimizer.defaults.get(key) in (None, False) for key in ("foreach", "differentiable"))
        if free and "fused" in optimizer.defaults and optimizer.defaults["fused"] is None:
            return build({**node, "fused": True}, "optimizer", parameters)
        return optimizer

    return make


def make_learner(
    cell: Cell,
    network: nn.Module,
    workers: Workers,
    arithmetic: Arithmetic = EXACT,
    together: Together | None = None,
    kind: type[Learner] = Learner,
) -> Learner:
    """A cell's learner, around its network; of a kind that times itself, if asked."""
    loss: Loss = build(cell.loss, "loss", kind=Loss)
    sizes = cell.ghost_batch_size, cell.micro_batch_size
    return kind(network, optimizer_factory(cell.optimizer), workers, *sizes, loss, arithmetic, together)
