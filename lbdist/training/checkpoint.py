"""Checkpoints: tensors and plain values, written whole or not at all, read without unpickling code."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

from lbdist.errors import InputError, one_line
from lbdist.storage import Store

NAME = "checkpoint.pt"
"""A cell's checkpoint in the cell's own folder."""


def save(store: Store, state: dict[str, Any], name: str = NAME) -> None:
    """Writes a state of tensors, numbers, strings, lists and dicts."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # not waiting for the disk: a lost one costs an epoch, waiting costs more
    store.write(name, buffer.getvalue(), durable=False)


def load(store: Store, device: str | torch.device = "cpu", name: str = NAME) -> dict[str, Any]:
    """Reads a checkpoint that `save` wrote.

    Raises:
        FileNotFoundError: There is none.
        InputError: The file is damaged or holds more than tensors and plain values.
    """
    content = store.read(name)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        line = one_line(error).partition(". ")[0]
        raise InputError(f"checkpoint={store}/{name}: not a checkpoint of tensors ({line})") from error
    return state
