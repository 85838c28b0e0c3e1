"""Dropout whose mask depends on (seed, epoch, sample, call), never on the worker that draws it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lbdist import random
from lbdist.errors import InputError
from lbdist.remedies.base import Batch

_SALT = 1 << 62


class SampleDropout(nn.Dropout):
    """Takes over an `nn.Dropout`; `keys`, one per sample, are set before each forward pass.

    Each call takes the next number of torch's generator, which `Dropouts.drawing` starts anew for every
    pass: so two calls give two masks, the same on every worker, and activation checkpointing, which puts the
    generator back before it computes a block again, gets the mask that it had.
    """

    keys: Tensor | None
    passing: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Drops entries of each sample of x, shape (N, ...), and scales the rest by 1 / (1 - p).

        Raises:
            InputError: The first dimension of x is not the samples.
        """
        if not self.training or self.p == 0 or self.passing:
            return x
        assert self.keys is not None
        if len(self.keys) != len(x):
            raise InputError(
                f"network: a dropout is given {tuple(x.shape)} for {len(self.keys)} samples; the samples "
                "must come first, since masks are drawn a sample"
            )
        salt = torch.randint(_SALT, ()).item()
        count = x[0].numel() if len(x) else 0
        mask = random.keep_mask(random.mix(self.keys + salt), count, self.p).view(x.shape)
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
            if isinstance(module, SampleDropout):
                self.layers.append(module)
            elif isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                raise InputError(f"network: {type(module).__name__} is not supported; use nn.Dropout")

    @contextlib.contextmanager
    def drawing(self, batch: Batch) -> Iterator[None]:
        """A forward and backward pass of a batch; torch's own generator is as before afterwards."""
        if not self.layers:
            yield
            return
        keys = batch.keys(0)
        for layer in self.layers:
            layer.keys = keys
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(0)
        try:
            yield
        finally:
            torch.set_rng_state(before)
