"""Other draws: what a test claims must not hang on the seed by which it draws or trains.

`pytest --seeds=1` runs the suite with every seed of torch, NumPy and Python shifted, and with other starting
points of networks.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

from lbdist import networks

VARIABLE = "LBDIST_TEST_SEEDS"
"""By which processes that a test starts are told."""


def shift() -> None:
    """Shifts every seed that is given from now on in this process, if asked for."""
    add = 1000 * int(os.environ.get(VARIABLE, "0"))
    if not add:
        return
    draws, seeds, make = np.random.default_rng, torch.manual_seed, networks.make

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + add)

    class Random(random.Random):
        def __init__(self, x: Any = None) -> None:
            super().__init__(x + add if isinstance(x, int) else x)

    def default_rng(seed: Any = None) -> np.random.Generator:
        return draws(seed + add if isinstance(seed, int) else seed)

    def manual_seed(seed: int) -> torch.Generator:
        return seeds(seed + add)

    def made(node: Any, seed: int = 0) -> torch.nn.Module:
        return make(node, seed + add)

    np.random.default_rng = default_rng
    torch.manual_seed, torch.Generator = manual_seed, Generator  # type: ignore[misc]
    random.Random, networks.make = Random, made  # type: ignore[misc]
