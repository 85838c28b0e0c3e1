"""Dropout whose mask depends on (seed, epoch, sample, layer), never on the worker that draws it."""

from __future__ import annotations

from torch import Tensor, nn

from lbdist import random
from lbdist.errors import InputError
from lbdist.remedies.base import Batch


class SampleDropout(nn.Dropout):
    """Takes over an `nn.Dropout`; `keys`, one a sample, are set before each forward pass."""

    stream: int
    keys: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Drops entries of each sample of x, shape (N, ...), and scales the rest by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x
        assert self.keys is not None and len(self.keys) == len(x)
        count = x[0].numel() if len(x) else 0
        mask = random.keep_mask(self.keys, count, self.p).view(x.shape)
        return x * mask / (1 - self.p)


class Dropouts:
    """The dropout layers of a network in training.

    Raises:
        InputError: The network has a kind of dropout whose mask could not be made worker-independent.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers: list[SampleDropout] = []
        for module in network.modules():
            if type(module) is nn.Dropout:
                module.__class__ = SampleDropout
                self.layers.append(module)  # type: ignore[arg-type]
            elif isinstance(module, nn.modules.dropout._DropoutNd) and not isinstance(module, SampleDropout):
                raise InputError(f"network: {type(module).__name__} is not supported; use nn.Dropout")

    def draw(self, batch: Batch) -> None:
        """Sets every layer's keys for a batch."""
        for stream, layer in enumerate(self.layers):
            layer.keys = batch.keys(stream)
