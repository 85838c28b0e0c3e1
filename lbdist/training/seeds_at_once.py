"""SeedsAtOnce: cells of one kind, such as the seeds of a row, trained at once on one device.

Each is trained by `train`, in a thread of its own, of which one runs at a time. Where all have reached a
gradient, one forward and one backward pass over a dimension of seeds (PyTorch's `vmap`) computes them all:
a small network is bound by the number of its kernels, which stays what it is for one. Whatever else a cell
does (its remedy, optimiser, evaluation, checkpoints) it does as if it were alone, and so to the same end, to
rounding.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call

from lbdist.networks.flat import trainable
from lbdist.remedies.base import Batch
from lbdist.training.learner import Learner
from lbdist.training.precision import set_tf32, tf32

T = TypeVar("T")

AGREEMENT = 1e-3
"""How far a gradient may be from that of a cell alone, relative to its norm: rounding, or it is not one."""


@dataclass(frozen=True)
class _Asked:
    """A gradient that a learner waits for."""

    learner: Learner
    batch: Batch
    weight: float
    statistics: bool

    @property
    def kind(self) -> tuple[Any, ...]:
        """What gradients that are computed together share."""
        shapes = tuple(self.batch.inputs.shape), tuple(self.batch.labels.shape)
        return shapes, self.batch.inputs.dtype, self.weight / self.batch.size, self.statistics

    def alone(self) -> None:
        """Computes it by itself."""
        self.learner.backward(self.batch, self.weight, self.statistics)


class SeedsAtOnce:
    """Threads that take turns, and the gradients that they wait for together."""

    def __init__(self) -> None:
        self._asked: dict[int, _Asked] = {}
        self._turns: dict[int, threading.Semaphore] = {}
        self._error: BaseException | None = None
        self._mine = threading.local()
        self._members: tuple[int, ...] = ()
        self._buffers: dict[str, Tensor] = {}
        self.size = 0
        self.works: bool | None = None  # what the first gradients show

    def run(
        self,
        work: Sequence[Callable[[Callable[[dict[str, float]], None]], T]],
        report: Callable[[dict[str, float]], None],
    ) -> list[T]:
        """Does several pieces of work, of one thread each; every one is given a `report` of its own.

        Args:
            work: What trains one cell.
            report: Called in this thread with what any of them reports.

        Returns:
            What each of them gave.

        Raises:
            BaseException: The first that one of them raised, once all have ended.
        """
        said: queue.SimpleQueue[dict[str, float] | None] = queue.SimpleQueue()
        ends: dict[int, T] = {}
        errors: list[BaseException] = []
        self.size, threads, allowed = len(work), torch.get_num_threads(), tf32()

        def one(place: int) -> None:
            self._mine.place = place
            self._turns[place].acquire()
            torch.set_num_threads(threads)
            set_tf32(allowed)
            try:
                ends[place] = work[place](said.put)
            except BaseException as error:
                errors.append(error)
            finally:
                del self._turns[place]
                self._pass_on()
                said.put(None)

        self._turns = {place: threading.Semaphore(0) for place in range(len(work))}
        members = [threading.Thread(target=one, args=(place,), daemon=True) for place in self._turns]
        for member in members:
            member.start()
        self._pass_on()
        for _ in members:
            while (metrics := said.get()) is not None:
                report(metrics)
        for member in members:
            member.join()
        set_tf32(allowed)
        if errors:
            raise errors[0]
        return [ends[place] for place in range(len(work))]

    def _pass_on(self) -> None:
        """Gives the turn to the next that has something to do; if all wait for a gradient, computes them."""
        while self._turns:
            for place, turn in self._turns.items():
                if place not in self._asked:
                    turn.release()
                    return
            asked = [self._asked[place] for place in sorted(self._asked)]
            self._error = None
            try:
                with asked[0].learner.arithmetic.applied():
                    self._compute(asked)
            except Exception as error:
                self._error = error
            self._asked.clear()

    def gradient(self, learner: Learner, batch: Batch, weight: float, statistics: bool) -> None:
        """Sets a learner's g, once every other cell that is still at work waits for its own.

        Args:
            learner: Of the calling thread.
            batch: All of a global batch.
            weight: Factor of the loss.
            statistics: Whether the running averages of batch norm take part.
        """
        place, allowed = self._mine.place, tf32()
        self._asked[place] = _Asked(learner, batch, weight, statistics)
        turn = self._turns[place]
        self._pass_on()
        turn.acquire()
        set_tf32(allowed)
        if self._error is not None:
            raise self._error

    def _compute(self, asked: list[_Asked]) -> None:
        alike = len({one.kind for one in asked}) == 1 < len(asked)
        if alike and self.works is None:
            self.works = self._agree(asked)
        elif alike and self.works:
            self._together(asked)
        else:
            for one in asked:
                one.alone()

    def _agree(self, asked: list[_Asked]) -> bool:
        """Whether what is computed together is what each computes alone, which is what it leaves behind."""
        if not all(one.learner.joinable for one in asked):
            for one in asked:
                one.alone()
            return False
        held = [
            (tensor, tensor.clone())
            for one in asked
            for tensor in (one.learner.loss, *one.learner.network.buffers())
        ]
        found: list[Tensor] = []
        with contextlib.suppress(Exception):  # what vmap cannot do: its own loops, a branch on a value
            self._together(asked)
            found = [one.learner.g.clone() for one in asked]
        for tensor, value in held:
            tensor.copy_(value)
        for one in asked:
            one.alone()
        bound = AGREEMENT if asked[0].learner.arithmetic.precision == "float32" else 50 * AGREEMENT
        return bool(found) and all(
            bool((gradient - one.learner.g).norm() <= bound * one.learner.g.norm())
            for gradient, one in zip(found, asked, strict=True)
        )

    def _together(self, asked: list[_Asked]) -> None:
        """One forward and one backward pass for all."""
        learners, first = [one.learner for one in asked], asked[0]
        network, criterion = learners[0].network, learners[0].criterion
        arithmetic, dropouts = learners[0].arithmetic, learners[0].dropouts
        self._adopt(learners)
        learners[0].track(first.statistics)
        x = torch.stack([learner.x for learner in learners])
        named = trainable(network)
        parts = x.split([p.numel() for _, p in named], 1)
        leaves = {
            name: part.view(len(x), *p.shape).requires_grad_()
            for (name, p), part in zip(named, parts, strict=True)
        }

        def total(
            parameters: dict[str, Tensor],
            own: dict[str, Tensor],
            inputs: Tensor,
            labels: Tensor,
            keys: Tensor,
        ) -> Tensor:
            for layer in dropouts.layers:
                layer.keys = keys
            with arithmetic.forward(x):
                outputs = functional_call(network, (parameters, own), (inputs,))
            return criterion.total(outputs.to(x.dtype) if outputs.is_floating_point() else outputs, labels)

        with dropouts.drawing(first.batch):  # the first random number of each layer is the same for all
            losses = torch.vmap(total, randomness="same")(
                leaves,
                self._buffers,
                torch.stack([one.batch.inputs for one in asked]),
                torch.stack([one.batch.labels for one in asked]),
                torch.stack([one.batch.keys(0) if dropouts.layers else x.new_empty(0) for one in asked]),
            )
        scale = first.weight / first.batch.size
        gradients = torch.autograd.grad(losses.sum() * scale, list(leaves.values()), materialize_grads=True)
        torch._foreach_copy_(
            [view for learner in learners for view in learner.gradients],
            [gradient[place] for place in range(len(learners)) for gradient in gradients],
        )
        for learner, loss in zip(learners, losses.detach(), strict=True):
            learner.loss.add_(loss, alpha=first.weight)

    def _adopt(self, learners: list[Learner]) -> None:
        """Gives the networks' buffers one memory, so that a pass over all of them moves each one's own."""
        members = tuple(id(learner) for learner in learners)
        if members == self._members:
            return
        self._members, self._buffers = members, {}
        networks = [learner.network for learner in learners]
        for path, module in networks[0].named_modules():
            for name in [name for name, buffer in module._buffers.items() if buffer is not None]:
                key = f"{path}.{name}".lstrip(".")
                owners = [network.get_submodule(path) for network in networks]
                together = torch.stack([owner.get_buffer(name) for owner in owners])
                for owner, own in zip(owners, together, strict=True):
                    owner._buffers[name] = own
                self._buffers[key] = together
        for name, parameter in networks[0].named_parameters():
            if not parameter.requires_grad:  # may be another one for each seed
                self._buffers[name] = torch.stack([network.get_parameter(name).data for network in networks])
