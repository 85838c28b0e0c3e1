"""Shows that an f is what it is said to be, through its public face, on a few samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lbdist.errors import InputError

TOLERANCE = 0.02
"""Of a difference quotient, at the best of the steps that are tried: a wrong gradient is off by far more."""


EVALUATIONS = 8
"""Beside the first one: what moves by about the rounding of f shows in most of them, but not in each."""


PAIRS = 5
"""Of directions for which a Hessian is to be symmetric: a wrong one may seem so for one of them."""


class Provable(Protocol):
    """What a proof asks of an f over few samples (`lbdist.objective.Objective`).

    Attributes:
        dtype: In which it is computed.
        batch_norm: Statistics of batch normalisation.
        x: The network's own parameters, shape (n,).
        own: The loss that the module itself gives there, and whether it computes in the precision of f.
        twin: The same f in float64, where there can be one.
        suspect: What in the network may keep a part of the gradient back, in brackets.
    """

    dtype: torch.dtype
    batch_norm: str

    @property
    def x(self) -> Tensor: ...  # noqa: D102

    @property
    def own(self) -> tuple[float, bool]: ...  # noqa: D102

    @property
    def twin(self) -> Provable | None: ...  # noqa: D102

    @property
    def suspect(self) -> str: ...  # noqa: D102

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient."""

    def value(self, x: Tensor) -> float:
        """The value alone."""

    def curvature(self, x: Tensor, v: Tensor) -> Tensor:
        """The product of the Hessian at x with v."""


def prove(f: Provable) -> bool:
    """Holds f against the module itself and against difference quotients.

    Returns:
        False where there is nothing to hold: the loss at x is no number.

    Raises:
        InputError: Two evaluations give two values, its value is not the module's own, or its gradient is not
            that of the value.
    """
    x = f.x
    first = f.value(x)
    # a GPU may add in another order every time
    rounding = 0.0 if x.device.type == "cpu" else _rounding(f.dtype, 1 + abs(first))
    other = max((f.value(x) for _ in range(EVALUATIONS)), key=lambda value: abs(value - first))
    if abs(first - other) > rounding:
        raise InputError(
            f"network: two evaluations of one x gave {first!r} and {other!r}; "
            "sharpness needs a deterministic network (is a dropout of its own left on?)"
        )
    if not math.isfinite(first):
        return False  # a run that diverged has no function to speak of
    if f.batch_norm != "recalibrated":
        own, exact = f.own
        if not math.isclose(first, own, rel_tol=1e-3 if exact else 0.1, abs_tol=1e-6 if exact else 0.1):
            raise InputError(f"network: f(x)={first:.6g}, but the network itself gives {own:.6g} there")
    _prove_gradient(f, x)
    return True


def _prove_gradient(f: Provable, x: Tensor) -> None:
    """The gradient, along random directions at a point away from x, is that of the value."""
    noise = _noise(x, seed=0)
    away = x + 0.02 * noise()
    value, gradient = f(away)
    if not math.isfinite(value):
        return
    for _ in range(2):
        direction = noise()
        direction /= direction.norm()
        slope = float(gradient.double() @ direction.double())
        typical = float((gradient.double() * direction.double()).norm())
        found = _quotients(f, away, direction, slope, typical)
        if not found:
            continue
        if (twin := f.twin) and not _quotients(twin, away, direction, slope, typical):
            continue  # float32 was too coarse to tell
        raise InputError(
            f"network: its gradient is not that of its loss{f.suspect}: {slope:.4g} along a random "
            f"direction, where difference quotients give {', '.join(f'{q:.4g}' for q in found)}"
        )


def _quotients(f: Provable, x: Tensor, direction: Tensor, slope: float, typical: float) -> list[float]:
    """Difference quotients at x that all contradict a slope; empty where one agrees.

    `typical` is the slope's size over random signs of the direction: what a part of the gradient that is
    missing, or wrong, would change it by.
    """
    x, direction = x.to(f.dtype), direction.to(f.dtype)
    size = 1 + abs(f.value(x))
    widest = 0.05 * float(x.double().norm() + 1e-3 * len(x) ** 0.5)
    found = []
    # a network in float64 may compute a part in float32
    for dtype, part in itertools.product(dict.fromkeys((f.dtype, torch.float32)), (1, 0.2, 5, 0.04)):
        rounding = _rounding(dtype, size)
        step = part * min(widest, 3000 * rounding / max(typical, 1e-300))
        ahead, behind = (f.value(x + s * direction) for s in (step, -step))
        found.append((ahead - behind) / (2 * step))
        if abs(found[-1] - slope) <= TOLERANCE * (abs(slope) + typical) + rounding / step:
            return []
    return found


def prove_curvature(f: Provable) -> None:
    """The Hessian's product with a random direction is the gradient's difference quotient along it.

    Where no two quotients agree with each other, for rounding or for kinks (ReLU), the Hessian is held
    against its own symmetry.

    Raises:
        InputError: It is neither.
    """
    noise = _noise(f.x, seed=1)
    direction, other, x = noise(), noise(), f.x + 0.02 * noise()
    found, quotients, off = f.curvature(x, direction), [], []
    size = float(found.double().norm())
    for step in (1e-6, 1e-7, 1e-8, 1e-9) if f.dtype == torch.float64 else ():
        ahead, behind = (f(x + s * direction)[1] for s in (step, -step))
        quotients.append((ahead - behind) / (2 * step))
        off.append(float((quotients[-1] - found).norm()))
        if not off[-1] > 1e-5 * size:
            return
    agree = (float((one - two).norm()) < 0.1 * min(off) for one, two in itertools.pairwise(quotients))
    if not any(agree):
        for _ in range(PAIRS):
            product = f.curvature(x, other)
            one, two = (other * found).double(), (direction * product).double()
            size, off = float(one.norm() + two.norm()), [abs(float(one.sum() - two.sum()))]
            if off[0] > TOLERANCE * size:
                break
            direction, other, found = other, noise(), product
        else:
            return
    raise InputError(
        "network: its second derivatives are not those of its loss: the Hessian's product with a random "
        f"direction, of size {size:.4g}, is off by {min(off):.4g}; an operation in it has a wrong second "
        "backward pass"
    )


def _noise(x: Tensor, seed: int) -> Callable[[], Tensor]:
    """Draws normal vectors of about the size of x, entry by entry, the same on every machine of a kind."""
    generator = torch.Generator(x.device).manual_seed(seed)
    scale = x.abs() + x.abs().mean() + 1e-6
    return lambda: scale * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _rounding(dtype: torch.dtype, size: float) -> float:
    """What rounding may change in a number of this size."""
    return 8 * torch.finfo(dtype).eps * size
