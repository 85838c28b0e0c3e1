"""Batch normalisation with an explicit group: the whole global batch across workers, or a ghost batch.

Ghost batch normalisation (Hoffer et al., NeurIPS 2017) normalises each run of `ghost` samples of the global
batch by itself; a remainder joins the last group. Neither depends on how many workers there are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lbdist.training.batches import Workers


class _Normalise(torch.autograd.Function):
    """Normalises over the samples of all workers; gradients of weight and bias stay this worker's share."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_tensor([x.numel() // x.shape[1]])
        mean = x.sum(dims) / count.clamp_min(1)
        squares = ((x - mean.view(shape)) ** 2).sum(dims)
        local = torch.cat([count, mean, squares])
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local)
        gathered = torch.stack(parts)
        # the pooled moments of the workers (Chan, Golub & LeVeque 1979)
        counts, means, m2 = gathered[:, :1], *gathered[:, 1:].chunk(2, 1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (m2 + counts * (means - mean) ** 2).sum(0) / total
        inverse = torch.rsqrt(variance + eps)
        normalised = (x - mean.view(shape)) * inverse.view(shape)
        ctx.save_for_backward(normalised, weight, inverse, total)
        ctx.mark_non_differentiable(mean, variance, total)
        return normalised * weight.view(shape) + bias.view(shape), mean, variance, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normalised, weight, inverse, total = ctx.saved_tensors
        dims = [d for d in range(grad.ndim) if d != 1]
        shape = [1, -1] + [1] * (grad.ndim - 2)
        for_bias, for_weight = grad.sum(dims), (grad * normalised).sum(dims)
        sums = torch.cat([for_bias, for_weight])
        dist.all_reduce(sums)
        mean_bias, mean_weight = (sums / total).chunk(2)
        inner = grad - mean_bias.view(shape) - normalised * mean_weight.view(shape)
        return inner * (weight * inverse).view(shape), for_weight, for_bias, None


class GroupedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over a declared group; it takes over an existing layer's parameters and buffers.

    Attributes:
        workers: The data-parallel group.
        ghost: Samples in a group; None for the whole global batch.
        tracking: Whether a forward pass in training mode moves the running averages.
        pending: Sums over the ghost groups since the last `finish`: means, variances, their number.
    """

    workers: Workers
    ghost: int | None
    tracking: bool
    pending: Tensor | None

    @classmethod
    def adopt(cls, layer: nn.modules.batchnorm._BatchNorm, workers: Workers, ghost: int | None) -> None:
        """Turns a layer into one of this class in place: its parameters, buffers and name stay."""
        layer.__class__ = cls
        layer.workers, layer.ghost = workers, ghost  # type: ignore[assignment]
        layer.tracking, layer.pending = True, None  # type: ignore[assignment]

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape (N, C, ...) goes: the layer that was adopted checked its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x of shape (N, C, ...) by its group's statistics, or by the running averages."""
        if not self.training or not self.track_running_stats:
            return super().forward(x)
        weight = self.weight if self.affine else x.new_ones(x.shape[1])
        bias = self.bias if self.affine else x.new_zeros(x.shape[1])
        if self.ghost is None:
            return self._whole(x, weight, bias)
        return self._ghosts(x, weight, bias, self.ghost)

    def _whole(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.workers.size > 1:
            out, mean, variance, total = _Normalise.apply(x, weight, bias, self.eps)
            if self.tracking:
                self._move(mean, variance * (total / (total - 1)) if total > 1 else None)
            return out
        if x.numel() == x.shape[1]:  # one value a channel: its mean is known, its variance is not
            if self.tracking:
                self._move(x.detach().view(-1), None)
            return torch.batch_norm(x, weight, bias, None, None, True, 0.0, self.eps, False)
        running = (self.running_mean, self.running_var) if self.tracking else (None, None)
        return torch.batch_norm(x, weight, bias, *running, True, self.momentum or 0.1, self.eps, False)

    def _ghosts(self, x: Tensor, weight: Tensor, bias: Tensor, ghost: int) -> Tensor:
        groups = max(1, len(x) // ghost) if len(x) else 0
        parts = []
        for index in range(groups):
            part = x[index * ghost : len(x) if index == groups - 1 else (index + 1) * ghost]
            out, mean, inverse = torch.native_batch_norm(part, weight, bias, None, None, True, 0.0, self.eps)
            count = part.numel() // part.shape[1]
            parts.append(out)
            variance = (inverse.detach() ** -2 - self.eps) * (count / max(1, count - 1))
            if self.tracking:
                self._pending(x).add_(torch.stack([mean.detach(), variance, torch.ones_like(variance)]))
        # a worker without samples still has to give a differentiable output
        return torch.cat(parts) if parts else x * weight.view([1, -1] + [1] * (x.ndim - 2))

    def _pending(self, x: Tensor) -> Tensor:
        if self.pending is None:
            self.pending = x.new_zeros((3, x.shape[1]))
        return self.pending

    def finish(self) -> None:
        """Moves the running averages by the mean over the ghost groups of a whole global batch.

        Called by every worker after the last of its micro-batches, of which it may have none.
        """
        if self.ghost is None or not self.tracking:
            return
        assert self.running_mean is not None
        sums = self._pending(self.running_mean[None])
        mean, variance, total = self.workers.sum(sums)
        self._move(mean / total, variance / total)
        self.pending = None

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor | None) -> None:
        momentum = self.momentum or 0.1
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.lerp_(mean, momentum)
        if variance is not None:
            self.running_var.lerp_(variance, momentum)


def group_batch_norm(network: nn.Module, workers: Workers, ghost: int | None) -> list[GroupedBatchNorm]:
    """Gives every batch norm of a network the declared group, in place.

    Args:
        network: The network to train.
        workers: The data-parallel group.
        ghost: Samples in a group; None normalises over the whole global batch.

    Returns:
        The layers.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        GroupedBatchNorm.adopt(layer, workers, ghost)
    return layers  # type: ignore[return-value]
