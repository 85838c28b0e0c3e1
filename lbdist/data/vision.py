"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, downloaded and checked through torchvision."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from lbdist.data.base import Dataset, DataSource, Split, cache_folder, locked
from lbdist.errors import InputError, one_line, require
from lbdist.storage import digest

# name -> torchvision's class, its folder under the root, number of classes
_SETS: dict[str, tuple[Any, str, int]] = {
    "mnist": (datasets.MNIST, "MNIST", 10),
    "fashion_mnist": (datasets.FashionMNIST, "FashionMNIST", 10),
    "cifar10": (datasets.CIFAR10, "cifar-10-batches-py", 10),
    "cifar100": (datasets.CIFAR100, "cifar-100-python", 100),
}

_SUMS = "sha256.json"


@dataclass
class Vision(DataSource):
    """Images, uint8 of shape (N, C, H, W).

    Attributes:
        dataset: mnist, fashion_mnist, cifar10 or cifar100.
        root: Folder in torchvision's layout; None for lbdist's in the user's cache.
        download: Whether to fetch the data set when it is not there.
    """

    dataset: str = "mnist"
    root: str | None = None
    download: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.dataset in _SETS, "data.dataset", self.dataset, f"one of {', '.join(_SETS)}")
        require(self.root is None or isinstance(self.root, str), "data.root", self.root, "a folder, or null")
        require(isinstance(self.download, bool), "data.download", self.download, "true or false")

    def read(self) -> Dataset:
        """Reads the data set from the root, after fetching it if it is not there and may be."""
        source, name, classes = _SETS[self.dataset]
        root = cache_folder(self.root)
        remedy = (
            f"set data.root to a folder that has {self.dataset} in torchvision's layout ({name}/), "
            "or use data=parquet data.root=DIR"
        )
        if not (root / name).exists():
            if not self.download:
                raise InputError(
                    f"data.root={root}: {self.dataset} is not there and data.download=false; {remedy}"
                )
            try:
                _download(source, root, name)
            except Exception as error:
                raise InputError(
                    f"data.root={root}: {self.dataset} is not there and its download failed "
                    f"({one_line(error)}); {remedy}"
                ) from error
        try:
            sums = root / name / _SUMS  # of our download; a folder of the user's has none
            if sums.is_file() and json.loads(sums.read_text()) != _sums(root / name):
                raise OSError("a file is not as it was downloaded")
            with _quiet():
                train, test = (source(root, train=train) for train in (True, False))
        except Exception as error:
            raise InputError(
                f"data.root={root}: {self.dataset} is there but cannot be read ({one_line(error)}); "
                f"delete {root / name} to download it again, or {remedy}"
            ) from error
        return Dataset(_split(train), _split(test), classes)


def _download(source: Any, root: Path, name: str) -> None:
    """Fetches once, however many try: under a lock, aside, then renamed, so that it is whole or absent."""
    root.mkdir(parents=True, exist_ok=True)
    with locked(root), tempfile.TemporaryDirectory(dir=root, prefix=".download-") as aside:
        if (root / name).exists():
            return
        with _quiet():
            source(aside, download=True)  # which holds what it fetches against torchvision's sums
        (Path(aside) / name / _SUMS).write_text(json.dumps(_sums(Path(aside) / name)))
        try:
            (Path(aside) / name).rename(root / name)
        except OSError:
            if not (root / name).exists():  # else another worker was faster
                raise


def _sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a data set."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torchvision's progress bars and NumPy's remarks on CIFAR's old pickles."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _split(source: Any) -> Split:
    pixels = np.asarray(source.data)  # (N, H, W) or (N, H, W, 3)
    images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(images), np.asarray(source.targets, dtype=np.int64))
