"""What people bring, as they have it, and what is wrong with it: one line that says how to go on."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as MapStyle
from torch.utils.data import IterableDataset

from lbdist.data.arrays import Arrays
from lbdist.data.base import DataSource, subset
from lbdist.data.brought import Part
from lbdist.data.files import Files
from lbdist.data.folder import Folder
from lbdist.data.mapped import Mapped
from lbdist.data.own import Own
from lbdist.data.parquet import Parquet
from lbdist.data.table import Table
from lbdist.data.tar import Tar
from lbdist.errors import InputError
from lbdist.storage import Store
from tests.support.files import encode
from tests.support.layouts import LAYOUTS, png, shown

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 3, 6, 8), np.uint8)
LABELS = np.arange(12) % 3


def refused(source: Callable[[], DataSource]) -> str:
    with pytest.raises(InputError) as caught:
        source().load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pictures(root: Path, *names: str, size: tuple[int, int] = (6, 8)) -> Path:
    """A grey picture in each of these files, whose level is the file's place in the list."""
    for level, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(size, level, np.uint8)).save(root / name)
    return root


# folders of pictures


def test_a_folder_of_one_set_is_split(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{name}/{number}.png" for name in "ab" for number in range(10)))
    data = Folder(root=str(tmp_path), held_out=0.2).load()
    assert (len(data.train), len(data.test), data.classes) == (16, 4, 2)
    assert np.bincount(data.test.labels).tolist() == [2, 2]
    levels = np.concatenate([data.train.inputs[:, 0, 0, 0], data.test.inputs[:, 0, 0, 0]])
    assert sorted(levels) == list(range(20))
    assert all((data.train.inputs[:, 0, 0, 0] >= 10) == data.train.labels)
    again = Folder(root=str(tmp_path), held_out=0.2).load()
    assert again.test.digest == data.test.digest
    few = Folder(root=str(tmp_path), held_out=0.2, train_samples=5).load()
    assert np.array_equal(few.train.inputs, data.train.inputs[subset(16, 5)])
    assert few.test.digest == data.test.digest


def test_pictures_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"train/{'ab'[number % 2]}/im{number}.png" for number in range(12)]
    pictures(tmp_path, *names, "val/a/1.png", "val/b/2.png")
    data = Folder(root=str(tmp_path)).load()
    assert data.train.inputs[:, 0, 0, 0].tolist() == list(range(12))  # 10 after 9
    assert data.train.labels.tolist() == [0, 1] * 6 and data.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "it holds no pictures: there is nothing"),
        (["train/0.png", "test/1.png"], "it holds pictures of no class"),
        (["train/a/0.png", "train/b/0.png", "test/a/1.png"], "test/b has no pictures, but"),
        (["train/a/0.png", "test/b/1.png"], "test/a has no pictures, but"),
        (["train/a/0.png", "test/a/1.png"], "must hold two classes or more, not a alone"),
        (
            ["train/a/0.png", "train/b/1.png"],
            "there are the splits train: set data.splits, or data.held_out=0.2",
        ),
        (["a/0.png", "b/1.png"], "data.held_out=0.2 takes a share"),
    ],
)
def test_folders_without_classes_or_splits(tmp_path: Path, names: list[str], says: str) -> None:
    pictures(tmp_path, *names)
    assert says in refused(lambda: Folder(root=str(tmp_path)))


def test_pictures_of_several_sizes(tmp_path: Path) -> None:
    names = [f"{split}/{name}/0.png" for split in ("train", "test") for name in "ab"]
    pictures(tmp_path, *names)
    wide = np.arange(8 * 24, dtype=np.uint8).reshape(8, 24)
    Image.fromarray(wide).save(tmp_path / "train/b/0.png")
    line = refused(lambda: Folder(root=str(tmp_path)))
    assert "train/b/0.png has shape (1, 8, 24), but the first one has (1, 6, 8)" in line
    assert "data.resize=[HEIGHT,WIDTH]" in line
    exact = Folder(root=str(tmp_path), resize=[8, 24]).load()
    assert exact.shape == (1, 8, 24) and np.array_equal(exact.train.inputs[1, 0], wide)
    square = Folder(root=str(tmp_path), resize=8).load()
    assert np.array_equal(square.train.inputs[1, 0], wide[:, 8:16])  # the middle
    assert (square.train.inputs[0] == 0).all() and (square.test.inputs[1] == 3).all()
    for wrong in (0, "large", [1, 2, 3], [True], []):
        with pytest.raises(InputError, match=r"^data\.resize="):
            Folder(root=str(tmp_path), resize=wrong)


