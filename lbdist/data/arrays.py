"""Bring your own arrays: `.npz`, `.npy` and safetensors, inputs and labels by key.

A key is `x` in train.npz, or `x_train` or `train_images` in an archive of all splits, or x_train.npy.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from lbdist.data.brought import Part
from lbdist.data.files import Files
from lbdist.data.labels import Labels
from lbdist.data.seen import Shaped
from lbdist.data.streamed import Chunked
from lbdist.errors import InputError, one_line

_ENDINGS = (".npz", ".npy", ".safetensors")
_INPUTS = ("inputs", "x", "images", "image", "data", "features", "input_ids", "tokens")
_LABELS = ("labels", "y", "label", "targets", "target")
_CHUNK = 2**22  # bytes that are read at a time


@dataclass
class Arrays(Shaped):
    """Samples along the first dimension of arrays: uint8 (N, C, H, W), float32 or int64 (N, ...).

    Attributes:
        inputs: Key of the inputs; None for one of the usual names, such as `x` and `images`.
        label: Key of the labels; None for one of the usual names, such as `y` and `labels`.
    """

    inputs: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("inputs", "label"):
            self.check_name(field)

    def parts(self) -> list[Part]:
        """Labels of each split, and where its inputs are."""
        every = _members(self.files)
        inputs = _by_split(every, _INPUTS if self.inputs is None else (self.inputs,))
        labels = _by_split(every, _LABELS if self.label is None else (self.label,))
        known = ", ".join(sorted(every)) or "none"
        for field, found, usual in (("inputs", inputs, _INPUTS), ("label", labels, _LABELS)):
            if every and not found:
                wanted = getattr(self, field) or " or ".join(usual)
                raise InputError(
                    f"data.{field}: there is no key {wanted} in {self.files.root}; set data.{field} to one "
                    f"of {known} (without the split's name)"
                )
        both = {split: [inputs[split], labels[split]] for split in inputs if split in labels}
        taken = self.chosen(both, "the keys {0}_x and {0}_y, or x and y in {0}.npz")
        return [self._part(*(every[name] for name in names)) for _, names in taken]

    def _part(self, inputs: _Member, labels: _Member) -> Part:
        values = np.concatenate([*labels.chunks()] or [np.zeros(0, np.int64)])
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
        first = next(inputs.chunks(), np.zeros((0, 1), np.float32))
        count = inputs.count()
        if count != len(values):
            raise InputError(
                f"data.label: {labels} has {len(values)} labels for the {count} samples of {inputs}"
            )
        return Part(Labels(values, [(str(labels), len(values))]), self.streamed(inputs, first))


def _members(files: Files) -> dict[str, _Member]:
    """The arrays that are there, by what they are called: within an archive by its key."""
    found: dict[str, _Member] = {}
    names = [name for name in files.names() if name.endswith(_ENDINGS)]
    archives = [name for name in names if not name.endswith(".npy")]
    for name in names:
        stem = name.rpartition(".")[0]
        if name.endswith(".npy"):
            found[stem] = _Member(files, name, "")
            continue
        for key in _keys(files, name):
            found[key if len(archives) == 1 and not _is_split(stem) else f"{stem}/{key}"] = _Member(
                files, name, key
            )
    return found


def _is_split(stem: str) -> bool:
    return stem.rpartition("/")[2] in ("train", "test", "validation", "valid", "val")


def _keys(files: Files, name: str) -> list[str]:
    with _reading(files, name):
        if name.endswith(".npz"):
            with files.open(name) as file, zipfile.ZipFile(file) as archive:
                return [member.removesuffix(".npy") for member in archive.namelist()]
        with _tensors(files, name) as (keys, _):
            return list(keys)


def _by_split(every: Sequence[str] | dict[str, Any], keys: Sequence[str]) -> dict[str, str]:
    """The arrays of the first of some keys that is there, by split; `` where the name has no split in it.

    Example:
        >>> _by_split(["x_train", "y_train", "test/x"], ["x"])
        {'train': 'x_train', 'test': 'test/x'}
    """
    for key in keys:
        plain, found = _plain(key), {}
        for name in every:
            whole = _plain(name)
            if whole == plain:
                found[""] = name
            elif whole.startswith(f"{plain}_"):
                found[whole.removeprefix(f"{plain}_")] = name
            elif whole.endswith(f"_{plain}"):
                found[whole.removesuffix(f"_{plain}")] = name
        if found:
            return found
    return {}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


@dataclass(frozen=True)
class _Member(Chunked):
    """An array of a file, or of an archive by its key."""

    files: Files
    file: str
    key: str

    def __str__(self) -> str:
        return f"{self.files.say(self.file)}{f' {self.key}' if self.key else ''}"

    def name(self) -> str:
        """The file, as it is now, and the key."""
        return hashlib.sha256(repr((self.files.stamp(self.file), self.key)).encode()).hexdigest()

    def count(self) -> int:
        """How many samples it has."""
        with self._opened() as (shape, _, _):
            return shape[0] if shape else 0

    def chunks(self) -> Iterator[np.ndarray]:
        """So many rows at a time as take a few MiB."""
        with self._opened() as (shape, dtype, read):
            if not shape:
                raise InputError(
                    f"data.root: {self}: must have samples along a first dimension, not be one number"
                )
            size = int(np.prod(shape[1:])) * dtype.itemsize
            step = max(1, _CHUNK // max(1, size))
            for start in range(0, shape[0], step):
                yield read(start, min(start + step, shape[0]))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[tuple[int, ...], np.dtype, Any]]:
        """The array's shape and type, and a function that reads rows, in order."""
        with _reading(self.files, self.file), contextlib.ExitStack() as stack:
            if self.file.endswith(".safetensors"):
                _, get = stack.enter_context(_tensors(self.files, self.file))
                tensor = get(self.key)
                shape = tuple(tensor.shape if isinstance(tensor, np.ndarray) else tensor.get_shape())
                yield shape, tensor[:1].dtype, lambda start, stop: np.asarray(tensor[start:stop])
                return
            file: Any = stack.enter_context(self.files.open(self.file))
            if self.file.endswith(".npz"):
                file = stack.enter_context(zipfile.ZipFile(file)).open(f"{self.key}.npy")
            shape, dtype, whole = _header(file, str(self))
            if whole is not None:
                yield shape, dtype, lambda start, stop: whole[start:stop]
                return

            def read(start: int, stop: int) -> np.ndarray:
                size = (stop - start) * int(np.prod(shape[1:])) * dtype.itemsize
                content = file.read(size)
                if len(content) != size:
                    raise InputError(f"data.root: {self} is cut short")
                return np.frombuffer(content, dtype).reshape(stop - start, *shape[1:])

            yield shape, dtype, read


