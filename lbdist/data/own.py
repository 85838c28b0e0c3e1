"""Bring your own map-style data set of PyTorch, torchvision or anyone, by `data.train._target_`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lbdist.config.build import build
from lbdist.data.base import Dataset
from lbdist.data.brought import Part, stacked
from lbdist.data.labels import Labels
from lbdist.data.pictures import Look
from lbdist.data.seen import Pictured, Shaped
from lbdist.data.streamed import Chunked
from lbdist.errors import InputError, one_line, require
from lbdist.random import generator_states, generators

_AGAIN = 64  # samples that are read twice
_INPUTS = ("inputs", "image", "img", "pixel_values", "input_ids", "features", "x")
_LABELS = ("label", "labels", "target", "y")


@dataclass
class Own(Pictured, Shaped):
    """The samples of a map-style data set, pairs of an input and a label, or mappings with such keys.

    It is read once, in order, into memory. Inputs are pictures of Pillow's, tensors or arrays of one shape.

    Attributes:
        train: Node of the training split: `_target_` and its arguments.
        test: Node of the test split; None where it is held out.
    """

    train: Any = None
    test: Any = None

    def check_root(self) -> None:
        """Refuses what belongs to files."""
        for field in ("root", "splits", "memory_gib"):
            allowed = "null: a data set has its own arguments, as in data.train.root=DIR, and is in memory"
            require(getattr(self, field) is None, f"data.{field}", getattr(self, field), allowed)
        named = isinstance(self.train, Mapping) and bool(self.train.get("_target_"))
        allowed = "a data set: data.train._target_=torchvision.datasets.FakeData, and its arguments"
        require(named, "data.train", self.train, allowed)
        both = (self.test is None) != (self.held_out is None)
        allowed = "a data set as data.train is, or null and data.held_out=0.2"
        require(both, "data.test", self.test, allowed)

    def limit(self) -> float:
        """All is held in memory."""
        return math.inf

    def read(self) -> Dataset:
        """Reads each split.

        Raises:
            InputError: It draws at random, or a sample is nothing that lbdist knows.
        """
        return self._read()

    def parts(self) -> list[Part]:
        """All samples of each split."""
        nodes = {"data.train": self.train, "data.test": self.test}
        return [self._part(key, build(node, key)) for key, node in nodes.items() if node is not None]

    def _part(self, key: str, source: Any) -> Part:
        try:
            count = len(source)
            getitem = source.__getitem__
        except (TypeError, AttributeError) as error:
            raise InputError(
                f"{key}: a {type(source).__name__} has no length or no numbered samples; must be a "
                "map-style data set, as torch.utils.data.Dataset is"
            ) from error
        those = generators()
        before = _states(those)
        inputs: list[np.ndarray] = []
        labels: list[Any] = []
        for at in range(count):
            one, label = self._sample(key, at, getitem)
            inputs.append(one)
            labels.append(label)
            if at in (0, count - 1) and _states(those) != before:
                raise InputError(
                    f"{key}: sample {at} draws at random; must give the same samples at every reading: leave "
                    "its random transforms out, remedy=[augmentation] has lbdist's"
                )
        for at in np.unique(np.linspace(count - 1, 0, _AGAIN).astype(int)).tolist() if count else []:
            one, label = self._sample(key, at, getitem)
            if not (_same(one, inputs[at]) and _same(label, labels[at])):
                raise InputError(
                    f"{key}: sample {at} is another at a second reading; must be the same always"
                )
        rows = stacked(inputs, key) if inputs else np.zeros((0, 1), np.float32)
        values = stacked(labels, key, "label") if labels else np.zeros(0, np.int64)
        return Part(Labels(values, [(key, count)]), self.streamed(_Held(key, rows), rows))

    def _sample(self, key: str, at: int, getitem: Any) -> tuple[np.ndarray, np.ndarray]:
        """A sample's input and label as arrays."""
        try:
            found = getitem(at)
        except Exception as error:  # the data set's own
            raise InputError(f"{key}: sample {at}: {type(error).__name__}: {one_line(error)}") from error
        if isinstance(found, Mapping):
            pair = [next((found[k] for k in names if k in found), None) for names in (_INPUTS, _LABELS)]
        else:
            pair = list(found) if isinstance(found, tuple | list) and len(found) == 2 else [None]
        if any(one is None for one in pair):
            has = (
                f"the keys {', '.join(map(str, found))}"
                if isinstance(found, Mapping)
                else type(found).__name__
            )
            raise InputError(
                f"{key}: sample {at} is {has}; must be a pair of input and label, or have keys such as x "
                "and y"
            )
        try:
            return _array(pair[0], self._asked), _array(pair[1], self._asked)
        except (InputError, ValueError, TypeError) as error:
            raise InputError(f"{key}: sample {at} {one_line(error)}") from error


def _states(those: list[Any]) -> tuple[Any, bytes]:
    return generator_states(those), torch.get_rng_state().numpy().tobytes()


def _array(value: Any, look: Look) -> np.ndarray:
    """A picture, tensor, array, number or text as an array of its own."""
    if isinstance(value, Image.Image):
        return look.taken(value)
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
    plain = isinstance(value, np.ndarray | np.generic | bool | int | float | str | list | tuple)
    array = np.array(value) if plain else np.array(None)  # NumPy would read all of what has a length
    if array.dtype.kind not in "biufUS":
        raise InputError(f"holds a {type(value).__name__}, which is no array of numbers or text")
    return array


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    equal_nan = one.dtype.kind == "f" and other.dtype.kind == "f"
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=equal_nan)


@dataclass(frozen=True, eq=False)
class _Held(Chunked):
    """Rows in memory."""

    key: str
    rows: np.ndarray

    def __str__(self) -> str:
        return self.key

    def name(self) -> str:
        """What they are."""
        return hashlib.sha256(np.ascontiguousarray(self.rows).data).hexdigest()

    def chunks(self) -> Iterator[np.ndarray]:
        """All of them."""
        yield self.rows