def test_many_pictures_are_decoded_by_several_processes_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inputs = RNG.integers(0, 256, (2100, 3, 32, 32), np.uint8)
    labels = np.array(["a", "b"])[np.arange(2100) % 2]
    (tmp_path / "root").mkdir()
    LAYOUTS["folder"](tmp_path / "root", {"train": (inputs, labels), "test": (inputs[:2], labels[:2])})
    source = Folder(root=str(tmp_path / "root"))
    data = source.load()
    assert not isinstance(data.train, Mapped) and np.array_equal(data.train.inputs, inputs)
    kept = list((tmp_path / "cache").rglob("*.npy"))
    assert len(kept) == 1  # two pictures are not worth a file
    assert Folder(root=str(tmp_path / "root")).load().train.digest == data.train.digest
    broken = sorted((tmp_path / "root/train/a").iterdir())[-1]
    broken.write_bytes(b"no picture")
    assert f"{broken} cannot be decoded" in refused(lambda: Folder(root=str(tmp_path / "root")))
    assert list((tmp_path / "cache").rglob("*.npy")) == kept


# arrays


def test_keys_of_archives_as_people_have_them(tmp_path: Path) -> None:
    """Keras's mnist.npz, MedMNIST's, and a file a split."""
    grey = COLOUR[:, 0]
    np.savez(tmp_path / "a.npz", x_train=grey, y_train=LABELS, x_test=grey[:3], y_test=LABELS[:3])
    column = LABELS[:, None].astype(np.uint8)
    med = {"train_images": grey, "train_labels": column, "val_images": grey[:3], "val_labels": column[:3]}
    np.savez(tmp_path / "b.npz", **med, test_images=grey[3:], test_labels=column[3:])
    (tmp_path / "c").mkdir()
    np.savez(tmp_path / "c/train.npz", data=grey, target=LABELS)
    np.savez(tmp_path / "c/test.npz", data=grey[:3], target=LABELS[:3])
    sources = [
        Arrays(root=str(tmp_path / "a.npz")),
        Arrays(root=str(tmp_path / "b.npz"), splits={"test": "val"}),
        Arrays(root=str(tmp_path / "c")),
    ]
    digests = {(data.train.digest, data.test.digest) for data in (source.load() for source in sources)}
    assert len(digests) == 1
    assert len(Arrays(root=str(tmp_path / "b.npz")).load().test) == 9
    np.savez(tmp_path / "d.npz", X=grey, Y=LABELS)
    data = Arrays(root=str(tmp_path / "d.npz"), held_out=0.25).load()
    assert (len(data.train), len(data.test)) == (9, 3)
    assert "what is there has no split's name: data.held_out=0.2" in refused(
        lambda: Arrays(root=str(tmp_path / "d.npz"))
    )


@pytest.mark.parametrize(
    ("inputs", "fields", "shape", "kind"),
    [
        (COLOUR, {}, (3, 6, 8), "u1"),
        (COLOUR.transpose(0, 2, 3, 1), {}, (3, 6, 8), "u1"),
        (COLOUR[:, 0], {}, (1, 6, 8), "u1"),
        (COLOUR.reshape(12, -1), {}, (144,), "i8"),  # bytes in a row are tokens as any
        (COLOUR.reshape(12, -1), {"shape": [3, 6, 8]}, (3, 6, 8), "u1"),
        (COLOUR.astype("i4"), {"kind": "pictures"}, (3, 6, 8), "u1"),
        (COLOUR.astype("i2").reshape(12, -1), {}, (144,), "i8"),
        (COLOUR.astype("i2").reshape(12, -1), {"kind": "numbers"}, (144,), "f4"),
        (COLOUR > 99, {}, (3, 6, 8), "f4"),
        (COLOUR.astype("f8"), {}, (3, 6, 8), "f4"),
        (COLOUR.astype(">f2"), {}, (3, 6, 8), "f4"),
        (COLOUR[:, 0, 0, 0], {}, (), "i8"),
    ],
)
def test_what_arrays_are(
    tmp_path: Path, inputs: np.ndarray, fields: dict[str, Any], shape: tuple[int, ...], kind: str
) -> None:
    np.savez(tmp_path / "a.npz", x_train=inputs, y_train=LABELS, x_test=inputs[:3], y_test=LABELS[:3])
    data = Arrays(root=str(tmp_path / "a.npz"), **fields).load()
    assert (data.shape, data.train.inputs.dtype) == (shape, np.dtype(kind))
    expected = COLOUR if inputs.dtype != bool else inputs
    if inputs.ndim > 1 and shape != (1, 6, 8):
        assert np.array_equal(data.train.inputs.reshape(12, -1), expected.reshape(12, -1))