def _header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], np.dtype, np.ndarray | None]:
    """Shape and type of the array that a file goes on with, and itself where its rows are not in order."""
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in reader:
        raise InputError(f"data.root: {where} is of NumPy's format {version}, which is not read")
    shape, columns_first, dtype = reader[version](file)
    if dtype.hasobject:
        raise InputError(
            f"data.root: {where} holds Python objects, which are never unpickled: save an array of numbers "
            "or text, of rows of one length"
        )
    if columns_first and len(shape) > 1:
        return shape, dtype, np.frombuffer(file.read(), dtype).reshape(shape[::-1]).T
    return shape, dtype, None


@contextlib.contextmanager
def _tensors(files: Files, name: str) -> Iterator[tuple[list[str], Any]]:
    """The keys of a file of safetensors, and what gives a key's array, of a local file piece by piece."""
    place = files.here(name)
    if isinstance(place, str):
        with safetensors.safe_open(place, framework="np") as opened:
            yield list(opened.keys()), opened.get_slice
    else:
        loaded = safetensors.numpy.load(place)
        yield list(loaded), loaded.__getitem__


@contextlib.contextmanager
def _reading(files: Files, name: str) -> Iterator[None]:
    """Says of a file that it cannot be read, and why."""
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except (
        safetensors.SafetensorError,
        zipfile.BadZipFile,
        ValueError,
        TypeError,
        KeyError,
        OSError,
        EOFError,
    ) as error:
        raise InputError(f"data.root: {files.say(name)} cannot be read: {one_line(error)}") from error
