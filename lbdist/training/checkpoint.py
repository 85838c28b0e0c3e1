"""What training keeps: models as plain state dicts in safetensors, and the file from which a run resumes.

Both are written whole or not at all, and read without unpickling code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lbdist import networks, results
from lbdist.errors import InputError, one_line
from lbdist.plan import Cell
from lbdist.storage import Store

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
    """Writes a state dict; `safetensors.torch.load_file` and `load_state_dict` take it back."""
    content = safetensors.torch.save({key: value.contiguous() for key, value in model.items()})
    store.write(name, content, durable=False)


def load_model(store: Store, name: str, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Reads a state dict, in safetensors or as `torch.save` wrote it.

    Raises:
        FileNotFoundError: There is none.
        InputError: The file is damaged or holds more than tensors and plain values.
    """
    content = store.read(name)
    try:
        found = safetensors.torch.load(content)
    except SafetensorError:
        return _tensors(content, f"{store}/{name}", device)
    return {key: value.to(device) for key, value in found.items()}


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
    """Writes a state of tensors, numbers, strings, lists and dicts."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # not waiting for the disk: a lost one costs an epoch, waiting costs more
    store.write(name, buffer.getvalue(), durable=False)


def load(store: Store, device: str | torch.device = "cpu", name: str = RESUME) -> dict[str, Any]:
    """Reads what `save` wrote.

    Raises:
        FileNotFoundError: There is none.
        InputError: The file is damaged or holds more than tensors and plain values.
    """
    return _tensors(store.read(name), f"{store}/{name}", device)


def _tensors(content: bytes, where: str, device: str | torch.device) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        line = one_line(error).partition(". ")[0]
        raise InputError(f"checkpoint={where}: not a checkpoint of tensors ({line})") from error
    return state
