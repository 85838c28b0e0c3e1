"""Checkpoints: tensors and plain values, written whole or not at all, read without unpickling code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from lbdist.config import ConfigError
from lbdist.results import write_whole


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a state of tensors, numbers, strings, lists and dicts."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue(), durable=False)  # a lost one costs an epoch, waiting costs more


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint that `save` wrote.

    Raises:
        FileNotFoundError: There is none.
        ConfigError: The file is damaged or holds more than tensors and plain values.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"checkpoint={path}: not a checkpoint of tensors ({line})") from error
    return state
