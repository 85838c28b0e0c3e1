"""What a network may not do in training mode, each around a layer: drawing, keeping what it sees, mixing."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MODULES_OWN = np.random.default_rng(0)


class _Around(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body


class DropsRarely(_Around):
    """Leaves its body out in 1 % of the passes, by a number of `draw`."""

    p = 0.01

    def draw(self) -> float:
        return float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x if self.training and self.draw() < self.p and x.shape == out.shape else out


class OwnTorch(DropsRarely):
    def __init__(self, body: nn.Module) -> None:
        super().__init__(body)
        self.own = torch.Generator()

    def draw(self) -> float:
        return float(torch.rand((), generator=self.own))


class GlobalNumpy(DropsRarely):
    def draw(self) -> float:
        return float(np.random.rand())


class OwnNumpy(DropsRarely):
    def __init__(self, body: nn.Module) -> None:
        super().__init__(body)
        self.own: Any = np.random.default_rng(0)

    def draw(self) -> float:
        return float(self.own.random())


class ModulesNumpy(DropsRarely):
    def draw(self) -> float:
        return float(_MODULES_OWN.random())


class GlobalPython(DropsRarely):
    def draw(self) -> float:
        return random.random()


class OwnPython(DropsRarely):
    def __init__(self, body: nn.Module) -> None:
        super().__init__(body)
        self.own = random.Random(0)

    def draw(self) -> float:
        return self.own.random()


class FromTheSystem(DropsRarely):
    def draw(self) -> float:
        return int.from_bytes(os.urandom(4), "little") / 2**32


class Noise(_Around):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out + 1e-12 * torch.randn(out.shape[1:]) if self.training else out


class Functional(_Around):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.body(x), 0.01, self.training)


RANDOM = [
    DropsRarely,
    OwnTorch,
    GlobalNumpy,
    OwnNumpy,
    ModulesNumpy,
    GlobalPython,
    OwnPython,
    Noise,
    Functional,
]


class Range(_Around):
    """Keeps the range of what passes, by which evaluation clips."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(body)
        self.register_buffer("top", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        if self.training:
            with torch.no_grad():
                self.top.lerp_(out.abs().mean().to(self.top), 0.1)
            return out
        return torch.clamp(out, -4 * float(self.top), 4 * float(self.top))


class Replaced(Range):
    """The same, in a buffer that is a new tensor every time."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.top = 0.9 * self.top + 0.1 * x.detach().abs().mean().to(self.top)
        out: Tensor = self.body(x)
        return out


class Unregistered(_Around):
    """Keeps it in a plain attribute."""

    top = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        if self.training:
            self.top = max(self.top, float(out.detach().abs().max()))
            return out
        return torch.clamp(out, -0.5 * self.top, 0.5 * self.top)


KEEPING = [Range, Replaced, Unregistered]


class Versioned(_Around):
    """Its files of version 1 held half of its scale."""

    _version = 2

    def __init__(self, body: nn.Module) -> None:
        super().__init__(body)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out * self.scale

    def _load_from_state_dict(self, state: Any, prefix: str, meta: Any, *rest: Any) -> None:
        if (meta.get("version") or 1) < 2:
            state[prefix + "scale"] = state[prefix + "scale"] * 2
        super()._load_from_state_dict(state, prefix, meta, *rest)
