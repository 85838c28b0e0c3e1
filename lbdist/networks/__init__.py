"""Networks, one file per family, and how they are started: Glorot uniform, the same x0 for SB and LB."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from lbdist.config.build import build, plain
from lbdist.data.base import to_float
from lbdist.errors import InputError, one_line, require
from lbdist.networks import flat
from lbdist.networks.scaled import Scaled
from lbdist.plan import digest

__all__ = ["INITS", "check", "check_start", "make", "parameter_count", "sample_flops"]

GLOROT = "glorot"
INITS = (GLOROT, "keep")
"""Where a network begins: at weights that are drawn, or as its constructor left it."""

_SEEDING = threading.RLock()


def make(node: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Builds a network at its starting point x0, which depends on the seed alone.

    By default (`init: glorot`) trainable weights of dense and convolutional layers are Glorot uniform, their
    biases zero (the paper: "uniformly distributed random starting points"), through a parametrisation where a
    layer has one; other parameters are as their module makes them, under the same seed, and weights that it
    loads are never drawn anew. `init: keep` leaves all of them as the constructor made or loaded them.

    Args:
        node: Configuration with `_target_`, its arguments, `init`, and `scaled`: mean and deviation by which
            it takes its inputs (`Scaled`).
        seed: The run's seed.

    Raises:
        InputError: The target cannot be built, or a weight is computed in a way that cannot be started.
    """
    init = node.get("init", GLOROT)
    require(init in INITS, "network.init", init, " or ".join(INITS))
    kept = _loaded(json.dumps(plain(node))) if node.get("init") == GLOROT else frozenset()
    with seeded(seed):
        own = {key: value for key, value in node.items() if key not in ("init", "scaled")}
        network: nn.Module = build(own, "network", kind=nn.Module)
        if init == GLOROT:
            for name, module in _layers(network):
                parameters = {f"{name}.{at}".lstrip(".") for at, _ in module.named_parameters()}
                if not parameters & kept:
                    _start(name, module)
    if scaled := node.get("scaled"):
        network.register_forward_pre_hook(Scaled(tuple(scaled["mean"]), tuple(scaled["std"])))
    return network


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every generator that a constructor may draw from, while the context lasts.

    They belong to the whole process, of which several threads may train.
    """
    with _SEEDING, torch.random.fork_rng(devices=[]):
        states = random.getstate(), np.random.get_state()
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@functools.cache
def _loaded(text: str) -> frozenset[str]:
    """The parameters that a constructor loads: the same for every seed, and not of one value."""
    one, two = (dict(make({**json.loads(text), "init": "keep"}, seed).named_parameters()) for seed in (0, 1))
    return frozenset(
        name
        for name, weight in one.items()
        if not nn.parameter.is_lazy(weight)
        and torch.equal(weight, two[name])
        and bool((weight != weight.flatten()[:1]).any())
    )


def check_start(node: Mapping[str, Any]) -> str | None:
    """Refuses a start that is not known: weights that were loaded without saying what becomes of the others.

    Returns:
        A digest of what the network begins with whatever the seed; None if there is nothing.

    Raises:
        InputError: Parameters do not depend on the seed, and `init` is not given; or they depend on more.
    """
    one, two, other = (_digests(make(node, seed)) for seed in (0, 0, 1))
    for name, found in one.items():
        if two.get(name) != found:
            raise InputError(
                f"network: two of one seed begin at other values of {name}; a seed is all that a start may "
                "depend on (torch, numpy and random are seeded for the constructor)"
            )
    loaded = _loaded(json.dumps(plain(node)))
    if loaded and "init" not in node:
        raise InputError(
            f"network: {min(loaded)} is the same for every seed, so it was loaded, not drawn: "
            "network.init=keep leaves all as it is made, network.init=glorot draws what is not loaded"
        )
    fixed = {name: found for name, found in one.items() if other.get(name) == found}
    return digest(fixed) if fixed else None


def _digests(network: nn.Module) -> dict[str, str]:
    """A digest of each parameter and of each buffer that belongs to a network's state."""
    return {
        name: flat.digest({name: tensor})
        for name, tensor in network.state_dict().items()
        if isinstance(tensor, torch.Tensor) and not nn.parameter.is_lazy(tensor)
    }


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The dense and convolutional layers that are not lazy."""
    for name, module in network.named_modules():
        lazy = any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not lazy:
            yield name, module


@torch.no_grad()
def _start(name: str, module: Any) -> None:
    """Draws a layer's trainable weight, and sets its bias to zero."""
    if parametrize.is_parametrized(module, "weight"):
        if not all(p.requires_grad for p in module.parametrizations["weight"].parameters()):
            return
        try:
            module.weight = nn.init.xavier_uniform_(torch.empty_like(module.weight))
        except Exception as error:
            raise _unstartable(name, "its parametrisation has no way back") from error
    elif not isinstance(module.weight, nn.Parameter):
        raise _unstartable(name, "a hook computes it (use torch.nn.utils.parametrizations)")
    elif module.weight.requires_grad:
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module.bias, nn.Parameter) and module.bias.requires_grad:
        nn.init.zeros_(module.bias)


def _unstartable(name: str, why: str) -> InputError:
    return InputError(
        f"network.init=glorot: must be keep: the weight of {name or 'it'} cannot be drawn, since {why}"
    )


def check(network: nn.Module) -> None:
    """Refuses a network whose parameters are no vector in float32, or lower, that lbdist could train.

    Raises:
        InputError: What is wrong, and what to do.
    """
    flat.check(network)
    kinds = {str(p.dtype).removeprefix("torch.") for p in network.parameters() if p.is_floating_point()}
    if len(kinds) > 1 or kinds == {"float64"}:
        found = " and ".join(sorted(kinds))
        raise InputError(f"network: its parameters are {found}; must be float32, in which lbdist trains")


def parameter_count(network: nn.Module) -> int:
    """The number n of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def sample_flops(network: nn.Module, inputs: np.ndarray, outputs: tuple[int, ...]) -> float:
    """FLOPs of one sample's forward and backward pass, taken as three forward passes; checks the shapes.

    Args:
        network: Maps inputs to what the loss takes.
        inputs: A few samples as stored.
        outputs: Shape of the output for one sample, as the loss wants it.

    Raises:
        InputError: The network does not take such samples or gives another shape.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes a Triton along, which only the driver needs

    network.eval()
    batch = to_float(torch.from_numpy(inputs.copy()))
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            scores = network(batch)
    except Exception as error:
        raise InputError(
            f"network: does not take samples of shape {tuple(batch.shape[1:])} ({one_line(error)[:200]})"
        ) from error
    if not isinstance(scores, torch.Tensor):
        raise InputError(f"network: gives a {type(scores).__name__} in evaluation mode, not a tensor")
    one = outputs == (1,) and scores.shape == (len(batch),)  # a number a sample is one output
    if scores.shape != (len(batch), *outputs) and not one:
        raise InputError(
            f"network: gives outputs of shape {tuple(scores.shape)} for {len(batch)} samples; the loss takes "
            f"{(len(batch), *outputs)}"
        )
    return 3 * counter.get_total_flops() / len(batch)
