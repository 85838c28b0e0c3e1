"""Counter-based random numbers: functions of (seed, epoch, sample), never of the worker that draws them.

Everything random in training goes through here, so that the trajectory of a seed does not depend on how a
global batch is cut over workers. The generator is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): a
64-bit counter through a finaliser that passes BigCrush; it runs on any device as integer tensor arithmetic
and gives the same bits there.
"""

from __future__ import annotations

import gc
import math
import pickle
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: SplitMix64's increment
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit value."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_xor(z: Tensor, bits: int) -> Tensor:
    """z ^ (z >>> bits); torch's shift is arithmetic, so the sign bits are masked away."""
    return z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on an int64 tensor of any shape (a bijection of 64 bits)."""
    z = _shift_xor(z, 30) * _signed(0xBF58476D1CE4E5B9)
    z = _shift_xor(z, 27) * _signed(0x94D049BB133111EB)
    return _shift_xor(z, 31)


def keys(samples: Tensor, *, seed: int, epoch: int, stream: int = 0) -> Tensor:
    """One 64-bit key a sample.

    Args:
        samples: Sample numbers in the training set, int64 of shape (N,).
        seed: The run's seed.
        epoch: The epoch; the same sample draws anew in each.
        stream: Which consumer draws (a dropout layer, the augmentation), so that no two share numbers.

    Returns:
        int64 tensor of shape (N,) on the samples' device.
    """
    # the three numbers are mixed one after another on the host, in exact integers
    state = 0
    for word in (seed, epoch, stream):
        state = _mix_int(state + (word + 1) * _GOLDEN)
    return mix(samples * _signed(_GOLDEN) + _signed(state))


def _mix_int(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _bits(key: Tensor, count: int) -> Tensor:
    """int64 of shape (N, count): `count` mixed words for each key."""
    counter = torch.arange(1, count + 1, device=key.device) * _signed(_GOLDEN)
    return mix(key[:, None] + counter)


def uniform(key: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1), 24 bits each, of shape (N, count)."""
    return ((_bits(key, count) >> 40) & 0xFFFFFF).to(dtype) / (1 << 24)


def normal(key: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of shape (N, count), by Box and Muller's transform."""
    pairs = (count + 1) // 2
    bits = _bits(key, pairs)
    u = (((bits >> 40) & 0xFFFFFF).to(dtype) + 1) / (1 << 24)  # (0, 1], so that the logarithm is finite
    angle = ((bits >> 8) & 0xFFFFFF).to(dtype) * (2 * math.pi / (1 << 24))
    radius = torch.sqrt(-2 * torch.log(u))
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :count]


def keep_mask(key: Tensor, count: int, p: float) -> Tensor:
    """Which of `count` entries a sample keeps when each is dropped with probability p.

    One 64-bit word serves four entries of 16 bits, so p is rounded to 1/65,536.

    Returns:
        bool tensor of shape (N, count).
    """
    words = _bits(key, (count + 3) // 4)
    threshold = min(round(p * 65536), 65535) - 32768
    return _quarters(words)[:, :count] >= threshold


def _quarters(words: Tensor) -> Tensor:
    """The four int16 of each int64, the lowest first: of shape (N, 4 count)."""
    try:
        return words.view(torch.int16)
    except RuntimeError:  # older versions of PyTorch have no such view under vmap
        return torch.stack([(words >> shift).to(torch.int16) for shift in (0, 16, 32, 48)], -1).flatten(1)


def permutation(n: int, *, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits n samples: int64 of shape (n,), on the CPU."""
    generator = torch.Generator().manual_seed(_mix_int(_mix_int((seed + 1) * _GOLDEN) + epoch) >> 1)
    return torch.randperm(n, generator=generator)


def generators() -> list[Any]:
    """All of NumPy's and Python's generators that this process has."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()  # what is frozen is not among the objects
    known = gc.get_objects()
    if frozen:
        gc.freeze()
    own = random.Random, np.random.Generator, np.random.RandomState
    kinds = {kind for kind in set(map(type, known)) if issubclass(kind, own)}
    return [found for found in known if type(found) in kinds and not isinstance(found, random.SystemRandom)]


def generator_states(those: Sequence[Any]) -> dict[Any, Any]:
    """The states of NumPy's and Python's global generators, and of those given."""
    states: dict[Any, Any] = {
        "random": random.getstate(),
        "numpy": pickle.dumps(np.random.get_state(legacy=False)),
    }
    for one in those:
        if isinstance(one, random.Random):
            states[id(one)] = one.getstate()
        elif isinstance(one, np.random.Generator):
            states[id(one)] = pickle.dumps(one.bit_generator.state)
        else:
            states[id(one)] = pickle.dumps(one.get_state(legacy=False))
    return states
