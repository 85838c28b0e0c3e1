"""The same samples in every layout that people have."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch
from PIL import Image
from torch.utils.data import Dataset as MapStyle

from lbdist.data.arrays import Arrays
from lbdist.data.base import DataSource
from lbdist.data.folder import Folder
from lbdist.data.own import Own
from lbdist.data.parquet import Parquet
from lbdist.data.table import Table
from lbdist.data.tar import Tar

Splits = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Inputs and labels of `train` and `test`."""


def shown(picture: np.ndarray) -> Image.Image:
    """A picture of Pillow's of (C, H, W)."""
    return Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0))


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    shown(picture).save(stream, "PNG")
    return stream.getvalue()


def folder(root: Path, splits: Splits, **_: Any) -> DataSource:
    for split, (inputs, labels) in splits.items():
        for number, (picture, label) in enumerate(zip(inputs, labels, strict=True)):
            file = root / split / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(picture))
    return Folder(root=str(root))


def npz(root: Path, splits: Splits, name: str = "all") -> DataSource:
    named = {
        f"{key}_{split}": value
        for split, pair in splits.items()
        for key, value in zip("xy", pair, strict=True)
    }
    np.savez(root / f"{name}.npz", **named)
    return Arrays(root=str(root / f"{name}.npz"))


def npy(root: Path, splits: Splits, **_: Any) -> DataSource:
    for split, (inputs, labels) in splits.items():
        (root / split).mkdir()
        np.save(root / split / "images.npy", np.asfortranarray(inputs))
        np.save(root / split / "labels.npy", labels)
    return Arrays(root=str(root), inputs="images")


def tensors(root: Path, splits: Splits, **_: Any) -> DataSource:
    for split, (inputs, labels) in splits.items():
        own = {"features": np.ascontiguousarray(inputs), "target": labels}
        safetensors.numpy.save_file(own, root / f"{split}.safetensors")
    return Arrays(root=str(root))


def _columns(inputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    flat = inputs.reshape(len(inputs), -1)
    columns = {f"c{at}": flat[:, at].tolist() for at in range(flat.shape[1])}
    several = labels.reshape(len(labels), -1)
    names = ["kind"] if labels.ndim == 1 else [f"y{at}" for at in range(several.shape[1])]
    return columns | {name: several[:, at].tolist() for at, name in enumerate(names)}


def _of_table(root: Path, splits: Splits, fields: Mapping[str, Any]) -> DataSource:
    inputs, labels = splits["train"]
    kind = {"f": "numbers", "u": "pictures", "i": "tokens"}[inputs.dtype.kind]
    label = "kind" if labels.ndim == 1 else [f"y{at}" for at in range(labels[0].size)]
    return Table(root=str(root), label=label, kind=kind, shape=list(inputs.shape[1:]), **fields)


def table_csv(root: Path, splits: Splits, **fields: Any) -> DataSource:
    for split, (inputs, labels) in splits.items():
        columns = _columns(inputs, labels)
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    return _of_table(root, splits, fields)


def table_parquet(root: Path, splits: Splits, **fields: Any) -> DataSource:
    for split, (inputs, labels) in splits.items():
        pq.write_table(pa.table(_columns(inputs, labels)), root / f"{split}.parquet")
    return _of_table(root, splits, fields)


def parquet(root: Path, splits: Splits, **_: Any) -> DataSource:
    for split, (inputs, labels) in splits.items():
        if inputs.dtype == np.uint8 and inputs.ndim == 4:
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            column = pa.array([{"bytes": png(picture), "path": None} for picture in inputs], kind)
        else:
            column = pa.array(inputs.tolist(), _lists(pa.from_numpy_dtype(inputs.dtype), inputs.ndim - 1))
        label = pa.array(
            labels.tolist(),
            _lists(None, 0)
            if labels.dtype.kind == "U"
            else _lists(pa.from_numpy_dtype(labels.dtype), labels.ndim - 1),
        )
        pq.write_table(
            pa.table({"sample": column, "label": label}), root / f"{split}.parquet", row_group_size=3
        )
    return Parquet(root=str(root))


def _lists(kind: pa.DataType | None, depth: int) -> pa.DataType | None:
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def tar(root: Path, splits: Splits, **_: Any) -> DataSource:
    for split, (inputs, labels) in splits.items():
        half = len(inputs) // 2
        for number, part in enumerate((slice(None, half), slice(half, None))):
            with tarfile.open(root / f"{split}-{number:06}.tar", "w") as file:
                for at, (one, label) in enumerate(zip(inputs[part], labels[part], strict=True)):
                    content, ending = (png(one), "png") if one.dtype == np.uint8 else (b"", "npy")
                    if ending == "npy":
                        stream = io.BytesIO()
                        np.save(stream, one)
                        content = stream.getvalue()
                    for name, data in ((ending, content), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{at:05}.{name}")
                        member.size = len(data)
                        file.addfile(member, io.BytesIO(data))
    return Tar(root=str(root))


class Pairs(MapStyle):  # type: ignore[type-arg]
    """A data set as people write it, of pictures of Pillow's, or of tensors."""

    def __init__(self, file: str, split: str) -> None:
        with np.load(file) as archive:
            self.inputs, self.labels = archive[f"x_{split}"], archive[f"y_{split}"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        one, label = self.inputs[at], self.labels[at]
        picture = one.dtype == np.uint8 and one.ndim == 3
        return shown(one) if picture else torch.from_numpy(
            one
        ), label if label.dtype.kind == "U" else label.tolist()


def dataset(root: Path, splits: Splits, **_: Any) -> DataSource:
    npz(root, splits)
    target = {"_target_": "tests.support.layouts.Pairs", "file": str(root / "all.npz")}
    train, test = ({**target, "split": split} for split in ("train", "test"))
    return Own(train=train, test=test)


LAYOUTS: dict[str, Callable[..., DataSource]] = {
    "folder": folder,
    "npz": npz,
    "npy": npy,
    "safetensors": tensors,
    "csv": table_csv,
    "table in Parquet": table_parquet,
    "Parquet": parquet,
    "tar": tar,
    "dataset": dataset,
}


def fits(layout: str, splits: Splits) -> bool:
    """Whether a layout can hold such samples."""
    (inputs, labels) = splits["train"]
    pictures = inputs.dtype == np.uint8 and inputs.ndim == 4
    if layout == "folder":  # each class in both splits, as text
        return pictures and labels.dtype.kind == "U" and set(labels) == set(splits["test"][1])
    if layout == "safetensors":
        return labels.dtype.kind != "U"
    if layout == "tar":
        return labels.ndim == 1
    return True
