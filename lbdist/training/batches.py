"""Global batches and each worker's slice of them: functions of (seed, epoch), never of the rank."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lbdist import random
from lbdist.data.base import to_float
from lbdist.remedies.base import Batch

GATHERED_BYTES = 2**22
"""Up to here gloo takes less to gather than to reduce."""


AWAKE_SECONDS = 5e-3
"""How long a worker stays awake that waits for others."""


_yield = getattr(os, "sched_yield", lambda: None)


@dataclass(frozen=True)
class Workers:
    """This process's place in a data-parallel group."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Workers:
        """The default process group of torch.distributed, or one worker where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over the workers, in place; every worker gets the same bits."""
        gathered = self.size * tensor.numel() * tensor.element_size()
        if self.size > 1 and gathered <= GATHERED_BYTES and dist.get_backend() == "gloo":
            tensor.copy_(self.gather(tensor).sum(0))
        elif self.size > 1:
            _ended(dist.all_reduce(tensor, async_op=True))
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Every worker's tensor, stacked in the order of their ranks: shape (size, ...)."""
        found = tensor.new_empty((self.size, *tensor.shape))
        _ended(dist.all_gather(list(found), tensor, async_op=True))
        return found

    def share(self, count: int, unit: int = 1) -> tuple[int, int]:
        """This worker's positions [start, stop) of `count`, in whole units but for a remainder at the end."""
        units = max(1, count // unit)
        start, stop = (units * r // self.size * unit for r in (self.rank, self.rank + 1))
        return start, count if self.rank == self.size - 1 else stop


def _ended(work: dist.Work | None) -> None:
    """Returns once a call has ended. gloo's own wait sleeps at once, and wakes a millisecond late."""
    assert work is not None  # None is for who is not in the group
    if dist.get_backend() == "gloo":
        until = time.perf_counter() + AWAKE_SECONDS
        while not work.is_completed() and time.perf_counter() < until:
            _yield()  # to whoever else wants the core, gloo's own threads among them
    work.wait()


def batches(
    inputs: Tensor,
    labels: Tensor,
    *,
    global_batch_size: int,
    seed: int,
    epoch: int,
    workers: Workers,
    ghost_batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """This worker's slices of an epoch's global batches; the last, smaller batch is kept.

    Args:
        inputs: All training samples, (N, ...), uint8 or floating point.
        labels: Their classes, (N,).
        global_batch_size: Samples in a global batch, over all workers.
        seed: The run's seed.
        epoch: The epoch; with the seed it fixes the order of the samples.
        workers: This worker's place.
        ghost_batch_size: Batch-norm group, which is never cut between workers.
        dtype: Precision of the samples given out.
        device: Where they are given out; None for where they are.
    """
    order = random.permutation(len(labels), seed=seed, epoch=epoch).to(labels.device)

    def sent(tensor: Tensor) -> Tensor:
        if device is None or tensor.device == device:
            return tensor
        if tensor.device.type == "cpu":  # what is on a GPU may only be called otherwise: cuda, cuda:0
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    for begin in range(0, len(labels), global_batch_size):
        size = min(global_batch_size, len(labels) - begin)
        start, stop = workers.share(size, min(ghost_batch_size or 1, size))
        samples = order[begin + start : begin + stop]
        yield Batch(
            inputs=to_float(sent(inputs[samples]), dtype),
            labels=sent(labels[samples]),
            samples=sent(samples),
            size=size,
            offset=start,
            seed=seed,
            epoch=epoch,
        )
