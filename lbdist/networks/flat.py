"""A network's parameters as one flat vector."""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lbdist.errors import InputError


def trainable(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters in the order of the flat vector: the module's own."""
    return [(name, p) for name, p in network.named_parameters() if p.requires_grad]


def check(network: nn.Module) -> None:
    """Refuses a network whose parameters are no vector: none, lazy ones, some that share memory.

    Raises:
        InputError: What is wrong, and what to do.
    """
    lazy = [name for name, p in network.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise InputError(f"network: {lazy[0]} is lazy; give the layer its sizes, or pass a batch through it")
    for name, p in network.named_parameters():
        if p.is_complex():
            raise InputError(
                f"network: {name} is complex; keep it as two real parameters (torch.view_as_real)"
            )
    for name, module in network.named_modules():
        if getattr(module, "sparse", False) is True:
            raise InputError(f"network: {name or 'it'} has sparse gradients; set sparse=False")
    named = [(name, p) for name, p in trainable(network) if p.numel()]
    if not named:
        raise InputError("network: has no trainable parameters; requires_grad_() makes frozen ones trainable")
    spans = sorted((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name) for name, p in named)
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            raise InputError(
                f"network: {first} and {second} share memory but are two parameters; give both layers one"
            )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors, in hex digits, whatever their order."""
    parts = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        parts.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return parts.hexdigest()


def views(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A flat vector x of shape (n,) cut into views named and shaped as the parameters.

    Raises:
        ValueError: x has another length than the network has parameters.
    """
    named = trainable(network)
    sizes = [p.numel() for _, p in named]
    if sum(sizes) != x.numel():
        raise ValueError(f"a vector of {x.numel()} numbers for a network of {sum(sizes)} parameters")
    return {name: part.view(p.shape) for (name, p), part in zip(named, x.split(sizes), strict=True)}


def flatten(network: nn.Module) -> Tensor:
    """A copy of the parameters as one vector of shape (n,)."""
    return torch.cat([p.detach().reshape(-1) for _, p in trainable(network)])


class Flat:
    """A network whose parameters and gradients are views into two flat vectors.

    Gradients are reduced in one call, and a remedy writes `x += r` for a whole network; an optimiser over the
    network's own parameters moves x layer by layer.

    Args:
        network: Changed in place: parameters keep their values and become views.

    Raises:
        InputError: The parameters are no vector, or of several precisions.

    Attributes:
        x: Parameters, shape (n,).
        g: Gradient, shape (n,).
    """

    def __init__(self, network: nn.Module) -> None:
        check(network)
        kinds = {str(p.dtype).removeprefix("torch.") for _, p in trainable(network)}
        if len(kinds) > 1:
            raise InputError(
                f"network: its parameters are {' and '.join(sorted(kinds))}; must be of one precision"
            )
        self.x = flatten(network)
        self.g = torch.zeros_like(self.x)
        parts = zip(views(network, self.x).items(), views(network, self.g).values(), strict=True)
        for (name, part), gradient in parts:
            parameter = network.get_parameter(name)
            parameter.data = part
            parameter.grad = gradient


def state_of(network: nn.Module) -> OrderedDict[str, Tensor]:
    """A network's state dict, copied, with the versions of its modules.

    Raises:
        InputError: A part of it is no tensor, which a model's file cannot hold.
    """
    state = network.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"network: its {name} is a {type(value).__name__}; a model's file holds tensors alone (its "
                "get_extra_state must give one)"
            )
    copied = OrderedDict((name, value.detach().clone()) for name, value in state.items())
    copied._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    return copied