def write(root: Path, **arrays: Any) -> Path:
    good = {"x_train": COLOUR, "y_train": LABELS, "x_test": COLOUR[:3], "y_test": LABELS[:3]}
    np.savez(root / "a.npz", **{**good, **arrays})
    return root / "a.npz"


RAGGED = np.array([[1, 2], [3]] * 6, dtype=object)


@pytest.mark.parametrize(
    ("arrays", "fields", "says"),
    [
        ({}, {"inputs": "pixels"}, "data.inputs: there is no key pixels in"),
        ({}, {"inputs": "pixels"}, "x_train, y_test, y_train (without the split's name)"),
        ({}, {"label": "kind"}, "data.label: there is no key kind in"),
        ({"x_train": RAGGED}, {}, "a.npz x_train holds Python objects, which are never unpickled"),
        ({"y_train": RAGGED}, {}, "a.npz y_train holds Python objects, which are never unpickled"),
        ({"y_train": LABELS[:5]}, {}, "y_train has 5 labels for the 12 samples of"),
        ({"x_train": COLOUR[:0], "y_train": LABELS[:0]}, {}, "data: the train split is empty"),
        ({"x_test": COLOUR[:0], "y_test": LABELS[:0]}, {}, "data: the test split is empty"),
        ({"x_test": COLOUR[:3, :1]}, {}, "samples must have one shape"),
        ({"x_train": COLOUR.astype("c8")}, {}, "must be numbers or pictures, not complex64"),
        ({"x_train": np.full(COLOUR.shape, np.nan)}, {}, "the train split: sample 0 has NaN or infinity"),
        ({"x_test": np.full((3, 3, 6, 8), 1e300)}, {}, "the test split: sample 0 has NaN or infinity"),
        (
            {"y_train": np.full(12, np.inf), "y_test": LABELS[:3] / 1.0},
            {},
            "train split's labels: sample 0 has NaN",
        ),
        ({"x_train": COLOUR.astype(int) + 300}, {"kind": "pictures"}, "pixels are 0 to 255"),
        ({}, {"shape": [3, 5, 5]}, "data.shape=[3, 5, 5]: must be of 144 numbers"),
        ({}, {"kind": "words"}, "data.kind=words: must be one of pictures, numbers, tokens"),
        ({"x_train": COLOUR / 2}, {"kind": "tokens"}, "data.kind=tokens: must be numbers or null"),
        ({"y_train": LABELS.astype(str)}, {}, "must mean the same in every file"),
        ({"y_test": LABELS[:3] + 9}, {}, "label 9 in row 0; allowed are 0 to 2; data.task=regression"),
        ({"y_train": LABELS - 1}, {}, "label -1 in row 0; allowed are 0 to 1"),
        ({"y_train": LABELS * 1000}, {}, "are no numbers of classes: data.relabel=true"),
        ({}, {"classes": 2}, "label 2 in row 2; allowed are 0 to 1"),
        ({"y_train": LABELS + 0.5}, {"task": "classification"}, "must be whole numbers, or text"),
        (
            {"y_train": np.array(list("abcabcabcabc")), "y_test": np.array(list("abd"))},
            {},
            "label d in row 2, which",
        ),
        (
            {"y_train": LABELS + 1, "y_test": LABELS[:3]},
            {"relabel": True},
            "label 0 in row 0, which no training",
        ),
        (
            {"y_train": np.array(["a"] * 12), "y_test": np.array(["a"] * 3)},
            {"task": "regression"},
            "are text",
        ),
        ({"y_train": np.stack([LABELS] * 2, 1)}, {}, "of one shape in both splits"),
        ({}, {"held_out": 1.5}, "data.held_out=1.5: must be a share between 0 and 1"),
        ({}, {"held_out": 0.01}, "data.held_out 0.01: takes 0 of 12"),
        ({}, {"splits": {"test": "dev"}}, "must hold the keys dev_x and dev_y"),
        ({}, {"train_samples": 13}, "data.train_samples=13: must be at most 12"),
        ({}, {"mean": "all"}, "data.mean=all: must be a number"),
        ({}, {"std": 0.0}, "data.std=0.0: must be a number above 0"),
        ({}, {"mean": [0.5, 0.5]}, "data.mean=[0.5, 0.5]: must be one number, or 3, one a channel"),
        (
            {},
            {"mean": [123.7, 116.3, 103.5]},
            "must be at most 1: the bytes of pictures are scaled to [0, 1]",
        ),
        ({"x_train": LABELS[:, None], "x_test": LABELS[:3, None]}, {"mean": "train"}, "inputs are tokens"),
    ],
)
def test_arrays_that_are_wrong(
    tmp_path: Path, arrays: dict[str, Any], fields: dict[str, Any], says: str
) -> None:
    file = write(tmp_path, **arrays)
    assert says in refused(lambda: Arrays(root=str(file), **fields))


