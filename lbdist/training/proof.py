"""Shows that a pass in training mode is a function of the weights and of each sample, and of nothing else.

Else a trajectory would depend on how a batch is cut over workers and micro-batches, or would follow random
numbers that are the same at every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lbdist.errors import InputError
from lbdist.held import Held
from lbdist.networks import seeded
from lbdist.random import generator_states, generators
from lbdist.remedies.base import Batch
from lbdist.watched import WHOLE, Watched, differing

PASSES, PASSES_SECONDS = 500, 1.0
"""Passes in a row, before a study starts: a layer that is dropped in 1 % shows in 99 % of them."""


_TRIES = 3


@dataclass
class _Pass:
    """What a pass in training mode gave.

    Attributes:
        outputs: Of the samples.
        buffers: As it left them.
        watched: What its layers did.
        drew: Whether a generator of NumPy's or Python's is no longer as it was.
    """

    outputs: Tensor
    buffers: dict[str, Tensor]
    watched: Watched
    drew: bool


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether outputs agree, measured by the largest; kernels of a GPU may differ by rounding."""
    if found.shape != expected.shape:
        return False
    apart, largest = (found - expected).abs().nan_to_num(), expected.abs().nan_to_num()
    return bool(apart.max() <= tolerance * largest.max()) if apart.numel() else True


@torch.no_grad()
def prove(
    network: nn.Module,
    run: Callable[[Batch], Tensor],
    passing: Callable[[bool], None],
    batch: Batch,
    thorough: bool = False,
) -> None:
    """Runs a network in training mode on a few samples; nothing of it stays.

    Args:
        network: The network.
        run: Gives its outputs for samples.
        passing: Lets batch norm and dropout hand on what they are given, or not.
        batch: Two samples or more.
        thorough: Whether to try as many passes as a drop of 1 % needs, which is done once a study.

    Raises:
        InputError: It draws random numbers of its own, keeps what it sees of the samples, mixes them other
            than by a batch norm, takes another dimension for them, changes its parameters, or gives no
            tensor.
    """
    held = Held(network)

    def work() -> None:
        evaluated = _evaluated(network, run, batch.local(0, 2)) if thorough else None
        for number in range(2, min(len(batch.labels), 3) + 1):  # of which a dropout can tell the samples
            run(batch.local(0, number))
        held.put_back_buffers()
        passing(True)
        try:
            _prove(network, held, run, batch, thorough)
        finally:
            passing(False)
        held.put_back_buffers()
        if evaluated is not None and not same(_evaluated(network, run, batch.local(0, 2)), evaluated):
            raise InputError(
                "network: a pass in training mode changes what it gives in evaluation mode by more than its "
                "buffers; keep what it learns in parameters"
            )

    try:
        work()
    finally:
        held.put_back()


def _prove(
    network: nn.Module, held: Held, run: Callable[[Batch], Tensor], batch: Batch, thorough: bool
) -> None:
    def once(part: Batch, seed: int, those: Sequence[Any] = ()) -> _Pass:
        """A pass; what other threads of this process draw in one try, they do not in three."""
        for _ in range(_TRIES):
            found = attempt(part, seed, those)
            if not found.drew:
                break
        return found

    def attempt(part: Batch, seed: int, those: Sequence[Any]) -> _Pass:
        held.put_back_buffers()
        with seeded(seed):
            before = generator_states(those)
            with Watched(network) as watched:
                outputs = run(part)
            after = generator_states(those)
        buffers = {name: value.clone() for name, value in network.named_buffers()}
        return _Pass(
            outputs, buffers, watched, any(after.get(key, was) != was for key, was in before.items())
        )

    two = batch.local(0, 2)
    first, second = once(two, 1, generators() if thorough else ()), once(two, 2)
    _refuse_draws(first, second)
    for parameter, was in held.parameters:
        if not torch.equal(parameter, was):
            raise InputError(f"network: changes its {_name_of(network, parameter)} in a forward pass")
    if not same(first.outputs, second.outputs):
        raise _random(WHOLE, "two passes of the same samples differ")
    with seeded(3):
        began = time.perf_counter()
        for _ in range(PASSES if thorough else 0):
            held.put_back_buffers()
            if not same(run(two), first.outputs):
                raise _random(WHOLE, "two passes of the same samples differ")
            if time.perf_counter() - began > PASSES_SECONDS:
                break
    if len(batch.labels) > 3:
        others, whole = once(batch.local(2, 4), 1), once(batch.local(0, 4), 1)
        _refuse_state(held, first, others)
        if not same(whole.outputs, torch.cat([first.outputs, others.outputs]), 1e-2):
            layer = _mixing(held, network, run, batch)
            raise InputError(
                f"network: what {layer} gives for a sample in training mode depends on the others in its "
                "batch, other than by an nn.BatchNorm, and so on how a batch is cut over workers"
            )


def _evaluated(network: nn.Module, run: Callable[[Batch], Tensor], part: Batch) -> Tensor:
    network.eval()
    outputs = run(part)
    network.train()
    return outputs


def _random(where: str, why: str) -> InputError:
    layer = "" if where == WHOLE else f"{where} "
    return InputError(
        f"network: {layer}draws random numbers of its own in training mode ({why}), so that a sample's "
        "would depend on its worker; use nn.Dropout on tensors whose first dimension is the samples"
    )


def _refuse_draws(first: _Pass, second: _Pass) -> None:
    """Refuses random numbers, by the layer that draws them."""
    found = differing(first.watched, second.watched)
    if found is not None:
        raise _random(*found)
    if first.drew or second.drew:
        raise _random(WHOLE, "from a generator of NumPy's or Python's")


def _refuse_state(held: Held, first: _Pass, others: _Pass) -> None:
    """Refuses buffers that follow the samples; what depends on the weights alone, or counts, moves alike."""
    before: dict[str, Any] = {path: value for *_, value, path in held.buffers}
    for name, value in first.buffers.items():
        moved = name in before and not torch.equal(value, before[name])
        rounding = 0.0 if value.device.type == "cpu" else 1e-6  # a GPU may add in another order every time
        if moved and not torch.allclose(value, others.buffers[name], rounding, 0.0, equal_nan=True):
            raise InputError(
                f"network: its buffer {name} follows the samples of a pass in training mode, other than a "
                "batch norm's, and so how a batch is cut over workers; move it in a batch norm, or not at all"
            )


def _mixing(held: Held, network: nn.Module, run: Callable[[Batch], Tensor], batch: Batch) -> str:
    """The first layer whose outputs for a sample depend on the others."""
    seen = []
    for start, stop in ((0, 2), (2, 4), (0, 4)):
        held.put_back_buffers()
        with Watched(network, outputs=True) as watched:
            run(batch.local(start, stop))
        seen.append(watched.outputs or [])
    for (name, one), (_, other), (_, both) in zip(*seen, strict=False):
        if len(both) == len(one) + len(other) and not same(both, torch.cat([one, other]), 1e-2):
            return name
    return WHOLE


def _name_of(network: nn.Module, parameter: Tensor) -> str:
    """What a parameter is called."""
    return next((name for name, own in network.named_parameters() if own is parameter), "parameters")
