"""The running averages of batch normalisation taken anew, over a whole data set."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers of batch normalisation."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def recalibrate(network: nn.Module, samples: int, take: Callable[[int], None]) -> None:
    """Sets the running averages to the pooled moments of each layer's inputs, layer after layer.

    Args:
        network: In evaluation mode; its running averages are changed.
        samples: How many there are.
        take: Takes the first so many samples through the network.
    """
    order: list[_BatchNorm] = []
    averaging = [norm for norm in norms(network) if norm.running_mean is not None]
    _shown(averaging, lambda norm, x: order.append(norm), lambda: take(1))
    for norm in dict.fromkeys(order):
        moments = _Moments()
        _shown([norm], functools.partial(_Moments.add, moments), lambda: take(samples))
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(moments.mean)
        norm.running_var.copy_(moments.variance)


def _shown(
    layers: list[_BatchNorm], see: Callable[[_BatchNorm, Tensor], None], work: Callable[[], None]
) -> None:
    """Does some work, and shows these layers' inputs."""
    hooks = [norm.register_forward_pre_hook(lambda norm, given: see(norm, given[0])) for norm in layers]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()


class _Moments:
    """The pooled mean and variance of a layer's inputs, in float64 (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, norm: _BatchNorm, x: Tensor) -> None:
        """Takes inputs of a layer, of shape (N, C, ...)."""
        x = x.detach().double().transpose(0, 1).flatten(1)
        count, mean = x.shape[1], x.mean(1)
        squares = (x - mean[:, None]).square().sum(1)
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total, apart = self.count + count, mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.squares = self.squares + squares + apart.square() * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """The unbiased one, as PyTorch keeps it."""
        return self.squares / max(1, self.count - 1)
