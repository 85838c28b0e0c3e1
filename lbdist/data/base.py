"""What every data source gives (two splits of arrays), and the checks and subsets they share."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import math
import os
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lbdist.data import moments
from lbdist.errors import InputError, require
from lbdist.plan import held_out
from lbdist.random import permutation

_SUBSET_SEED = 0
_ROWS = 4096  # that are looked at at a time
_PICTURES = 3  # dimensions that bytes of pictures have at least, (N, H, W)


def content_digest(array: np.ndarray) -> str:
    """The SHA-256 of an array's bytes, in hex digits."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and what is to be learnt of them.

    Attributes:
        inputs: (N, ...): uint8 images (N, C, H, W), floating-point signals (N, L), integer tokens (N, T).
        labels: (N, ...), as the study's loss takes them: classes, int64 of shape (N,), by default.
    """

    inputs: np.ndarray
    labels: np.ndarray

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of both arrays, in hex digits: the same wherever the samples lie."""
        found = hashlib.sha256(self.inputs_digest.encode())
        for array in (self.inputs, self.labels):
            found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(content_digest(self.labels).encode())
        return found.hexdigest()

    @functools.cached_property
    def inputs_digest(self) -> str:
        """The SHA-256 of the inputs' bytes."""
        return content_digest(self.inputs)

    def __getstate__(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "labels": self.labels, "digest": self.digest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A split that was sent to another process or node is what it was."""
        sent = state.pop("digest")
        self.__dict__.update(state)
        if self.digest != sent:
            raise ValueError("data: samples that were sent from the driver arrived damaged")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The samples at these positions, copied."""
        return Split(self.inputs[indices], self.labels[indices])

    def first(self, count: int) -> Split:
        """The first samples, or all if there are not as many, copied into memory."""
        return Split(np.array(self.inputs[:count]), self.labels[:count].copy())


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training split, the split to evaluate on, and the number of classes (None where there are none).

    Attributes:
        train: What is trained on.
        test: What is evaluated on.
        classes: How many there are.
        mean: What a network subtracts from each channel of its inputs first; empty for nothing.
        std: What it divides them by then.
        columns: Whether a sample's numbers are columns of a table, which have no order.
    """

    train: Split
    test: Split
    classes: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    columns: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape: (C, H, W) or (L,)."""
        return self.train.inputs.shape[1:]

    def validation_split(self, fraction: float, seed: int = 0) -> Dataset:
        """Carves a validation split from the training split, which hyperparameters are chosen on.

        Each class gives its share, rounded up or down so that the total is `fraction` of the training split;
        labels that are no classes are not looked at.

        Args:
            fraction: Part of the training split to carve, strictly between 0 and 1.
            seed: Which samples; the same seed gives the same ones.

        Returns:
            A data set whose `train` is the rest and whose `test` is the carved part, both in their old order;
            the real test split is not in it.

        Raises:
            InputError: If the fraction is not between 0 and 1 or there is nothing to carve from.
        """
        mask = carved(self.train.labels, fraction, "validation fraction", seed)
        return Dataset(
            self.train.take(np.flatnonzero(~mask)), self.train.take(np.flatnonzero(mask)), self.classes
        )


def carved(labels: np.ndarray, fraction: float, what: str, seed: int = 0) -> np.ndarray:
    """Which samples of a training split are held out: bool of shape (N,), its share of each class.

    Args:
        labels: Of all samples; those that are no classes are not looked at.
        fraction: How many, strictly between 0 and 1.
        what: What the fraction is called.
        seed: Which.

    Raises:
        InputError: The fraction is not between 0 and 1, or takes none or all.
    """
    total = len(labels)
    if not 0 < fraction < 1:
        raise InputError(f"{what} {fraction!r}: must lie strictly between 0 and 1")
    count = held_out(total, fraction)
    if not 0 < count < total:
        raise InputError(f"{what} {fraction!r}: takes {count} of {total} training samples")
    shuffled = permutation(total, seed=seed, epoch=0).numpy()
    classes = labels if labels.ndim == 1 and labels.dtype.kind in "iu" else np.zeros(total, np.int64)
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    # equal steps through the samples sorted by class: a class of k gives k * count / total, rounded
    taken = np.zeros(total, bool)
    taken[by_class[(2 * np.arange(count) + 1) * total // (2 * count)]] = True
    return taken


@dataclass
class DataSource(ABC):
    """Reads one data set; its fields are what a YAML in experiments/data/ may set.

    Attributes:
        train_samples: How many training samples to use; None for all. A fixed shuffle chooses them, and a
            smaller choice is part of a larger one.
        test_samples: The same for the test split.
        mean: What is subtracted from inputs, of pictures after their bytes are scaled to [0, 1]: a number, or
            one for each channel, which is the first dimension of a sample; `train` for that of the training
            split; None for nothing.
        std: What they are divided by then, likewise.
    """

    instead: ClassVar[str] = (
        "; data=folder reads a folder of pictures, and data=dataset any map-style data set, as "
        "data.train._target_= and data.test._target_="
    )
    train_samples: int | None = None
    test_samples: int | None = None
    mean: Any = None
    std: Any = None

    def __post_init__(self) -> None:
        self._at_most: int | None = None
        self.totals: dict[
            str, int
        ] = {}  # the samples that there are, by the field that asks for some of them
        self.notes: list[str] = []  # what its user should know of how the data were taken
        for field in ("train_samples", "test_samples"):
            value = getattr(self, field)
            require(
                value is None or is_integer(value, 1),
                f"data.{field}",
                value,
                "an integer of at least 1, or null",
            )
        moments.check(self.mean, self.std)

    @abstractmethod
    def read(self) -> Dataset:
        """The data set, unchecked; it is whole, or already what `subset` leaves of it."""

    def load(self, at_most: int | None = None) -> Dataset:
        """Reads, checks and subsets the data set.

        Args:
            at_most: Samples of a split whose field does not say how many; None for all.

        Raises:
            InputError: If the data is missing, unreadable, inconsistent, or smaller than asked for.
        """
        self._at_most = at_most
        dataset = self.read()
        dataset = replace(dataset, train=_native(dataset.train), test=_native(dataset.test))
        for name, split in (("train", dataset.train), ("test", dataset.test)):
            _check(name, split)
            if type(split) is Split:  # of others, as they were made
                check_finite(f"data: the {name} split", split.inputs)
            check_finite(f"data: the {name} split's labels", split.labels)
        test_shape = dataset.test.inputs.shape[1:]
        if test_shape != dataset.shape:
            raise InputError(
                f"data: samples must have one shape, but the train split has {dataset.shape} "
                f"and the test split {test_shape}"
            )
        train = self._subset("train_samples", dataset.train)
        mean, std = moments.resolved(self.mean, self.std, train.inputs)
        if mean:
            self.notes.append(moments.say(mean, std, train.inputs))
        return replace(
            dataset, train=train, test=self._subset("test_samples", dataset.test), mean=mean, std=std
        )

    def count(self, field: str, total: int) -> int | None:
        """How many of the samples that there are `train_samples` or `test_samples` asks for; None for all."""
        asked: int | None = getattr(self, field)
        total = self.totals.setdefault(field, total)
        return asked if asked is not None or self._at_most is None else min(self._at_most, total)

    def _subset(self, field: str, split: Split) -> Split:
        count, total = self.count(field, len(split)), len(split)
        if count in (None, total):
            return split
        require(count <= total, f"data.{field}", count, f"at most {total}, which is all there are, or null")
        return split.take(subset(total, count))


def subset(total: int, count: int | None) -> np.ndarray:
    """Which of `total` samples are used when `count` are asked for (None: all), as sorted positions."""
    return np.sort(permutation(total, seed=_SUBSET_SEED, epoch=0).numpy()[:count])


def to_float(inputs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs as a network takes them: bytes of pictures scaled to [0, 1], other integers are tokens.

    No mean is subtracted.
    """
    pixels = inputs.dtype == torch.uint8 and inputs.ndim >= _PICTURES
    if not inputs.is_floating_point() and not pixels:
        return inputs.long() if inputs.dtype == torch.uint8 else inputs
    scaled = inputs.to(dtype)
    return scaled.div_(255) if pixels else scaled


def handed_out(inputs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`to_float`, in memory of its own: a network's in-place layers may write there."""
    given = to_float(inputs, dtype)
    return given.clone() if given.data_ptr() == inputs.data_ptr() else given


def bounds(start: int, stop: int, size: int, least: int = 2) -> list[tuple[int, int]]:
    """Bounds of the micro-batches of samples start to stop; a last one of fewer than `least` joins the one
    before, since statistics over one sample are none.

    Example:
        >>> bounds(0, 9, 4), bounds(0, 9, 4, least=1), bounds(0, 0, 4)
        ([(0, 4), (4, 9)], [(0, 4), (4, 8), (8, 9)], [])
    """
    starts = [at for at in range(start, stop, size) if at == start or stop - at >= min(least, size)]
    return list(zip(starts, [*starts[1:], stop], strict=True)) if starts else []


def are_tokens(inputs: np.ndarray) -> bool:
    """Whether inputs, of shape (N, ...), are whole numbers that are no pixels."""
    return inputs.dtype.kind in "iu" and not are_pixels(inputs)


def are_pixels(inputs: np.ndarray) -> bool:
    """Whether inputs are pictures, bytes of two dimensions or more a sample: those in a row are tokens."""
    return inputs.dtype == np.uint8 and inputs.ndim >= _PICTURES


def is_integer(value: object, low: int) -> bool:
    """Whether a value is an integer (True and False are not) of at least `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def cache_folder(root: str | None) -> Path:
    """The folder to keep data in: `root`, else lbdist's folder in the user's cache."""
    if root is not None:
        return Path(root).expanduser()
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "lbdist"
    with contextlib.suppress(RuntimeError):  # no home, and no entry in passwd
        cache = Path.home() / ".cache" / "lbdist"
        if os.access(next(path for path in (cache, *cache.parents) if path.exists()), os.W_OK):
            return cache
    return Path(tempfile.gettempdir()) / f"lbdist-{os.getuid()}"  # as in a container


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder against others on this machine, while the context lasts."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the rename has to do
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _native(split: Split) -> Split:
    """The split in this machine's byte order, which torch alone takes, and tokens of any size as int64."""
    inputs, labels = split.inputs, split.labels
    if not all(array.dtype.isnative for array in (inputs, labels)):
        inputs, labels = (a.astype(a.dtype.newbyteorder("=")) for a in (inputs, labels))
    if inputs.dtype.kind in "iu" and not are_pixels(inputs) and inputs.dtype != np.int64:
        inputs = inputs.astype(np.int64)
    if inputs is split.inputs and labels is split.labels:
        return split
    return Split(inputs, labels)


def check_finite(where: str, values: np.ndarray, first: int = 0) -> None:
    """Refuses NaN and infinity.

    Args:
        where: What the values are.
        values: Shape (N, ...).
        first: Number of the first sample.

    Raises:
        InputError: Naming the first sample that has one.
    """
    if values.dtype.kind != "f":
        return
    for start in range(0, len(values), _ROWS):
        good = (
            np.isfinite(values[start : start + _ROWS]).reshape(len(values[start : start + _ROWS]), -1).all(1)
        )
        if not good.all():
            row = first + start + int(np.argmin(good))
            raise InputError(f"{where}: sample {row} has NaN or infinity in it; leave it out, or fill it in")


def _check(name: str, split: Split) -> None:
    if len(split.inputs) != len(split.labels):
        raise InputError(
            f"data: the {name} split has {len(split.inputs)} samples but {len(split.labels)} labels"
        )
    if not len(split):
        raise InputError(f"data: the {name} split is empty; it needs at least 1 sample")


def on_device(
    split: Split, device: torch.device | str, dtype: torch.dtype = torch.float32, room: float | None = None
) -> tuple[Tensor, Tensor]:
    """A split as tensors, which nobody may write to: uint8 stays uint8, floating point takes the precision.

    Args:
        split: The samples; those of other processes of a node are in memory that they share.
        device: Where they are to be, if they fit; else they stay, and batches are sent.
        dtype: The precision.
        room: Bytes that they may take on the device; None for half of what is free on a GPU.
    """
    device = torch.device(device)
    if room is None:
        room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        inputs, labels = torch.from_numpy(split.inputs), torch.from_numpy(split.labels)
    kind = dtype if inputs.is_floating_point() else inputs.dtype
    fits = inputs.numel() * kind.itemsize + labels.nbytes <= room
    where = device if fits else torch.device("cpu")
    return inputs.to(where, kind), labels.to(where)
