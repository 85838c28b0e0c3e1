"""MNIST-1D (Greydanus & Kobak, ICML 2024): signals of 40 points, generated here, never downloaded."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lbdist.data.base import Dataset, DataSource, Split, cache_folder, is_integer
from lbdist.errors import require, warn

_SAMPLES = 8000  # half train, half test, as the authors' larger set
_ARRAYS = ("x", "y", "x_test", "y_test")


@dataclass
class MNIST1D(DataSource):
    """4,000 training and 4,000 test signals, float32 of shape (N, 40).

    Generating takes seconds, so the arrays are kept in a cache; a damaged or unwritable one is done without.

    Attributes:
        root: Cache folder; None for lbdist's in the user's cache.
        seed: Seed of the generator.
    """

    root: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.root is None or isinstance(self.root, str), "data.root", self.root, "a folder, or null")
        allowed = is_integer(self.seed, 0) and self.seed < 2**32
        require(allowed, "data.seed", self.seed, "an integer from 0 to 4294967295")

    def read(self) -> Dataset:
        """Takes the arrays from the cache, else generates them and fills it."""
        path = cache_folder(self.root) / f"mnist1d-{version('mnist1d')}-seed{self.seed}.npz"
        arrays = _read_cache(path)
        if arrays is None:
            arrays = _generate(self.seed)
            _write_cache(path, arrays)
        return Dataset(Split(arrays["x"], arrays["y"]), Split(arrays["x_test"], arrays["y_test"]), classes=10)


def _generate(seed: int) -> dict[str, np.ndarray]:
    from mnist1d.data import get_dataset_args, make_dataset  # here, since it imports matplotlib

    args = get_dataset_args()
    args.num_samples, args.train_split, args.seed = _SAMPLES, 0.5, seed
    # the package seeds both global generators
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        made = make_dataset(args)
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
    return {name: made[name].astype(np.float32 if name.startswith("x") else np.int64) for name in _ARRAYS}


def _read_cache(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _ARRAYS}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception:  # damage has many forms: zip, zlib, header, missing member
        warn(f"{path} is damaged; the signals are generated again")
        return None
    half = _SAMPLES // 2
    intact = all(
        (array.shape, array.dtype)
        == (((half, 40), np.float32) if name.startswith("x") else ((half,), np.int64))
        for name, array in arrays.items()
    )
    return arrays if intact else None


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            Path(aside).replace(path)
        finally:
            Path(aside).unlink(missing_ok=True)