def test_labels_that_are_told(tmp_path: Path) -> None:
    """Those that start at 1, identifiers, and text."""
    shifted = {"y_train": LABELS + 1, "y_test": LABELS[:3] + 1}
    source = Arrays(root=str(write(tmp_path, **shifted)))
    assert source.load().classes == 4
    assert source.notes == [
        "data: of 4 classes, no training sample has class 0; data.relabel=true takes those that there are, "
        "in order"
    ]
    source = Arrays(root=str(tmp_path / "a.npz"), relabel=True)
    data = source.load()
    assert data.classes == 3 and np.array_equal(data.train.labels, LABELS)
    assert source.notes == ["data: the classes in order: 1 is 0, 2 is 1, 3 is 2"]
    names = np.array(["cat", "ant", "bee"])[LABELS]
    data = Arrays(root=str(write(tmp_path, y_train=names, y_test=names[:3].astype("S")))).load()
    assert np.array_equal(data.train.labels, np.array([2, 0, 1])[LABELS])
    prices = {"y_train": LABELS * 1000, "y_test": LABELS[:3]}
    data = Arrays(root=str(write(tmp_path, **prices)), task="regression").load()
    assert data.classes is None and data.train.labels.dtype == np.float32


@pytest.mark.parametrize("content", [b"", b"PK no zip", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("name", ["train.npz", "train.npy", "train.safetensors"])
def test_files_that_are_no_arrays(tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "x" if name.endswith("npy") else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    (tmp_path / "y_train.npy").write_bytes(content)
    line = refused(lambda: Arrays(root=str(tmp_path), held_out=0.5))
    assert "cannot be read" in line and str(tmp_path) in line


# tables


def table(root: Path, train: dict[str, Any], test: dict[str, Any]) -> Path:
    for split, columns in (("train", train), ("test", test)):
        names = list(columns)
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(names), *(",".join("" if v is None else str(v) for v in row) for row in rows)]
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


GOOD = {"size": [1.5, 2.5, 3.5, 4.5], "town": ["Ulm", "Bonn", "Ulm", "Kiel"], "label": [0, 1, 0, 1]}
TEST = {"town": ["Kiel", "Bonn"], "label": [1, 0], "size": [2.0, 0.0]}  # columns go by their names


def test_a_table_with_categories_standardised(tmp_path: Path) -> None:
    table(tmp_path, GOOD, TEST)
    data = Table(root=str(tmp_path), categories=["town"], standardise="inputs").load()
    deviation = np.std(GOOD["size"])
    expected = [[-1.5, 0, 0, 1], [-0.5, 1, 0, 0], [0.5, 0, 0, 1], [1.5, 0, 1, 0]]
    expected = np.array(expected) / np.array([deviation, 1, 1, 1])
    np.testing.assert_allclose(data.train.inputs, expected, rtol=1e-6)
    np.testing.assert_allclose(
        data.test.inputs, np.array([[-1 / deviation, 0, 1, 0], [-3 / deviation, 1, 0, 0]]), rtol=1e-6
    )
    more = {name: values * 4 for name, values in GOOD.items()}
    table(tmp_path, {**more, "size": [float(at) for at in range(16)]}, TEST)
    held = Table(root=str(tmp_path / "train.csv"), categories=["town"], standardise="inputs", held_out=0.25)
    trained = held.load().train.inputs[:, 0]  # what is held out tells nothing
    assert abs(trained.mean()) < 1e-6 and abs(trained.std() - 1) < 1e-6


def test_empty_cells(tmp_path: Path) -> None:
    train = {**GOOD, "size": [1.0, None, 3.0, 5.0], "town": ["Bonn", "Ulm", None, "Kiel"]}
    table(tmp_path, train, {**TEST, "size": [None, 0.0]})
    fields: dict[str, Any] = {"root": str(tmp_path), "categories": ["town"]}
    assert "column size is empty in 1 rows, the first of them 1; data.missing=drop" in refused(
        lambda: Table(**fields)
    )
    source = Table(**fields, missing="drop")
    data = source.load()
    assert data.train.inputs.tolist() == [[1, 1, 0], [5, 0, 1]] and len(data.test) == 1
    assert "2 of 4 rows" in source.notes[0]
    filled = Table(**fields, missing="mean").load()
    assert filled.train.inputs[:, 0].tolist() == [1, 3, 3, 5] and filled.test.inputs[:, 0].tolist() == [3, 0]
    assert filled.train.inputs[2, 1:].tolist() == [1, 0, 0, 0]  # of no town
    table(tmp_path, {**train, "label": [0, 1, None, 1]}, TEST)
    assert "column label is empty in 1 rows" in refused(lambda: Table(**fields, missing="mean"))


@pytest.mark.parametrize(
    ("train", "test", "fields", "says"),
    [
        ({}, {}, {}, "column town is string, no number: data.categories=[town] takes it for a category"),
        ({}, {}, {"label": "price"}, "there is no column price; set data.label to one of size, town, label"),
        ({}, {}, {"inputs": ["size", "label"]}, "data.label=['label']: must be no feature"),
        ({}, {}, {"inputs": ["size", "age"]}, "there is no column age; set data.inputs to one of"),
        ({}, {}, {"inputs": ["size", "size"]}, "columns, each of them once"),
        ({}, {}, {"categories": ["city"]}, "data.categories=['city']: must be among the features"),
        (
            {},
            {"town": ["Rom", "Ulm"]},
            {"categories": ["town"]},
            "town is 'Rom' where no training sample",
        ),
        ({}, {"label": ["x", "y"]}, {"categories": ["town"]}, "must mean the same in every file"),
        ({"size": [1, 2, "inf", 3]}, {}, {"inputs": ["size"]}, "sample 2 has NaN or infinity"),
        ({"town": ["2020-01-01"] * 4}, {}, {}, "column town is date32[day], no number"),
        (
            {"town": [f"t{at}" for at in range(1001)], "size": [1] * 1001, "label": [0, 1] * 500 + [0]},
            {},
            {"categories": ["town"]},
            "town (1,001 values): must be columns of at most 1,000",
        ),
        ({}, {}, {"missing": "zero"}, "data.missing=zero: must be drop or mean, or null"),
        ({}, {}, {"standardise": True}, "data.standardise=True: must be inputs or all, or null"),
        (
            {"size": [1, 2, 3, 4]},
            {},
            {"inputs": ["size"], "kind": "tokens", "standardise": "all"},
            "tokens and pixels stay",
        ),
        ({}, {}, {"inputs": ["size"], "kind": "tokens"}, "must be numbers, since it is no integers"),
    ],
)
def test_tables_that_are_wrong(
    tmp_path: Path, train: dict[str, Any], test: dict[str, Any], fields: dict[str, Any], says: str
) -> None:
    table(tmp_path, {**GOOD, **train}, {**TEST, **test})
    assert says in refused(lambda: Table(root=str(tmp_path), **fields))


def test_a_table_of_other_files(tmp_path: Path) -> None:
    """Shards, tabs, several labels, and a label that is standardised too."""
    numbers = {"a": [1, 2, 3, 4], "b": [0.5, 1, 2, 4], "y": [10.0, 20.0, 30.0, 40.0]}
    for at in range(2):
        part = {name: values[2 * at : 2 * at + 2] for name, values in numbers.items()}
        lines = ["\t".join(part), *("\t".join(map(str, row)) for row in zip(*part.values(), strict=True))]
        (tmp_path / f"train-{at}.tsv").write_text("\n".join(lines))
    pq.write_table(pa.table(numbers), tmp_path / "test.parquet")
    data = Table(root=str(tmp_path), standardise="all").load()
    assert data.train.inputs.shape == (4, 2) and data.train.labels.tolist() == data.test.labels.tolist()
    assert abs(data.train.labels.mean()) < 1e-6 and abs(data.train.labels.std() - 1) < 1e-6
    several = Table(root=str(tmp_path), label=["b", "y"]).load()
    assert several.train.labels.tolist() == [[0.5, 10], [1, 20], [2, 30], [4, 40]]
    (tmp_path / "train-1.tsv").write_text("a\tb\ty\nx\t1\t1\n")
    assert "are not of one table" in refused(lambda: Table(root=str(tmp_path)))


# features in Parquet


def parquet(root: Path, **columns: Any) -> Callable[..., Parquet]:
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), root / f"{split}.parquet")
    return lambda **fields: Parquet(root=str(root), **fields)


