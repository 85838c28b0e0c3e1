"""Networks that lbdist refuses, as `_target_`s for samples of shape (40,) and 10 classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def frozen() -> nn.Module:
    return nn.Linear(40, 10).requires_grad_(False)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :10]


def lazy() -> nn.Module:
    return nn.LazyLinear(10)


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 10), nn.Linear(10, 10).bfloat16())


def double() -> nn.Module:
    return nn.Linear(40, 10).double()


class Pair(nn.Linear):
    """An auxiliary head, in training mode alone."""

    def __init__(self) -> None:
        super().__init__(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return (scores, scores) if self.training else scores  # type: ignore[return-value]


class Named(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return {"logits": F.linear(x, self.weight)}  # type: ignore[return-value]


class Failing(Pair):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("only in evaluation")
        return F.linear(x, self.weight, self.bias)


class Noisy(Pair):
    """Functional dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.dropout(x, 0.1, self.training), self.weight, self.bias)


class PrivateNoise(Pair):
    """Stochastic depth by a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand((), generator=self.generator) if self.training else 1.0
        return F.linear(x, self.weight, self.bias) * keep


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = x.view(len(x), 5, 8)
        return self.head(self.attention(z, z, z, need_weights=False)[0].mean(1))


class Rectified(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return F.rrelu(F.linear(x, self.weight, self.bias), training=self.training)


def sequence_first() -> nn.Module:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.head = nn.Dropout(0.1), nn.Linear(20, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(x.view(len(x), 2, 20).transpose(0, 1)).mean(0))

    return SequenceFirst()


class Activated(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def activated() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 10), Activated(10))


class OwnNorm(Pair):
    def forward(self, x: Tensor) -> Tensor:
        scores = F.linear(x, self.weight, self.bias)
        return (scores - scores.mean(0)) / (scores.std(0) + 0.1) if self.training else scores


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm1d(1, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (1, 40)), norm, nn.Flatten(), nn.Linear(40, 10))


class Loaded(nn.Module):
    """Begins at weights that it has from somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40, 10)
        self.layer.weight.data = torch.linspace(-1, 1, 400).view(10, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def spectral() -> nn.Module:
    layer: nn.Module = nn.utils.spectral_norm(nn.Linear(40, 10))
    return layer


def dropout2d() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 10), nn.Unflatten(1, (10, 1, 1)), nn.Dropout2d(0.1), nn.Flatten())


def shared_memory() -> nn.Module:
    network = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40), nn.Linear(40, 10))
    network[2].bias = nn.Parameter(network[0].bias.data)
    return network


class Straight(Pair):
    """A straight-through estimator: the gradient is of another function than the value."""

    def forward(self, x: Tensor) -> Tensor:
        signs = self.weight + (self.weight.sign() - self.weight).detach()
        return F.linear(x, signs, self.bias)


class Forgetful(Pair):
    """Gives something else at every call in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += not self.training
        return F.linear(x, self.weight, self.bias) * (1 + 1e-3 * self.calls)
