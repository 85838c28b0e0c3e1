"""Fully connected networks: the paper's F1 and F2 (appendix B.1, B.2), and `mlp` for mnist1d."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class Dense(nn.Sequential):
    """Dense layers, each with batch normalisation and ReLU, and a linear output.

    Args:
        inputs: Numbers in a sample; any shape is flattened.
        widths: Units of each hidden layer (F1: 5 x 512, F2: 7 x 512).
        classes: Outputs.
    """

    def __init__(self, inputs: int, widths: Sequence[int], classes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, classes))