def test_features_of_parquet(tmp_path: Path) -> None:
    series = RNG.normal(size=(4, 5, 2)).astype("f4")
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(series.reshape(-1)), 2)
    nested = pa.FixedSizeListArray.from_arrays(fixed, 5)
    data = parquet(tmp_path, series=nested, label=[0, 1, 0, 1])().load()
    assert np.array_equal(data.train.inputs, series)
    tokens = parquet(tmp_path, input_ids=[[3, 1], [2, 2], [0, 1], [1, 1]], label=list("abab"))().load()
    assert tokens.train.inputs.dtype == np.int64 and tokens.classes == 2
    several = {"x": [[1.0], [2.0]], "label": [[1, 0, 1], [0, 0, 1]]}
    assert parquet(tmp_path, **several)().load().train.labels.tolist() == [[1, 0, 1], [0, 0, 1]]
    feature = (
        '{"info": {"features": {"label": {"feature": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}}'
    )
    tags = pa.table({"x": [[1.0], [2.0]], "label": [[0, 2], []]}).replace_schema_metadata(
        {"huggingface": feature}
    )
    for split in ("train", "test"):
        pq.write_table(tags, tmp_path / f"{split}.parquet")
    assert Parquet(root=str(tmp_path)).load().train.labels.tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"x": [[1, 2], [3]]}, "row 1 has 1 values where the first one has 2; all must have one length"),
        ({"x": [[1, 2], None]}, "1 rows are missing"),
        ({"x": [[1, 2], [1, None]]}, "1 values are missing"),
        ({"x": [["a"], ["b"]]}, "must be lists of numbers, not of string"),
        ({"x": ["some words", "more"]}, "text is to be cut into tokens first"),
        ({"x": [1.0, 2.0]}, "columns of numbers are data=table"),
        ({"x": [[1.0], [2.0]], "label": [None, 1]}, "1 rows have no label"),
        ({"x": [[1.0], [2.0]], "label": [[1], [1, 2]]}, "data.label: "),
    ],
)
def test_features_of_parquet_that_are_wrong(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    assert says in refused(parquet(tmp_path, **{"label": [0, 1], **columns}))


def test_hugging_face_s_own_conversion_is_read(tmp_path: Path) -> None:
    (tmp_path / "default/train").mkdir(parents=True)
    (tmp_path / "default/validation").mkdir()
    for name in ("train/0000", "train/0001", "validation/0000"):
        pq.write_table(pa.table({"x": [[1.0], [2.0]], "label": [0, 1]}), tmp_path / f"default/{name}.parquet")
    data = Parquet(root=str(tmp_path)).load()
    assert (len(data.train), len(data.test)) == (4, 2)


def test_classes_of_other_names(tmp_path: Path) -> None:
    def named(split: str, *names: str) -> None:
        listed = ", ".join(f'"{name}"' for name in names)
        feature = f'{{"info": {{"features": {{"label": {{"names": [{listed}], "_type": "ClassLabel"}}}}}}}}'
        own = pa.table({"x": [[1.0], [2.0]], "label": [0, 1]}).replace_schema_metadata(
            {"huggingface": feature}
        )
        pq.write_table(own, tmp_path / f"{split}.parquet")

    named("train", "cat", "dog")
    named("test", "dog", "cat")
    line = refused(lambda: Parquet(root=str(tmp_path)))
    assert f"{tmp_path}/train.parquet calls class 0 cat and {tmp_path}/test.parquet calls it dog" in line


# tar shards


def shard(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as out:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def test_tar_shards(tmp_path: Path) -> None:
    sample = {"json": b"{}", "jpg": encode(COLOUR[0].transpose(1, 2, 0), "JPEG"), "cls": b"1\n"}
    members = {f"{key}.{ending}": content for key in ("a/1", "a/2") for ending, content in sample.items()}
    shard(tmp_path / "train-0.tar.gz", members)
    shard(tmp_path / "train-1.tar.gz", {**members, "b.cls": b"0", "b.jpg": sample["jpg"]})
    shard(tmp_path / "val.tar", members)
    data = Tar(root=str(tmp_path)).load()
    assert data.shape == (3, 6, 8) and data.train.labels.tolist() == [1, 1, 1, 1, 0] and len(data.test) == 2
    assert "1.json has" not in (line := refused(lambda: Tar(root=str(tmp_path), label="txt")))
    assert "a/1 has json, jpg, cls; set data.label to one of them" in line
    shard(tmp_path / "val.tar", {"1.cls": b"0"})
    assert "1 has cls; set data.inputs to one of them" in refused(
        lambda: Tar(root=str(tmp_path), inputs="jpg")
    )
    (tmp_path / "val.tar").write_bytes(b"no tar" * 200)
    assert "val.tar cannot be read as tar" in refused(lambda: Tar(root=str(tmp_path)))


# data sets of PyTorch's


class Numbered(MapStyle):  # type: ignore[type-arg]
    """Its samples are what `give` says."""

    def __init__(self, kind: str, count: int = 100) -> None:
        self.kind, self.count, self.read = kind, count, 0
        self.random = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> Any:
        self.read += 1
        x, label = torch.full((3,), float(at)), at % 2
        return {
            "good": lambda: (x, label),
            "mapping": lambda: {"image": shown(COLOUR[at % 12]), "label": label, "id": at},
            "torch": lambda: (x + torch.rand(3), label),
            "python": lambda: (x + random.random(), label),
            "own": lambda: (x + self.random.normal(), label),
            "reads": lambda: (x + self.read, label),
            "alone": lambda: x,
            "three": lambda: (x, label, at),
            "object": lambda: (self, label),
            "ragged": lambda: (torch.zeros(1 + at), label),
            "fails": lambda: (x, 1 / (at - 3)),
        }[self.kind]()


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def own(kind: str, **fields: Any) -> Own:
    node = {"_target_": "tests.data.test_bring.Numbered", "kind": kind}
    return Own(**{"train": node, "test": {**node, "count": 10}, **fields})


def test_a_data_set_is_read_once_in_order() -> None:
    data = own("good").load()
    assert np.array_equal(data.train.inputs, np.repeat(np.arange(100, dtype="f4")[:, None], 3, 1))
    assert data.train.labels.tolist() == [0, 1] * 50 and len(data.test) == 10
    pictures = own("mapping", test=None, held_out=0.1, resize=[3, 4]).load()
    assert pictures.shape == (3, 3, 4) and len(pictures.test) == 10
    assert own("mapping").load().train.inputs[5].tolist() == COLOUR[5].tolist()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("torch", "data.train: sample 0 draws at random"),
        ("python", "data.train: sample 0 draws at random"),
        ("own", "data.train: sample 0 draws at random"),
        ("reads", "is another at a second reading"),
        ("alone", "is Tensor; must be a pair of input and label"),
        ("three", "must be a pair of input and label"),
        ("object", "sample 0 holds a Numbered, which is no array"),
        ("ragged", "row 1 has shape [2], but the first one has [1]"),
        ("fails", "data.train: sample 3: ZeroDivisionError"),
    ],
)
def test_data_sets_that_are_none(kind: str, says: str) -> None:
    assert says in refused(lambda: own(kind))


