"""What training keeps: models as plain state dicts in safetensors, and the file from which a run resumes.

Both are written whole or not at all, and read without unpickling code.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lbdist import networks, results
from lbdist.errors import InputError
from lbdist.networks import flat
from lbdist.plan import Cell
from lbdist.storage import Damaged, Store, check_stamp, digest, stamp, stamped, unstamped
from lbdist.training.user_checkpoint import load_file as load_file
from lbdist.training.user_checkpoint import tensors

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
    """Writes a state dict; `load_model` and `load_state_dict` take it back.

    Tensors that share memory, as tied parameters do, are written each by itself. The versions of its modules
    are kept, or PyTorch would take it for an old one and upgrade it.
    """
    store.write(name, packed(model, _what(store, name)), durable=False)


def packed(model: Mapping[str, Tensor], what: str) -> bytes:
    """A state dict as a file of safetensors, which says what it is."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in model.items()}
    versions = json.dumps(getattr(model, "_metadata", None))
    mark = stamp(what, digest(f"{flat.digest(plain)} {versions}".encode()))
    return safetensors.torch.save(plain, {"lbdist": json.dumps(mark), "versions": versions})


def unpacked(content: bytes, what: str, where: str) -> OrderedDict[str, Tensor]:
    """What `packed` gave.

    Raises:
        Damaged: It is not.
    """
    try:
        found = OrderedDict(safetensors.torch.load(content))
    except SafetensorError as error:
        raise Damaged(f"{where} cannot be read as safetensors") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    versions = header.get("versions")
    try:
        mark = json.loads(header.get("lbdist", "null"))
    except ValueError as error:
        raise Damaged(f"{where} does not say what it is") from error
    content_digest = flat.digest(found)
    if versions is not None:  # which an earlier version of lbdist did not write
        content_digest = digest(f"{content_digest} {versions}".encode())
    check_stamp(mark, what, content_digest, where)
    if versions is not None and (known := json.loads(versions)) is not None:
        found._metadata = OrderedDict(known)  # type: ignore[attr-defined]
    return found


def load_model(store: Store, name: str, device: str | torch.device = "cpu") -> OrderedDict[str, Tensor]:
    """Reads what `save_model` wrote.

    Args:
        store: The folder.
        name: The file.
        device: Where the tensors are put.

    Raises:
        FileNotFoundError: There is none.
        Damaged: The file is not what was written there.
    """
    found = unpacked(store.read(name), _what(store, name), f"{store}/{name}")
    for key, value in found.items():
        found[key] = value.to(device)
    return found


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
    # not waiting for the disk: a lost one costs an epoch, waiting costs more
    store.write(name, stamped(_what(store, name), pickled(state)), durable=False)


def pickled(state: dict[str, Any]) -> memoryview:
    """A state as `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def load(store: Store, device: str | torch.device = "cpu", name: str = RESUME) -> dict[str, Any]:
    """Reads what `save` wrote.

    Raises:
        FileNotFoundError: There is none.
        Damaged: The file is not what was written there.
        InputError: It holds more than tensors and plain values.
    """
    found: dict[str, Any] = tensors(check(store, name), f"{store}/{name}", device)
    return found


def check(store: Store, name: str = RESUME) -> bytes:
    """What a resume file holds, after its first line.

    Raises:
        FileNotFoundError: There is none.
        Damaged: The file is not what was written there.
    """
    return unstamped(store.read(name), _what(store, name), f"{store}/{name}")
