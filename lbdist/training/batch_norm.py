"""Batch normalisation with an explicit group: the whole global batch across workers, or a ghost batch.

Ghost batch normalisation (Hoffer et al., NeurIPS 2017) normalises each run of `ghost` samples of the global
batch by itself; a remainder joins the last group. Neither depends on how many workers there are.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbdist.errors import InputError
from lbdist.training.batches import Workers


class _Normalise(torch.autograd.Function):
    """Normalises over the samples of all workers; gradients of weight and bias stay this worker's share."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, number: int, workers: Workers
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        # PyTorch's own kernels, which take each part in one pass; statistics are never in half precision
        count = weight.new_tensor([x.numel() // x.shape[1]])
        local = weight.new_zeros(2, x.shape[1])
        if x.numel():
            local = torch.stack(torch.batch_norm_update_stats(x.to(weight.dtype), None, None, 0.0))
        given = torch.cat([count, weight.new_tensor([number]), local[0], local[1] * count])
        gathered = workers.gather(given)
        # the pooled moments of the workers (Chan, Golub & LeVeque 1979)
        counts, means, m2 = gathered[:, :1], *gathered[:, 2:].chunk(2, 1)
        apart = (gathered[:, 1] != number).any()
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (m2 + counts * (means - mean) ** 2).sum(0) / total
        ctx.eps, ctx.workers = eps, workers
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.mark_non_differentiable(mean, variance, total, apart)
        out = _affine(x, weight, bias, mean, variance, eps)
        return out, mean, variance, total, apart

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, mean, variance, total = ctx.saved_tensors
        through, for_weight, for_bias = grad, torch.zeros_like(mean), torch.zeros_like(mean)
        if x.numel():  # as if the statistics were constants
            through, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        sums = torch.cat([for_bias, for_weight])
        ctx.workers.sum(sums)
        mean_bias, mean_weight = (sums / total).chunk(2)
        inverse = torch.rsqrt(variance + ctx.eps)
        # what goes through the statistics: less weight * inverse * (mean_bias + normalised x * mean_weight)
        scale, none, one = -weight * inverse**2 * mean_weight, torch.zeros_like(mean), torch.ones_like(mean)
        shift = -weight * inverse * mean_bias - scale * mean
        through = _affine(x, scale, shift, none, one, 0.0).add_(through)
        return through, for_weight, for_bias, None, None, None


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """A linear function a channel, in PyTorch's own kernel, which takes one pass."""
    if not x.numel():
        return x.clone()
    return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False)


class GroupedBatchNorm(_BatchNorm):
    """Batch normalisation over a declared group; it takes over an existing layer's parameters and buffers.

    Attributes:
        workers: The data-parallel group.
        ghost: Samples in a group; None for the whole global batch.
        number: Of the layer in its network: all workers must be at the same one.
        passing: Whether it hands on what it is given.
        tracking: Whether a forward pass in training mode moves the running averages.
        pending: Sums over the ghost groups since the last `finish`: means, variances, their number.
        apart: Whether workers were at different layers, which makes every number since then worthless.
    """

    workers: Workers
    ghost: int | None
    number: int
    passing: bool
    tracking: bool
    pending: Tensor | None
    apart: Tensor | None

    @classmethod
    def adopt(cls, layer: _BatchNorm, workers: Workers, ghost: int | None, number: int) -> None:
        """Turns a layer into one of this class in place: its parameters, buffers, hooks and kind stay."""
        if not isinstance(layer, cls):
            layer.__class__ = _grouped(type(layer))  # type: ignore[arg-type]
        layer.workers, layer.ghost, layer.number = workers, ghost, number  # type: ignore[assignment]
        layer.pending, layer.apart = None, None  # type: ignore[assignment]
        layer.passing, layer.tracking = False, True  # type: ignore[assignment]

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape (N, C, ...) goes: the layer that was adopted checked its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x of shape (N, C, ...) by its group's statistics, or by the running averages."""
        if self.passing:
            return x
        if not self.training:
            return _BatchNorm.forward(self, x)
        weight, bias = self.weight, self.bias
        if weight is None or bias is None:
            wide = torch.promote_types(x.dtype, torch.float32)
            one = torch.ones(x.shape[1], dtype=wide, device=x.device)
            weight, bias = one if weight is None else weight, 0 * one if bias is None else bias
        if self.ghost is None:
            return self._whole(x, weight, bias)
        return self._ghosts(x, weight, bias, self.ghost)

    @property
    def moves(self) -> bool:
        """Whether the running averages, where there are any, follow what passes through."""
        return self.tracking and self.track_running_stats and self.running_mean is not None

    def _whole(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.workers.size > 1:
            out, mean, variance, total, apart = _Normalise.apply(
                x, weight, bias, self.eps, self.number, self.workers
            )
            self.apart = apart if self.apart is None else self.apart | apart
            if self.moves:
                self._move(mean, variance * (total / (total - 1)), total > 0, total > 1)
            return out
        if x.numel() == x.shape[1]:  # one value per channel: its mean is known, its variance is not
            if self.moves:
                one, mean = torch.ones((), device=x.device), x.detach().view(-1)
                self._move(mean, mean, one > 0, one > 1)
            return torch.batch_norm(x, weight, bias, None, None, True, 0.0, self.eps, False)
        running = (self.running_mean, self.running_var) if self.moves else (None, None)
        momentum = self._momentum() if self.moves else 0.0
        return torch.batch_norm(x, weight, bias, *running, True, momentum, self.eps, False)

    def _momentum(self) -> float:
        """PyTorch's own: a number, 0 among them, or with None the mean over all batches so far."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    def _ghosts(self, x: Tensor, weight: Tensor, bias: Tensor, ghost: int) -> Tensor:
        groups = max(1, len(x) // ghost) if len(x) else 0
        parts = []
        for index in range(groups):
            part = x[index * ghost : len(x) if index == groups - 1 else (index + 1) * ghost]
            out, mean, inverse = torch.native_batch_norm(part, weight, bias, None, None, True, 0.0, self.eps)
            count = part.numel() // part.shape[1]
            parts.append(out)
            variance = (inverse.detach() ** -2 - self.eps) * (count / max(1, count - 1))
            if self.moves:
                self._pending(weight).add_(torch.stack([mean.detach(), variance, torch.ones_like(variance)]))
        # a worker without samples still has to give a differentiable output
        return torch.cat(parts) if parts else x * weight.view([1, -1] + [1] * (x.ndim - 2))

    def _pending(self, like: Tensor) -> Tensor:
        if self.pending is None:
            self.pending = like.new_zeros((3, len(like)))
        return self.pending

    def finish(self) -> None:
        """Moves the running averages by the mean over the ghost groups of a whole global batch.

        Called by every worker after the last of its micro-batches, of which it may have none.
        """
        if self.ghost is None or not self.moves:
            return
        assert self.running_mean is not None
        mean, variance, total = self.workers.sum(self._pending(self.running_mean))
        self.pending = None
        self._move(mean / total, variance / total, total > 0, total > 0)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, passed: Tensor, known: Tensor) -> None:
        """Moves the running averages, without waiting for the device.

        Args:
            mean: Of each channel.
            variance: Of each channel.
            passed: Whether a batch has passed, which has a mean.
            known: Whether its variance is known as well.
        """
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(passed.flatten()[0])
            if self.momentum is None:
                momentum = 1.0 / self.num_batches_tracked.clamp(min=1)
        for average, value, sure in ((self.running_mean, mean, passed), (self.running_var, variance, known)):
            assert average is not None
            part = momentum.to(average.dtype) if isinstance(momentum, Tensor) else momentum
            moved = torch.lerp(average, value.to(average.dtype), part)
            average.copy_(torch.where(sure, moved, average))


@functools.cache
def _grouped(kind: type[_BatchNorm]) -> type[GroupedBatchNorm]:
    """`GroupedBatchNorm` as a kind of batch norm, so that a network that asks for the kind still finds it."""
    return type(f"Grouped{kind.__name__}", (GroupedBatchNorm, kind), {})


def group_batch_norm(network: nn.Module, workers: Workers, ghost: int | None) -> list[GroupedBatchNorm]:
    """Gives every batch norm of a network the declared group, in place.

    Args:
        network: The network to train.
        workers: The data-parallel group.
        ghost: Samples in a group; None normalises over the whole global batch.

    Returns:
        The layers.

    Raises:
        InputError: A layer computes something else than PyTorch's batch norm, or keeps running averages over
            the samples of a forward pass in another way, so that its numbers would depend on the workers.
    """
    layers = []
    for name, layer in network.named_modules():
        kind = type(layer)
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            raise InputError(
                f"network: {name or 'it'} is an instance norm with running averages, which would depend on "
                "how a batch is cut over workers; set track_running_stats=False"
            )
        if not isinstance(layer, _BatchNorm):
            continue
        known = kind.forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward, GroupedBatchNorm.forward)
        if not known or "forward" in vars(layer) or hasattr(layer, "parametrizations"):
            raise InputError(
                f"network: {name or 'it'} is a {kind.__name__}, a batch norm with a forward pass of its own, "
                "which cannot be taken over all workers; write it as nn.BatchNorm and what follows it"
            )
        layers.append(layer)
    for number, layer in enumerate(layers):
        GroupedBatchNorm.adopt(layer, workers, ghost, number)
    return layers  # type: ignore[return-value]
