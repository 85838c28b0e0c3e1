"""f(x): the mean loss over a whole data set as a deterministic function of one flat parameter vector.

Sums run in float64 and in a fixed order, and are divided once by the number of samples, so a ragged last
micro-batch counts by its true size. Dropout is off and reduced precision (TF32, autocast) is off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lbdist.data.base import to_float
from lbdist.errors import InputError
from lbdist.losses import CrossEntropy, Given, Loss
from lbdist.networks.flat import buffers, flatten, views

BATCH_NORM_MODES = ("running", "batch", "recalibrated")

Function = Callable[[Tensor], tuple[float, Tensor]]
"""A function of a flat vector of shape (n,): its value and its gradient of shape (n,)."""


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Runs without TF32 and autocast: their rounding is as large as the box of Metric 2.1."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@contextlib.contextmanager
def _evaluating(network: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Evaluation mode, batch norm alone in training mode if asked; the modes are put back after."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    if batch_statistics:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class Objective:
    """f and its gradient for a network and a data set; the network itself is never changed.

    Args:
        network: Any module that maps inputs to what the loss takes; its device and precision are used.
        data: Inputs (N, ...), whose integers stay integers unless they are uint8, and labels (N, ...).
        batch_norm: Statistics of batch normalisation: `running` averages as trained; `batch`, those of
            each evaluated micro-batch (the released code of Keskar et al., at 5,000); `recalibrated`,
            those of the whole data set at the network's own parameters, then kept.
        micro_batch_size: Samples taken through the network at once.
        loss: A `Loss`, or a function of (outputs, labels) that gives the sum of the samples' losses; None
            for cross-entropy over classes.

    Raises:
        InputError: An empty data set, an unknown mode, or a micro-batch of no samples.
    """

    def __init__(
        self,
        network: nn.Module,
        data: tuple[Tensor, Tensor],
        *,
        batch_norm: str = "running",
        micro_batch_size: int = 5000,
        loss: Loss | Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.inputs, self.labels = data
        if len(self.labels) == 0:
            raise InputError("data: an empty data set has no loss")
        if batch_norm not in BATCH_NORM_MODES:
            raise InputError(f"batch_norm={batch_norm}: must be one of {', '.join(BATCH_NORM_MODES)}")
        if micro_batch_size < 1:
            raise InputError(f"micro_batch_size={micro_batch_size}: must be at least 1")
        self.network = network
        self.batch_norm = batch_norm
        self.micro_batch_size = micro_batch_size
        self.loss = loss if isinstance(loss, Loss) else Given(loss) if loss else CrossEntropy()
        self.evaluations = 0
        self._buffers = {name: b.detach().clone() for name, b in buffers(network)}
        self._deterministic = False
        if batch_norm == "recalibrated":
            self._recalibrate()

    @property
    def x(self) -> Tensor:
        """The network's own parameters, a vector of shape (n,)."""
        return flatten(self.network)

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """f(x) and its gradient.

        Args:
            x: Parameters of shape (n,).

        Raises:
            InputError: The network gives two values for one x.
        """
        if not self._deterministic:
            first, second = self.value(x), self.value(x)
            if first != second and not (first != first and second != second):
                raise InputError(
                    f"network: two evaluations of one x gave {first!r} and {second!r}; "
                    "sharpness needs a deterministic network (is a dropout of its own left on?)"
                )
            self._deterministic = True
        self.evaluations += 1
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        gradient = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        leaf = x.detach().requires_grad_()
        for scores, labels in self._batches(leaf):
            loss = self.loss.total(scores, labels)
            gradient += torch.autograd.grad(loss, leaf)[0]
            total += loss.detach()
        count = len(self.labels)
        return float(total / count), (gradient / count).to(x.dtype)

    def curvature(self, x: Tensor, v: Tensor) -> Tensor:
        """The product of f's Hessian at x with v, both of shape (n,), by two backward passes."""
        total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        leaf = x.detach().requires_grad_()
        for scores, labels in self._batches(leaf):
            loss = self.loss.total(scores, labels)
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            total += torch.autograd.grad(gradient @ v, leaf)[0]
        return (total / len(self.labels)).to(x.dtype)

    def value(self, x: Tensor) -> float:
        """f(x) alone."""
        return self.measure(x)[0]

    @torch.no_grad()
    def measure(self, x: Tensor | None = None) -> tuple[float, float]:
        """Mean loss and the loss's score at x, by default at the network's own parameters."""
        x = self.x if x is None else x
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        sums: Tensor | None = None
        for scores, labels in self._batches(x.detach()):
            total += self.loss.total(scores, labels)
            scored = self.loss.scored(scores, labels)
            sums = scored if sums is None else sums + scored
        assert sums is not None
        return float(total / len(self.labels)), self.loss.value(sums, len(self.labels))

    def _batches(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        with full_precision(), _evaluating(self.network, self.batch_norm == "batch"):
            for start in range(0, len(self.labels), self.micro_batch_size):
                part = slice(start, start + self.micro_batch_size)
                # buffers are copies too: batch statistics would otherwise leak into the running averages
                held = {name: b.clone() for name, b in self._buffers.items()}
                state = {**views(self.network, x), **held}
                inputs = to_float(self.inputs[part], x.dtype)
                yield functional_call(self.network, state, (inputs,)), self.labels[part]

    @torch.no_grad()
    def _recalibrate(self) -> None:
        """Sets the running averages to the means over the data set at the network's own parameters."""
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [m.momentum for m in norms]
        state = views(self.network, self.x)
        held = {n: b.clone() for n, b in self._buffers.items()}
        seen = 0
        try:
            with full_precision(), _evaluating(self.network, True):
                for start in range(0, len(self.labels), self.micro_batch_size):
                    inputs = to_float(self.inputs[start : start + self.micro_batch_size], self.x.dtype)
                    seen += len(inputs)
                    for norm in norms:
                        norm.momentum = len(inputs) / seen  # a mean over the micro-batches by their sizes
                    functional_call(self.network, {**state, **held}, (inputs,))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        self._buffers = held
