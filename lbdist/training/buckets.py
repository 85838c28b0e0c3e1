"""The sum of a gradient over the workers, a bucket at a time, while the backward pass goes on.

A large gradient is cut into buckets, from the last parameter to the first, which is about the order in which
a backward pass reaches them. Each is on its way as soon as its parameters are done (as in Li et al.,
"PyTorch Distributed", VLDB 2020); all workers send them in one order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lbdist.training.batches import Workers

BUCKET_BYTES = 25 * 2**20
"""What a bucket has at least; a gradient that is not larger is summed at the end, in one call."""


@functools.cache
def _lane(default: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group for buckets alone.

    A worker whose loss does not depend on some parameters (it has no samples) sends theirs later than others,
    and would be at another call of the default group, which batch norm takes.
    """
    return dist.new_group()  # type: ignore[return-value]  # a number for who is not in it


@dataclass
class _Bucket:
    """Parameters one after the other.

    Attributes:
        part: Their gradient, a view into g.
        members: Which they are, from the last to the first.
        left: Those of which the gradient is still to come.
    """

    part: Tensor
    members: list[int]
    left: set[int] = field(default_factory=set)


class Buckets:
    """Sums g over the workers; what a backward pass has left in `grad` is taken over into g first.

    Args:
        parameters: The network's, in the order of g.
        g: The gradient, shape (n,).
        workers: The data-parallel group, of two or more.
        take: Takes the gradients of some parameters over into g.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        g: Tensor,
        workers: Workers,
        take: Callable[[Sequence[int]], None],
    ) -> None:
        assert dist.group.WORLD is not None
        self.workers, self.take, self._lane = workers, take, _lane(dist.group.WORLD)
        self._buckets: list[_Bucket] = []
        stop = start = len(g)
        members: list[int] = []
        for number in reversed(range(len(parameters))):
            start -= parameters[number].numel()
            members.append(number)
            if (stop - start) * g.element_size() >= BUCKET_BYTES or number == 0:
                self._buckets.append(_Bucket(g[start:stop], members))
                stop, members = start, []
        self._of = {number: bucket for bucket in self._buckets for number in bucket.members}
        self._came = [0] * len(parameters)
        self._sent: list[dist.Work] = []
        self._passing = False
        self._early: bool | None = None  # until a first pass has shown that a gradient comes once
        for number, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(functools.partial(self._has_come, number))

    @property
    def sizes(self) -> list[int]:
        """The bytes of each bucket."""
        return [bucket.part.nbytes for bucket in self._buckets]

    def begin(self) -> None:
        """A backward pass begins, the last before the sum."""
        for bucket in self._buckets:
            bucket.left = set(bucket.members)
        self._passing = True

    def _has_come(self, number: int, _: Tensor) -> None:
        if not self._passing:
            return
        self._came[number] += 1
        self._of[number].left.discard(number)
        while self._early and len(self._sent) < len(self._buckets) and not self._next.left:
            self._send()

    @property
    def _next(self) -> _Bucket:
        return self._buckets[len(self._sent)]

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self._next
        self.take(bucket.members)
        self._sent.append(dist.all_reduce(bucket.part, group=self._lane, async_op=True))

    def finish(self) -> None:
        """Returns once every worker has the sum."""
        self._passing = False
        while len(self._sent) < len(self._buckets):  # the loss does not depend on some of it
            self._send()
        for work in self._sent:
            work.wait()
        self._sent.clear()
        if self._early is None:  # under reentrant checkpointing one may come in several parts
            several = self._buckets[0].part.new_tensor(float(max(self._came) > 1))
            self._early = not bool(self.workers.sum(several))
