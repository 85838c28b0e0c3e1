"""A model of the user's own, from a file as people have them.

safetensors, one file or shards with an index, or what `torch.save` wrote, read without running code. The
state dict may lie under a key, beside optimisers and numbers, and its names may have been put under others by
wrappers (DataParallel, torch.compile, Lightning, AveragedModel).
"""

from __future__ import annotations

import _codecs
import argparse
import io
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lbdist.errors import InputError, one_line
from lbdist.held import Held
from lbdist.networks import flat
from lbdist.plan import INDEX, checkpoint_files

State = Mapping[str, Tensor]

_PLAIN = ("", "model", "state_dict", "model_state_dict", "net", "network", "module", "params", "weights")
"""Where a model's own weights mostly are, the likeliest first."""

_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)([._]|$)")


def tensors(content: bytes, where: str, device: str | torch.device) -> Any:
    """What `torch.save` wrote, of tensors and plain values; no code is unpickled.

    Raises:
        InputError: It holds more than that, or is damaged.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # what is wrong is one line, below
            return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # whatever torch's reader makes of it
        said = one_line(error)
        named = re.search(r"GLOBAL (\S+)", said)
        why = said.partition(". ")[0][:200]
        if named:
            why = f"it holds a {named[1]}, which would run code: save the state dict alone"
        raise InputError(f"checkpoint={where}: not a checkpoint of tensors ({why})") from error


def _harmless() -> list[Any]:
    """Classes beside tensors that only hold values."""
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]  # numpy's own, wherever it lies
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "bool")]
    return [argparse.Namespace, np.dtype, _codecs.encode, scalar, *kinds]


def _read(file: Path) -> Any:
    """What a file holds, or all shards of an index."""
    if file.name.endswith(INDEX):
        whole: dict[str, Any] = {}
        for shard in checkpoint_files(str(file))[1:]:
            whole |= _read(Path(shard))
        return whole
    content = file.read_bytes()
    try:
        return safetensors.torch.load(content)
    except SafetensorError:
        return tensors(content, str(file), "cpu")


def load_file(network: nn.Module, file: str | Path, key: str | None = None) -> State:
    """The state of a network from a file of the user's, as PyTorch itself loads it there.

    Args:
        network: The network, which stays as it is.
        file: safetensors, an index of its shards, or what `torch.save` wrote.
        key: Which of several state dicts, as `read` names them; None for the model's own.

    Returns:
        A state dict of the network, with the versions of its modules.

    Raises:
        InputError: The file is missing, damaged, holds more than tensors and plain values, or is of another
            network, naming the first tensor that does not fit; or a tensor holds NaN or infinity.
    """
    return read(network, file, key)[0]


def read(network: nn.Module, file: str | Path, key: str | None = None) -> tuple[State, str]:
    """`load_file`, and what should be said of it: which of several state dicts was taken."""
    path, wrong = Path(file), f"checkpoint={file}"
    try:
        found = _read(path)
    except FileNotFoundError as error:
        missing = path if not path.exists() else error.filename
        raise InputError(f"{wrong}: must be a file that is there ({missing} is not)") from error
    states = dict(_states(found, ""))
    own = set(network.state_dict())
    for at, state in list(states.items()):
        states |= dict(_heads(state, at, own))
    if not states:
        raise InputError(f"{wrong}: must hold a state dict, by itself or under model or state_dict")
    if key is not None and key not in states:
        raise InputError(f"checkpoint_key={key}: must be one of {', '.join(filter(None, states))} in {file}")
    fits: dict[str, State] = {}
    refusals: dict[str, InputError] = {}
    for name in [key] if key is not None else sorted(states, key=_likelihood):
        try:
            fits[name] = _fitted(network, states[name], wrong)
        except InputError as error:
            refusals[name] = error
    if not fits:
        refusal = refusals[max(refusals, key=lambda name: len(states[name]))]
        index = path.with_name(f"{re.sub(r'-[0-9]+-of-[0-9]+', '', path.name)}{INDEX}")
        if index.exists():
            raise InputError(f"{refusal}; it is one of several shards: give {index.name}")
        raise refusal
    taken, *others = fits
    averaged = bool(_AVERAGED.search(taken)) or "n_averaged" in states[taken]
    said = [f"took {taken or 'the weights'}{', which are averaged' if averaged else ''}"]
    if others:
        said.append(f"checkpoint_key= takes {' or '.join(others)} beside it")
    return fits[taken], "; ".join(said) if averaged or others else ""


def _heads(state: State, at: str, own: set[str]) -> Iterator[tuple[str, State]]:
    """The state dicts of several modules in one, each under the first part of its names."""
    heads = dict.fromkeys(name.partition(".")[0] for name in state if name != "n_averaged")
    for head in heads if len(heads) > 1 else ():
        names = {name.removeprefix(f"{head}."): name for name in state if name.startswith(f"{head}.")}
        # of which each may be wrapped once more
        if names and any(own <= set(way.values()) for way in _unwrapped(list(names), own)):
            part = OrderedDict((to, state[name]) for to, name in names.items())
            versions = getattr(state, "_metadata", None)
            if versions is not None:
                part._metadata = _renamed(versions, {name: to for to, name in names.items()})  # type: ignore[attr-defined]
            yield f"{at}.{head}".strip("."), part


def _states(found: Any, at: str) -> Iterator[tuple[str, State]]:
    """The mappings of names to tensors in what a file holds, by the path of keys that leads there."""
    if not isinstance(found, Mapping):
        return
    if any(isinstance(value, Tensor) for value in found.values()) and all(isinstance(k, str) for k in found):
        kept = OrderedDict((name, value) for name, value in found.items() if isinstance(value, Tensor))
        versions = getattr(found, "_metadata", None)
        if versions is not None:
            kept._metadata = versions  # type: ignore[attr-defined]
        yield at, kept
    for name, inner in found.items():
        if isinstance(name, str):
            yield from _states(inner, f"{at}.{name}".strip("."))


def _likelihood(name: str) -> tuple[bool, int, str]:
    """Orders the places of state dicts: a model's own before an average of it."""
    last = name.rpartition(".")[2]
    return bool(_AVERAGED.search(name)), _PLAIN.index(last) if last in _PLAIN else len(_PLAIN), name


