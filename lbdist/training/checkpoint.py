"""What training keeps: models as plain state dicts in safetensors, and the file from which a run resumes.

Both are written whole or not at all, and read without unpickling code.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lbdist import networks, results
from lbdist.errors import InputError, one_line
from lbdist.networks import flat
from lbdist.plan import Cell
from lbdist.storage import Damaged, Store, check_stamp, digest, stamp

RESUME = "resume.pt"
"""Everything that the rest of a run depends on, in the cell's own folder until the cell is finished."""


def model_name(epoch: int | None = None) -> str:
    """The file of a model in its cell's folder: after an epoch that the cell keeps, or at the end.

    Example:
        >>> model_name(), model_name(4)
        ('model.safetensors', 'model-4.safetensors')
    """
    return "model.safetensors" if epoch is None else f"model-{epoch}.safetensors"


def save_model(store: Store, name: str, model: Mapping[str, Tensor]) -> None:
    """Writes a state dict; `safetensors.torch.load_file` and `load_state_dict` take it back.

    Tensors that share memory, as tied parameters do, are written each by itself.
    """
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in model.items()}
    mark = stamp(_what(store, name), flat.digest(plain))
    store.write(name, safetensors.torch.save(plain, {"lbdist": json.dumps(mark)}), durable=False)


def load_model(
    store: Store, name: str, device: str | torch.device = "cpu", own: bool = True
) -> dict[str, Tensor]:
    """Reads a state dict.

    Args:
        store: The folder.
        name: The file.
        device: Where the tensors are put.
        own: Whether `save_model` wrote it; a user's is in safetensors or as `torch.save` wrote it.

    Raises:
        FileNotFoundError: There is none.
        Damaged: The file is not what `save_model` wrote there.
        InputError: A file of the user's is damaged or holds more than tensors and plain values.
    """
    content, where = store.read(name), f"{store}/{name}"
    try:
        found = safetensors.torch.load(content)
    except SafetensorError as error:
        if own:
            raise Damaged(f"{where} cannot be read as safetensors") from error
        return _tensors(content, where, device)
    if own:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        mark = header.get("__metadata__", {}).get("lbdist", "null")
        check_stamp(json.loads(mark), _what(store, name), flat.digest(found), where)
    return {key: value.to(device) for key, value in found.items()}


def load_file(network: nn.Module, file: str | Path) -> dict[str, Tensor]:
    """The state of a network from a file of the user's, in safetensors or as `torch.save` wrote it.

    A file of `torch.save` is read without unpickling code, and may hold the state dict under `model`,
    `state_dict` or `model_state_dict`; `module.` and `_orig_mod.`, which wrappers put before each name, are
    dropped.

    Raises:
        InputError: The file is missing, damaged, holds more than tensors and plain values, or is of another
            network, naming the first tensor that does not fit; or a tensor holds NaN or infinity.
    """
    path = Path(file)
    wrong = f"checkpoint={file}"
    try:
        found: Any = load_model(Store(path.parent), path.name, own=False)
    except FileNotFoundError as error:
        raise InputError(f"{wrong}: must be a file that is there") from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not (isinstance(found, Mapping) and found and all(isinstance(t, Tensor) for t in found.values())):
        raise InputError(f"{wrong}: must hold a state dict, by itself or under model or state_dict")
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    own = network.state_dict()
    for name, tensor in own.items():
        if name not in found:
            raise InputError(f"{wrong}: must be of this network: it has no {name}")
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, and the network's {tuple(tensor.shape)}"
            raise InputError(f"{wrong}: must be of this network: its {name} has shape {shapes}")
        if not bool(torch.isfinite(found[name]).all()):
            raise InputError(f"{wrong}: its {name} holds NaN or infinity")
    more = next((name for name in found if name not in own), None)
    if more is not None:
        raise InputError(f"{wrong}: must be of this network, which has no {more}")
    return dict(found)


def _what(store: Store, name: str) -> str:
    """A file's name in the storage folder, of which its store is a cell's own."""
    return f"{results.CELLS}/{store.path.rpartition('/')[2]}/{name}"


def starting_point(
    store: Store | None,
    cell: Cell,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A cell's network where the cell begins: at its seed's x0, or at the model of its origin.

    Args:
        store: The storage folder; only a cell with an origin needs it.
        cell: The cell.
        device: Where the network is put.
        dtype: Its precision; None for the network's own.

    Raises:
        InputError: There is no storage folder for the origin's model.
        FileNotFoundError: The origin's model is not there.
    """
    network = networks.make(cell.network, cell.seed).to(device)
    network = network if dtype is None else network.to(dtype)
    if cell.origin is not None:
        if store is None:
            raise InputError("origin: a cell that begins at another's model needs the storage folder")
        folder = store / results.cell_folder(cell.origin.cell)
        network.load_state_dict(load_model(folder, model_name(cell.origin.epoch), device))
    return network


def save(store: Store, state: dict[str, Any], name: str = RESUME) -> None:
    """Writes a state of tensors, numbers, strings, lists and dicts, after a line that says what it is."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    line = json.dumps(stamp(_what(store, name), digest(content))).encode()
    # not waiting for the disk: a lost one costs an epoch, waiting costs more
    store.write(name, b"\n".join([line, content]), durable=False)


def load(store: Store, device: str | torch.device = "cpu", name: str = RESUME) -> dict[str, Any]:
    """Reads what `save` wrote.

    Raises:
        FileNotFoundError: There is none.
        Damaged: The file is not what was written there.
        InputError: It holds more than tensors and plain values.
    """
    return _tensors(check(store, name), f"{store}/{name}", device)


def check(store: Store, name: str = RESUME) -> bytes:
    """What a resume file holds, after its first line.

    Raises:
        FileNotFoundError: There is none.
        Damaged: The file is not what was written there.
    """
    line, _, state = store.read(name).partition(b"\n")
    where = f"{store}/{name}"
    try:
        mark = json.loads(line)
    except ValueError as error:
        raise Damaged(f"{where} is no resume file") from error
    check_stamp(mark, _what(store, name), digest(state), where)
    return state


def _tensors(content: bytes, where: str, device: str | torch.device) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():  # what is wrong is one line, below
            warnings.simplefilter("ignore")
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        line = one_line(error).partition(". ")[0]
        raise InputError(f"checkpoint={where}: not a checkpoint of tensors ({line})") from error
    return state
