"""Convolutional networks: the paper's C1 to C4 (appendix B.3, B.4)."""

from __future__ import annotations

from torch import nn


class Shallow(nn.Sequential):
    """C1 (10 classes) and C3 (100): two 5x5 convolutions and two dense layers, for 32x32 images.

    The paper's "2x[64,5,5,2]" has stride 1; its 'same' max-pool 3x3 of stride 2 pads at the far edge,
    which is PyTorch's `ceil_mode`.

    Args:
        channels: Channels of the image.
        classes: Outputs.
        dropout: Probability after each dense layer.
    """

    def __init__(self, channels: int = 3, classes: int = 10, dropout: float = 0.5) -> None:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(channels, 64, 5, padding=2), nn.BatchNorm2d(64), nn.ReLU()]
            layers += [nn.MaxPool2d(3, stride=2, ceil_mode=True)]
            channels = 64
        layers.append(nn.Flatten())
        inputs = 64 * 8 * 8
        for width in (384, 192):
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, classes))


class Deep(nn.Sequential):
    """C2 (10 classes) and C4 (100): thirteen 3x3 convolutions in five groups (VGG), for 32x32 images.

    Dropout as in the authors' released code: 0.3 after the first convolution, 0.4 after every other that
    does not end its group, 0.5 before and after the dense layer.

    Args:
        channels: Channels of the image.
        classes: Outputs.
    """

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        layers: list[nn.Module] = []
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for index in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                if index < depth - 1:
                    layers.append(nn.Dropout(0.3 if len(layers) == 3 else 0.4))
                channels = width
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten(), nn.Dropout(0.5)]
        layers += [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5)]
        super().__init__(*layers, nn.Linear(512, classes))
