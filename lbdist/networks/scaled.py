"""Inputs less a mean, over a deviation, as the first thing that a network does.

So what is trained, attacked, augmented and measured are the samples as they are stored, and the names of a
network's weights stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Scaled:
    """A hook that a network's inputs go through first.

    Args:
        mean: Of each channel, the inputs' dimension 1, or of the one where they have no other.
        std: Likewise, above 0.

    Example:
        >>> network = nn.Identity()
        >>> _ = network.register_forward_pre_hook(Scaled((1.0, 2.0), (2.0, 4.0)))
        >>> network(torch.tensor([[3.0, 2.0]])).tolist()
        [[1.0, 0.0]]
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = mean, std
        self._made: dict[Any, tuple[Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Scaled:
        return Scaled(self.mean, self.std)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": {}}

    def __call__(self, network: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs as the network is to have them, and its other arguments."""
        inputs, *rest = given
        key = inputs.device, inputs.dtype, inputs.ndim
        if key not in self._made:
            shape = (-1, *[1] * (inputs.ndim - 2)) if inputs.ndim > 1 else (-1,)
            mean, std = (
                torch.tensor(each, dtype=inputs.dtype, device=inputs.device).view(shape)
                for each in (self.mean, self.std)
            )
            self._made[key] = mean, std
        mean, std = self._made[key]
        return (inputs - mean) / std, *rest
