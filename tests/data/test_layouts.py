"""The same samples in every layout are the same arrays, of one digest, and so one cell."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbdist.data.base import Dataset
from lbdist.data.parquet import Parquet
from lbdist.data.vision import Vision
from tests.support.files import write_idx
from tests.support.layouts import LAYOUTS, Splits, fits

SHARED = Path(__file__).parents[2].parent / "shared/data"
WORDS = np.array(["ape", "bee 2", "cod"])


@st.composite
def splits(draw: st.DrawFn) -> Splits:
    """Pictures, numbers or tokens; classes, words, numbers, or several of them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind, label = draw(st.sampled_from(["pictures", "numbers", "tokens"])), draw(st.sampled_from("cwnms"))
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    made = {}
    for split, count in (("train", draw(st.integers(3, 9))), ("test", draw(st.integers(3, 5)))):
        if kind == "pictures":
            shape = (count, draw(st.just(3 if len(sizes) > 1 else 1)), 4 + sizes[0], 5)
            inputs = random.integers(0, 256, shape).astype(np.uint8)
        elif kind == "numbers":
            inputs = random.normal(scale=10.0 ** random.integers(-30, 30), size=(count, *sizes)).astype("f4")
        else:
            inputs = random.integers(0, draw(st.sampled_from([2, 200, 2**40])), (count, *sizes))
        classes = np.arange(count) % 3  # each is in both splits
        labels = {
            "c": classes,
            "w": WORDS[classes],
            "n": random.normal(size=count).astype("f4"),
            "m": random.normal(size=(count, 2)).astype("f4"),
            "s": random.integers(0, 2, (count, 3)),
        }[label]
        made[split] = inputs, labels
    return made


@settings(max_examples=25, deadline=None)
@given(splits=splits())
def test_every_layout_gives_the_arrays_that_it_was_made_of(splits: Splits) -> None:
    digests = set()
    for name, write in LAYOUTS.items():
        if not fits(name, splits):
            continue
        with tempfile.TemporaryDirectory() as root:
            data = write(Path(root), splits).load()
        for split, (inputs, labels) in splits.items():
            got = getattr(data, split)
            if labels.dtype.kind == "U":
                labels = np.searchsorted(WORDS, labels)
            assert got.inputs.dtype == inputs.dtype and np.array_equal(got.inputs, inputs), name
            assert np.array_equal(got.labels, labels), name
        digests.add((data.train.digest, data.test.digest))
    assert len(digests) == 1


@pytest.mark.parametrize("mapped", [False, True])
def test_mnist_is_one_data_set_in_every_layout(
    tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits as Parquet of Hugging Face has them, and as torchvision's own files."""
    if not (SHARED / "mnist").is_dir():
        pytest.skip(f"{SHARED / 'mnist'} is not here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = {"memory_gib": 0} if mapped else {}
    data = Parquet(root=str(SHARED / "mnist"), train_samples=400, test_samples=100, **memory).load()
    found = {split: getattr(data, split) for split in ("train", "test")}
    whole = {split: (one.inputs, one.labels) for split, one in found.items()}
    digests = {data.train.digest + data.test.digest}
    for name, write in LAYOUTS.items():
        root = tmp_path / name
        root.mkdir()
        source = write(root, whole)
        source.memory_gib = 0 if mapped else None  # type: ignore[attr-defined]
        again: Dataset = source.load()
        assert (again.shape, again.classes) == ((1, 28, 28), 10), name
        digests.add(again.train.digest + again.test.digest)
    pixels = {"train": found["train"].inputs, "t10k": found["test"].inputs}
    labels = {"train": found["train"].labels.astype("u1"), "t10k": found["test"].labels.astype("u1")}
    write_idx(tmp_path / "MNIST/raw", pixels, labels)
    own = Vision(root=str(tmp_path), download=False).load()
    digests.add(own.train.digest + own.test.digest)
    assert len(digests) == 1
