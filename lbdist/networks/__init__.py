"""Networks, one file a family, and how they are started: Glorot uniform, the same x0 for SB and LB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lbdist.config.build import build
from lbdist.data.base import to_float
from lbdist.errors import InputError

__all__ = ["make", "parameter_count", "sample_flops"]


def make(node: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Builds a network at its starting point x0, which depends on the seed alone.

    Weights of dense and convolutional layers are Glorot uniform, their biases zero (the paper: "uniformly
    distributed random starting points"); other parameters are as their module makes them, under the same
    seed.

    Args:
        node: Configuration with `_target_` and its arguments.
        seed: The run's seed.

    Raises:
        InputError: The target cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = build(node, "network", kind=nn.Module)
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return network


def parameter_count(network: nn.Module) -> int:
    """The number n of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def sample_flops(network: nn.Module, inputs: np.ndarray, outputs: tuple[int, ...]) -> float:
    """FLOPs of one sample's forward and backward pass, taken as three forward passes; checks the shapes.

    Args:
        network: Maps inputs to what the loss takes.
        inputs: A few samples as stored.
        outputs: Shape of the output for one sample, as the loss wants it.

    Raises:
        InputError: The network does not take such samples or gives another shape.
    """
    network.eval()
    batch = to_float(torch.from_numpy(inputs.copy()))
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            scores = network(batch)
    except Exception as error:
        raise InputError(
            f"network: does not take samples of shape {tuple(batch.shape[1:])} "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    if scores.shape != (len(batch), *outputs):
        raise InputError(
            f"network: gives outputs of shape {tuple(scores.shape)} for {len(batch)} samples; the loss takes "
            f"{(len(batch), *outputs)}"
        )
    return 3 * counter.get_total_flops() / len(batch)
