"""What a network does while it computes, layer by layer: random numbers that it draws, precision it drops.

Found as it happens, by the operations themselves, and not by what they do to the outputs: a layer that is
left out once in a hundred passes shows in few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lbdist.errors import InputError
from lbdist.networks import seeded

LOW = (torch.float16, torch.bfloat16)
"""Precisions whose rounding is larger than a box of Metric 2.1."""


WHOLE = "it"
"""What the network itself is called, beside its layers."""


class Watched(TorchDispatchMode):
    """A network, watched while the context lasts.

    Attributes:
        draws: Each random operation: its layer, its name, and the state that its generator was in.
        low: Each layer that computed in half precision, and in which.
        outputs: What each layer without layers of its own gave, in the order of the calls; None if not asked.
    """

    def __init__(self, network: nn.Module, outputs: bool = False) -> None:
        super().__init__()
        self.draws: list[tuple[str, str, bytes]] = []
        self.low: dict[str, torch.dtype] = {}
        self.outputs: list[tuple[str, Tensor]] | None = [] if outputs else None
        self._network, self._inside, self._hooks = network, list[str](), list[Any]()

    def __enter__(self) -> Watched:
        for name, module in self._network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            name = name or WHOLE
            self._hooks.append(
                module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name))
            )
            leaf = next(module.children(), None) is None
            self._hooks.append(
                module.register_forward_hook(
                    lambda _, given, out, leaf=leaf: self._left(out, leaf), always_call=True
                )
            )
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _left(self, out: Any, leaf: bool) -> None:
        name = self._inside.pop()
        if leaf and self.outputs is not None and isinstance(out, Tensor):
            self.outputs.append((name, out.detach().clone()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes what an operation is, and does it."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            given = _arguments(func, args, kwargs)
            # of which a rate of 0, or evaluation mode, leaves nothing to draw
            if not any(given.get(name) in (0, False) for name in ("dropout_p", "p", "training", "train")):
                generator = given.get("generator") or torch.default_generator
                state = generator.get_state().numpy().tobytes()
                self.draws.append(
                    (self._inside[-1] if self._inside else WHOLE, func.__name__.partition(".")[0], state)
                )
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if self._inside and isinstance(tensor, Tensor) and tensor.dtype in LOW:
                self.low.setdefault(self._inside[-1], tensor.dtype)
        return out


def _arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operation's arguments by name, those among them that were left out."""
    known = func._schema.arguments
    defaults = {argument.name: argument.default_value for argument in known if argument.has_default_value()}
    return {**defaults, **dict(zip([a.name for a in known], args, strict=False)), **kwargs}


def differing(one: Watched, other: Watched) -> tuple[str, str] | None:
    """The layer and the operation of the first draw for which a generator was not in one state in two passes.

    Passes that are watched under different seeds share the draws of a network that seeds its own generator
    anew every time, and no others.
    """
    for (layer, name, state), (*_, again) in zip(one.draws, other.draws, strict=False):
        if state != again:
            return layer, name
    if len(one.draws) != len(other.draws):
        longer = max(one.draws, other.draws, key=len)
        return longer[min(len(one.draws), len(other.draws))][:2]
    return None


def refuse_in_evaluation(network: nn.Module, go: Callable[[], None], dtype: torch.dtype) -> None:
    """Refuses what makes outputs in evaluation mode no function of the weights, by the layer that does it.

    Args:
        network: The network.
        go: Takes samples through it.
        dtype: In which it is to compute.

    Raises:
        InputError: It draws random numbers, or computes in half precision by itself.
    """
    seen = []
    for seed in (1, 2):
        with seeded(seed), Watched(network) as watched:
            go()
        seen.append(watched)
    drawn = differing(*seen)
    if drawn is not None:
        layer, name = drawn
        raise InputError(
            f"network: {layer} draws random numbers in evaluation mode ({name}), so that its loss is no "
            "function of its parameters; sharpness needs a deterministic network"
        )
    for layer, low in seen[0].low.items():
        raise InputError(
            f"network: {layer} computes in {str(low).removeprefix('torch.')} by itself, whose rounding is "
            f"larger than what sharpness measures; let it follow the precision of its inputs, {dtype}"
        )


def suspect(network: nn.Module) -> str:
    """The layers whose gradient PyTorch leaves out in part, in brackets; empty where there are none."""
    found = []
    for name, module in network.named_modules():
        row, norm = getattr(module, "padding_idx", None), getattr(module, "max_norm", None)
        if row is not None:
            words = f"has a padding row, padding_idx={row}, that takes part in the loss and has no gradient"
            found.append(f"{name or WHOLE} {words}")
        if norm is not None:
            found.append(f"{name or WHOLE} scales its weight down to max_norm={norm} in a forward pass")
    return f" ({'; '.join(found)})" if found else ""