def test_where_a_data_set_is() -> None:
    with pytest.raises(InputError, match=r"data\.train=None: must be a data set: data\.train\._target_="):
        Own()
    with pytest.raises(InputError, match=r"data\.root=here: must be null"):
        own("good", root="here")
    with pytest.raises(InputError, match=r"data\.test=None: must be a data set as data\.train is"):
        own("good", test=None)
    endless = {"_target_": "tests.data.test_bring.Endless"}
    assert "must be a map-style data set" in refused(lambda: own("good", train=endless))
    torchvision = {"_target_": "torchvision.datasets.FakeData", "size": 20, "image_size": [3, 8, 8]}
    data = Own(train=torchvision, held_out=0.2).load()
    assert data.shape == (3, 8, 8) and data.train.inputs.dtype == np.uint8


# files


@pytest.mark.parametrize("layout", ["folder", "npz", "npy", "safetensors", "csv", "Parquet", "tar"])
def test_data_in_an_object_store(layout: str, tmp_path: Path, s3: str) -> None:
    labels = np.array(["a", "b"])[LABELS % 2] if layout == "folder" else LABELS
    source: Any = LAYOUTS[layout](tmp_path, {"train": (COLOUR, labels), "test": (COLOUR[:4], labels[:4])})
    local = source.load()
    store = Store(s3.format(f"data-{layout}"))
    files = Files(str(tmp_path))
    for name in files.names():
        store.write(name, (tmp_path / name).read_bytes())
    source.root = store.root + ("/all.npz" if layout == "npz" else "")
    if layout == "npz":
        head, _, query = store.root.partition("?")
        source.root = f"{head}/all.npz?{query}"
    there = source.load()
    assert (there.train.digest, there.test.digest) == (local.train.digest, local.test.digest)
    source.root = s3.format("nothing-there")
    with pytest.raises(InputError, match="must be a folder that is there, or a file, or a URI of one"):
        source.load()


