"""The precision and memory format of training: float32, TF32 or bfloat16, channels last or not.

Parameters, the optimiser's state, batch-norm statistics and the loss are float32 in each of them: what
differs is how matrix products and convolutions multiply. What is reported of a model is evaluated in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lbdist.config.schema import PRECISIONS
from lbdist.plan import AUTO, Cell

GAIN = 0.9
"""`auto` leaves float32, and the usual memory format, for what takes at most this share of the time."""

BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""A CPU's instructions for products in bfloat16, on x86 and ARM, as PyTorch names them."""


@dataclass(frozen=True)
class Arithmetic:
    """How a forward and backward pass is computed.

    Attributes:
        precision: `float32`; `tf32` (float32 with products of 10 bits, on GPUs); `bfloat16` (PyTorch's
            autocast: products in bfloat16, what is sensitive in float32).
        channels_last: Whether images are handed to the network with their channels innermost in memory, which
            changes no more than the order of sums.
    """

    precision: str = "float32"
    channels_last: bool = False

    def __str__(self) -> str:
        return self.precision + (", channels last" if self.channels_last else "")

    def columns(self) -> dict[str, str]:
        """The columns of a row that was computed so."""
        return {
            "precision": self.precision,
            "memory_format": "channels_last" if self.channels_last else "contiguous",
        }

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Allows TF32, or not, for the whole process while the context lasts."""
        before = tf32()
        set_tf32((self.precision == "tf32",) * 2)
        try:
            yield
        finally:
            set_tf32(before)

    def forward(self, x: Tensor) -> contextlib.AbstractContextManager[object]:
        """The context of a network's forward pass, given its parameters."""
        reduced = self.precision == "bfloat16" and x.dtype == torch.float32
        return torch.autocast(x.device.type, torch.bfloat16) if reduced else contextlib.nullcontext()

    def laid_out(self, inputs: Tensor) -> Tensor:
        """Samples in the memory format."""
        if self.channels_last and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs


def tf32() -> tuple[bool, bool]:
    """Whether the process may use TF32: in matrix products, in convolutions."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def set_tf32(allowed: tuple[bool, bool]) -> None:
    """Sets what `tf32` gives."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


EXACT = Arithmetic()
"""float32: what everything is evaluated in."""


def plainest(asked: str) -> Arithmetic:
    """What a precision that is asked for resolves to where nothing was measured; `auto` is then float32."""
    return EXACT if asked == AUTO else Arithmetic(asked)


def native(gpu: bool) -> set[str]:
    """The precisions that this machine's GPU or CPU has instructions for.

    A CPU has no TF32; NVIDIA's GPUs have it since they have bfloat16. An emulated bfloat16 gains nothing, and
    where a network is so small that it costs little, a choice by measurement could differ from run to run.
    """
    if gpu:
        reduced = torch.cuda.is_bf16_supported(including_emulation=False)
        return set(PRECISIONS) if reduced else {"float32"}
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since PyTorch 2.10
    return {"float32"} | ({"bfloat16"} if any(known.get(name) for name in BFLOAT16) else set())


def candidates(asked: Iterable[str], images: bool, there: Collection[str]) -> list[Arithmetic]:
    """What there is to choose from.

    Args:
        asked: Precisions, `auto` among them; what is asked for by name is taken as it is.
        images: Whether samples have a place for channels.
        there: What `auto` may be: the `native` precisions.

    Example:
        >>> [str(found) for found in candidates(["auto"], images=False, there=["float32", "bfloat16"])]
        ['float32', 'bfloat16']
        >>> [str(found) for found in candidates(["auto", "bfloat16"], images=False, there=["float32"])]
        ['float32', 'bfloat16']
    """
    asked = set(asked)
    some = [p for p in PRECISIONS if p in asked or (AUTO in asked and p in there)]
    return [
        Arithmetic(precision, last) for precision in some for last in ([False, True] if images else [False])
    ]


def in_which(arithmetic: Mapping[str, Arithmetic], cell: Cell) -> Arithmetic:
    """The arithmetic of a cell, given what each precision that is asked for resolves to."""
    return arithmetic.get(cell.precision, plainest(cell.precision))


def choose(seconds: Mapping[Arithmetic, float], asked: str) -> Arithmetic:
    """The fastest of what was measured; of two, the plainer one unless the other is clearly faster.

    Args:
        seconds: What the same work takes in each.
        asked: A precision, or `auto`.

    Example:
        >>> seconds = {Arithmetic(): 1.0, Arithmetic("bfloat16"): 0.4, Arithmetic("bfloat16", True): 0.38}
        >>> str(choose(seconds, "auto")), str(choose(seconds, "float32")), str(choose({}, "tf32"))
        ('bfloat16', 'float32', 'tf32')
    """
    found = plainest(asked)
    for other in sorted(seconds, key=lambda other: (PRECISIONS.index(other.precision), other.channels_last)):
        faster = seconds[other] <= GAIN * seconds.get(found, 0.0)
        found = other if faster and asked in (AUTO, other.precision) else found
    return found


def reason(seconds: Mapping[Arithmetic, float], chosen: Arithmetic) -> str:
    """Why something was chosen, in words.

    Example:
        >>> seconds = {Arithmetic(): 1.0, Arithmetic("bfloat16"): 0.4}
        >>> reason(seconds, Arithmetic("bfloat16")), reason({**seconds, Arithmetic(): 0.3}, Arithmetic())
        ('2.5 times as fast as float32 in a measured step', 'the fastest other takes 1.3 times as long')
        >>> reason({}, Arithmetic())
        'the only choice on this device'
    """
    if not seconds:
        return "the only choice on this device"
    plain, others = seconds.get(EXACT), [time for other, time in seconds.items() if other != chosen]
    if chosen != EXACT and plain and chosen in seconds:
        return f"{plain / seconds[chosen]:.2g} times as fast as float32 in a measured step"
    if chosen in seconds and others:
        return f"the fastest other takes {min(others) / seconds[chosen]:.2g} times as long"
    return "the only one that could be measured"