def _fitted(network: nn.Module, state: State, wrong: str) -> State:
    """A state dict as PyTorch loads it into the network, whatever a wrapper has put before its names.

    Raises:
        InputError: It is of another network.
    """
    refusal: InputError | None = None
    own = set(network.state_dict())
    ways = sorted(_unwrapped(list(state), own), key=lambda names: -len(own & set(names.values())))
    for names in ways:
        renamed = OrderedDict((to, state[name]) for name, to in names.items())
        versions = getattr(state, "_metadata", None)
        for told in [_renamed(versions, names)] if versions else [_versions(network), None]:
            try:
                return _loaded(network, renamed, told, wrong)
            except InputError as error:
                refusal = refusal or error
    assert refusal is not None
    raise refusal


def _unwrapped(names: list[str], own: set[str]) -> Iterator[dict[str, str]]:
    """Ways to name the tensors: the likeliest first, each from the file's name to the network's."""
    names = [name for name in names if name != "n_averaged" or name in own]
    yield {name: name for name in names}
    shared = {name: name for name in names}
    while True:  # wrappers in wrappers
        heads = {to.partition(".")[0] for to in shared.values()}
        if len(heads) != 1:
            return
        (head,) = heads
        if not all("." in to for to in shared.values()):
            return
        shared = {name: to.removeprefix(f"{head}.") for name, to in shared.items()}
        yield dict(shared)


def _versions(network: nn.Module) -> Any:
    """Those of a network's modules, as its own state dict has them."""
    return getattr(network.state_dict(), "_metadata", None)


def _renamed(versions: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """Versions by the paths that modules have once the names are changed."""
    name, to = next(iter(names.items()))
    prefix = name.removesuffix(to)
    found = {path[len(prefix) :]: v for path, v in versions.items() if f"{path}.".startswith(prefix)}
    return OrderedDict({"": versions.get(prefix.rstrip("."), {}), **found})


def _loaded(network: nn.Module, state: OrderedDict[str, Tensor], versions: Any, wrong: str) -> State:
    """The network's state once PyTorch has loaded another; the network is as before.

    Raises:
        InputError: They do not fit, or a number is none.
    """
    found: State = {}
    fault: InputError | None = None

    def work() -> None:
        nonlocal found, fault
        own = network.state_dict()
        copied = OrderedDict(state)
        if versions is not None:
            copied._metadata = versions  # type: ignore[attr-defined]
        for name, tensor in copied.items():
            if name in own and isinstance(own[name], Tensor) and own[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, and the network's {tuple(own[name].shape)}"
                fault = InputError(f"{wrong}: must be of this network: its {name} has shape {shapes}")
                return
        try:
            result = network.load_state_dict(copied, strict=False)
        except Exception as error:  # a module's own way to load
            fault = InputError(f"{wrong}: must be of this network: {one_line(error)[:300]}")
            return
        there = {own[name].data_ptr() for name in copied if name in own and own[name].numel()}
        for name in result.missing_keys:
            tied = isinstance(own.get(name), Tensor) and own[name].numel() and own[name].data_ptr() in there
            if not tied and not name.endswith("num_batches_tracked"):
                fault = InputError(f"{wrong}: must be of this network: it has no {name}")
                return
        for name in result.unexpected_keys:
            if state[name].ndim:  # a number beside the weights is none of them
                fault = InputError(f"{wrong}: must be of this network, which has no {name}")
                return
        parameters = dict(network.named_parameters())
        for name, tensor in network.state_dict().items():
            if not isinstance(tensor, Tensor):
                continue
            # a mask among the buffers may hold infinity
            if bool((tensor.isnan() if name not in parameters else ~tensor.isfinite()).any()):
                fault = InputError(f"{wrong}: its {name} holds NaN or infinity")
                return
        found = flat.state_of(network)

    Held(network).during(work)
    if fault is not None:
        raise fault
    return found