def test_a_source_that_is_read_again_reads_what_is_there(tmp_path: Path) -> None:
    source = Arrays(root=str(write(tmp_path)), memory_gib=0)
    first = source.load()
    write(tmp_path, x_train=COLOUR[::-1])
    assert np.array_equal(source.load().train.inputs, COLOUR[::-1])
    assert np.array_equal(first.train.inputs, COLOUR)


@pytest.mark.parametrize("layout", ["folder", "npz", "csv", "tar", "Parquet"])
def test_what_is_held_out_is_the_same_in_a_file(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a share of the training split, in memory and mapped; a test split that is there is left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    labels = np.array(["a", "b", "c"])[LABELS] if layout == "folder" else LABELS
    (tmp_path / "root").mkdir()
    source: Any = LAYOUTS[layout](
        tmp_path / "root", {"train": (COLOUR, labels), "test": (COLOUR[:3], labels[:3])}
    )
    source.held_out, found = 0.25, []
    for memory in (None, 0):
        source.memory_gib = memory
        data = source.load()
        assert isinstance(data.train, Mapped) == (memory == 0)
        assert np.bincount(data.test.labels).tolist() == [1, 1, 1]
        found.append((data.train.digest, data.test.digest))
    assert found[0] == found[1]
    assert any("the split test is left out, since data.held_out=0.25" in note for note in source.notes)


def test_files_that_change_while_they_are_read(tmp_path: Path) -> None:
    file = write(tmp_path)

    class Slow(Arrays):
        """Somebody else writes after the labels are read."""

        how: Callable[[], object]

        def parts(self) -> list[Part]:
            parts = super().parts()
            type(self).how()
            return parts

    Slow.how = lambda: write(tmp_path, x_train=COLOUR[::-1])
    assert f"{file} has changed while it was read; run the command again" in refused(
        lambda: Slow(root=str(file))
    )
    Slow.how = lambda: file.unlink()
    assert f"{file} is gone since this began" in refused(lambda: Slow(root=str(file)))


def test_a_mapped_split_of_any_layout_is_sent_as_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    splits = {"train": (COLOUR, LABELS), "test": (COLOUR[:4], LABELS[:4])}
    for layout in ("npz", "npy", "safetensors", "csv", "tar"):
        (tmp_path / layout).mkdir()
        source: Any = LAYOUTS[layout](tmp_path / layout, splits)
        source.memory_gib = 0
        data = source.load()
        assert isinstance(data.train, Mapped) and np.array_equal(data.train.inputs, COLOUR)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"{layout}-elsewhere"))
        assert pickle.loads(pickle.dumps(data.train)).digest == data.train.digest
        assert png(data.train.inputs[0])
        content = pickle.dumps(data.train)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"{layout}-third"))
        (tmp_path / layout).rename(tmp_path / f"{layout}-moved")
        with pytest.raises(InputError, match="is not there on this node"):
            pickle.loads(content)
