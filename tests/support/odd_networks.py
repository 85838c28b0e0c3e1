"""A grammar of odd networks, as people bring them: shared, tied, frozen, checkpointed, writing in place."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, INPUTS, CLASSES = 5, 6, 3


class Shared(nn.Module):
    """One block, applied several times through a list."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([body] * 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.one, self.two = body, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(self.body(x))))


class Checkpointed(nn.Module):
    """A block whose activations are computed again in the backward pass."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.body, x, use_reentrant=False)
        return out


class Frozen(nn.Module):
    """A layer that is not trained, beside one that is."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.fixed, self.body = nn.Linear(WIDTH, WIDTH).requires_grad_(False), body

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fixed(x)) + self.body(x)


class InPlace(nn.Module):
    """Writes to what it is given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mul_(0.5).add_(0.1) if not x.requires_grad else x * 0.5 + 0.1)


class Alias(nn.Module):
    """Reads its parameter through a tensor of its own that shares the memory."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.scale = body, nn.Parameter(torch.ones(WIDTH))
        self.alias = self.scale.detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale + 0.0 * self.alias.sum()

    def _apply(self, fn, recurse=True):  # .double() makes new memory
        super()._apply(fn, recurse)
        self.alias = self.scale.detach()
        return self


class Hidden(nn.Module):
    """Keeps a layer in a plain list beside its registration, and calls that one."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.calls = [body, self.layer, torch.tanh]
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        for call in self.calls:
            x = call(x)
        return x


class Counting(nn.Module):
    """Replaces a buffer at every call, which changes nothing of what it gives."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.body(x)


class Recurrent(nn.Module):
    """An LSTM with dropout over a sequence of two halves."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.lstm, self.body = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dropout=0.3), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.lstm(torch.stack([x, -x], 1))[0][:, -1])


class Attentive(nn.Module):
    """PyTorch's own attention over a sequence of two halves, whose fast kernels know one backward pass."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.mix, self.body = nn.Linear(WIDTH, 3 * WIDTH), body

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mix(torch.stack([x, -x], 1)).chunk(3, -1)
        return self.body(nn.functional.scaled_dot_product_attention(query, key, value)[:, 0])


def _normed() -> nn.Module:
    layer: nn.Module = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    return layer


LEAVES = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "batch norm, cumulative": lambda: nn.BatchNorm1d(WIDTH, momentum=None, affine=False),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "dropout": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)),
    "weight norm": _normed,
    "in-place activation": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SELU(inplace=True)),
}
AROUND = (Shared, Tied, Checkpointed, Frozen, InPlace, Alias, Hidden, Counting, Recurrent, Attentive)


@st.composite
def odd_networks(draw: st.DrawFn) -> nn.Module:
    """A network in float64 that maps (N, 6) to (N, 3), with running averages that have seen data."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers: list[nn.Module] = [nn.Linear(INPUTS, WIDTH), nn.Tanh()]
    if draw(st.booleans()):
        layers.insert(0, InPlace(nn.Identity()))
    for _ in range(draw(st.integers(1, 3))):
        body: nn.Module = LEAVES[draw(st.sampled_from(sorted(LEAVES)))]()
        for around in draw(st.lists(st.sampled_from(AROUND), max_size=2)):
            body = around(body)
        layers += [body, nn.Tanh()]
    network = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES)).double()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, INPUTS, dtype=torch.float64))
    return network.train(draw(st.booleans()))
