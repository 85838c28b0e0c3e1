"""The mean and deviation that a network takes its inputs by: what a user says, or the training split's."""

from __future__ import annotations

from typing import Any

import numpy as np

from lbdist.errors import InputError, require

TRAIN = "train"
_ROWS = 1024
_DIGITS = 6


def check(mean: Any, std: Any) -> None:
    """Refuses what is neither numbers, one for all or for each channel, nor `train`, nor nothing.

    Raises:
        InputError: Naming `data.mean` or `data.std`.
    """
    for field, value in (("mean", mean), ("std", std)):
        numbers = value if isinstance(value, list | tuple) else [value]
        good = bool(numbers) and all(_is_number(one) and (field == "mean" or one > 0) for one in numbers)
        above = "" if field == "mean" else " above 0"
        allowed = f"a number{above}, a list of one for each channel, {TRAIN}, or null"
        require(value is None or value == TRAIN or good, f"data.{field}", value, allowed)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def resolved(mean: Any, std: Any, inputs: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation of each channel as numbers; nothing where nothing is asked for.

    Args:
        mean: As `data.mean` has it.
        std: As `data.std` has it.
        inputs: The training split's, (N, C, ...).

    Raises:
        InputError: The inputs are tokens, have another number of channels, or are pictures and the mean is
            that of bytes.

    Example:
        >>> resolved("train", "train", np.array([[0.0, 5.0], [2.0, 5.0]]))
        ((1.0, 5.0), (1.0, 1.0))
        >>> resolved(0.5, None, np.zeros((2, 3, 4, 4), np.uint8))
        ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    """
    if mean is None and std is None:
        return (), ()
    field, given = ("mean", mean) if mean is not None else ("std", std)
    pixels = inputs.dtype == np.uint8
    if not pixels and inputs.dtype.kind != "f":
        raise InputError(f"data.{field}={given}: must be null, since inputs are tokens")
    channels = inputs.shape[1] if inputs.ndim > 1 else 1
    means, deviations = _of(inputs, channels) if TRAIN in (mean, std) else ([], [])
    found = []
    for field, given, train, default in (("mean", mean, means, 0.0), ("std", std, deviations, 1.0)):
        numbers = train if given == TRAIN else [default] if given is None else given
        numbers = list(numbers) if isinstance(numbers, list | tuple) else [numbers]
        numbers = numbers * channels if len(numbers) == 1 else numbers
        require(len(numbers) == channels, f"data.{field}", given, f"one number, or {channels}, one a channel")
        scaled = not pixels or max(numbers) <= 1
        require(scaled, f"data.{field}", given, "at most 1: the bytes of pictures are scaled to [0, 1] first")
        found.append(tuple(float(one) for one in numbers))
    return found[0], found[1]


def _of(inputs: np.ndarray, channels: int) -> tuple[list[float], list[float]]:
    """Of each channel in float64, to six digits; a deviation of 0 is 1, since there is nothing to scale."""
    sums, squares, count = np.zeros(channels), np.zeros(channels), 0
    shift: np.ndarray | None = None
    for start in range(0, len(inputs), _ROWS):
        chunk = inputs[start : start + _ROWS].astype(np.float64)
        chunk = chunk.reshape(len(chunk), channels, -1)
        if shift is None:  # or squares of what lies far from 0 would lose its spread
            shift = chunk.mean((0, 2))
        chunk -= shift[None, :, None]
        sums += chunk.sum((0, 2))
        squares += (chunk**2).sum((0, 2))
        count += chunk.shape[0] * chunk.shape[2]
    assert shift is not None
    scale = 255.0 if inputs.dtype == np.uint8 else 1.0
    mean = (shift + sums / count) / scale
    deviation = np.sqrt(np.maximum(0, squares / count - (sums / count) ** 2)) / scale
    deviation[deviation == 0] = 1
    return [_rounded(one) for one in mean], [_rounded(one) for one in deviation]


def _rounded(value: float) -> float:
    """To digits that do not hang on the order of a sum."""
    return float(f"{value:.{_DIGITS}g}")


def say(mean: tuple[float, ...], std: tuple[float, ...], inputs: np.ndarray) -> str:
    """What is done to inputs, in a line."""
    first = "scaled to [0, 1], then " if inputs.dtype == np.uint8 else ""
    return f"data: inputs are {first}less {_list(mean)}, over {_list(std)}"


def _list(numbers: tuple[float, ...]) -> str:
    shown = ", ".join(f"{one:.4g}" for one in numbers[:4]) + (", ..." if len(numbers) > 4 else "")
    return shown if len(set(numbers)) > 1 or len(numbers) == 1 else f"{numbers[0]:.4g}"
