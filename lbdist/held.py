"""A module that some work changes, put back as it was: parameters, buffers, modes, and PyTorch's flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
"""The layers that cuDNN has kernels of."""


def _flags() -> tuple[bool, ...]:
    """What PyTorch keeps for a whole process and f depends on, or an interrupted call could leave behind."""
    cudnn = torch.backends.cudnn
    tf32 = torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32
    return torch.is_grad_enabled(), cudnn.enabled, *tf32, *map(torch.is_autocast_enabled, ("cuda", "cpu"))


def _set_flags(grad: bool, cudnn: bool, matmul: bool, convolution: bool, cuda: bool, cpu: bool) -> None:
    torch.set_grad_enabled(grad)
    torch.backends.cudnn.enabled = cudnn
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
    torch.set_autocast_enabled("cuda", cuda)
    torch.set_autocast_enabled("cpu", cpu)


class Held:
    """A module, while some work lasts: its parameters, buffers and modes are as before at the end.

    TF32 and autocast are off during it: their rounding is as large as the box of Metric 2.1. So is cuDNN if
    there are recurrent layers of which it has no backward pass.
    """

    def __init__(self, network: nn.Module, twice: bool = False) -> None:
        self.modes = [(module, module.training) for module in network.modules()]
        recurrent = [module for module in network.modules() if isinstance(module, nn.RNNBase)]
        self.dropouts = [(module, module.dropout) for module in recurrent]
        parameters = list(network.parameters())
        buffers = [
            (module, name, buffer, f"{path}.{name}".lstrip("."))
            for path, module in network.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        found = _copies([*parameters, *(buffer for _, _, buffer, _ in buffers)])
        self.parameters = list(zip(parameters, found, strict=False))
        self.buffers = [
            (module, name, buffer, copy, path)
            for (module, name, buffer, path), copy in zip(buffers, found[len(parameters) :], strict=True)
        ]
        self.cudnn = not (twice and recurrent) and all(type(module) in RECURRENT for module in recurrent)
        self.flags = _flags()

    def during(self, work: Callable[[], None]) -> None:
        """Does some work with the module; one interrupt (Ctrl-C) may come at any moment."""
        grad, cudnn = self.flags[:2]
        try:
            try:
                _set_flags(grad, cudnn and self.cudnn, False, False, False, False)
                work()
            finally:
                self.put_back()
        except KeyboardInterrupt:  # perhaps as it was being put back; a context manager's exit can be lost
            self.put_back()
            raise

    def put_back(self) -> None:
        """Gives the module everything again; idempotent."""
        copy_into(self.parameters)
        self.put_back_buffers()
        for module, mode in self.modes:
            module.training = mode
        for module, dropout in self.dropouts:
            module.dropout = dropout
        _set_flags(*self.flags)

    def put_back_buffers(self, instead: Mapping[str, Tensor] | None = None) -> None:
        """Gives the module its buffers again, with other values where they are given."""
        for module, name, buffer, *_ in self.buffers:
            module._buffers[name] = buffer  # which the module may have replaced
        copy_into((buffer, (instead or {}).get(path, value)) for *_, buffer, value, path in self.buffers)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A copy of each, all of a kind at once: one by one, a GPU would wait."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for place, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device, tensor.layout), []).append(place)
    found: dict[int, Tensor] = {}
    for places in kinds.values():
        if tensors[places[0]].layout != torch.strided:
            found |= {place: tensors[place].detach().clone() for place in places}
            continue
        alike = [tensors[place].detach() for place in places]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        parts = flat.split([tensor.numel() for tensor in alike])
        found |= {place: part.view(t.shape) for place, part, t in zip(places, parts, alike, strict=True)}
    return [found[place] for place in range(len(tensors))]


def copy_into(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copies the second of each pair into the first, all of a kind at once."""
    kinds: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
    for to, value in pairs:
        kinds.setdefault((to.dtype, to.device, value.dtype), []).append((to.data, value))
    for alike in kinds.values():
        torch._foreach_copy_([to for to, _ in alike], [value for _, value in alike])
