from __future__ import annotations

import pickle
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import get_class
from hypothesis import given, settings
from hypothesis import strategies as st

from lbdist.data import Dataset, Split
from lbdist.data.base import DataSource, on_device, to_float
from lbdist.errors import InputError
from lbdist.plan import held_out
from tests.support.samples import signals

YAMLS = sorted((Path(__file__).parents[2] / "experiments/data").glob("*.yaml"))


def split(labels: list[int]) -> Split:
    """Each sample's input is its number."""
    return Split(np.arange(len(labels), dtype=np.float32)[:, None], np.array(labels, np.int64))


TRAIN, TEST = split([0, 1] * 20), split([0, 1] * 5)


@dataclass
class Given(DataSource):
    train: Split = TRAIN
    test: Split = TEST
    classes: int = 2

    def read(self) -> Dataset:
        return Dataset(self.train, self.test, self.classes)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=200),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_validation_split_is_a_stratified_partition(labels: list[int], fraction: float, seed: int) -> None:
    whole = Dataset(split(labels), split([0]), 5)
    count = held_out(len(labels), fraction)
    if not 0 < count < len(labels):
        with pytest.raises(InputError, match=f"takes {count} of {len(labels)} training samples"):
            whole.validation_split(fraction, seed)
        return
    carved = whole.validation_split(fraction, seed)
    rest, validation = carved.train.inputs[:, 0], carved.test.inputs[:, 0]
    assert sorted([*rest, *validation]) == list(range(len(labels)))
    assert (np.diff(rest) > 0).all() and (np.diff(validation) > 0).all()
    assert len(validation) == count
    for label in range(5):
        share = labels.count(label) * len(validation) / len(labels)
        assert abs((carved.test.labels == label).sum() - share) < 1
    again = whole.validation_split(fraction, seed)
    assert np.array_equal(again.test.inputs, carved.test.inputs)
    assert carved.classes == 5


def test_validation_split_depends_on_the_seed() -> None:
    whole = Dataset(split([0, 1] * 100), split([0]), 2)
    picked = [set(whole.validation_split(0.1, seed).test.inputs[:, 0]) for seed in (0, 1)]
    assert picked[0] != picked[1]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_validation_split_refuses_a_wrong_fraction(fraction: float) -> None:
    with pytest.raises(InputError, match="strictly between 0 and 1"):
        Dataset(split([0, 1]), split([0]), 2).validation_split(fraction)


def test_subsets_are_fixed_and_nested() -> None:
    small, large, whole = (Given(train_samples=n, test_samples=3).load() for n in (5, 12, 40))
    chosen = [set(d.train.inputs[:, 0]) for d in (small, large, whole)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert (len(small.train), len(small.test), small.shape) == (5, 3, (1,))
    assert chosen[0] != set(range(5))
    assert np.array_equal(whole.train.inputs, Given().load().train.inputs)


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "10"])
def test_sample_counts_are_positive_integers(value: object) -> None:
    with pytest.raises(InputError, match=r"data\.train_samples=.*at least 1"):
        Given(train_samples=value)  # type: ignore[arg-type]


def test_more_samples_than_there_are() -> None:
    with pytest.raises(InputError, match=r"data\.test_samples=11: must be at most 10"):
        Given(test_samples=11).load()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": split([])}, "train split is empty"),
        ({"test": Split(np.zeros((1, 2), np.float32), np.zeros(1, np.int64))}, "must have one shape"),
        ({"test": Split(np.zeros((2, 1), np.float32), np.zeros(1, np.int64))}, "2 samples but 1 labels"),
    ],
)
def test_inconsistent_data_is_refused(wrong: dict[str, Split], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Given(**wrong).load()
    assert "\n" not in str(caught.value)


def test_to_float() -> None:
    pixels = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    assert to_float(pixels).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert to_float(pixels).dtype == torch.float32
    assert to_float(pixels, torch.float64).flatten().tolist() == [0, 51 / 255, 1]
    assert to_float(pixels[0]).dtype == torch.int64 and to_float(pixels[0]).equal(pixels[0])  # tokens
    signal = torch.tensor([-3.0, 300.0])
    assert to_float(signal).equal(signal)
    assert to_float(signal, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_holds_the_fields_and_their_defaults(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    source = get_class(values.pop("_target_"))
    assert issubclass(source, DataSource)
    assert values.pop("name") == path.stem
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(source)
    }
    assert MISSING not in defaults.values()
    if "dataset" in defaults:
        defaults["dataset"] = path.stem
    assert values == defaults


def test_there_are_yamls() -> None:
    assert {path.stem for path in YAMLS} >= {
        "mnist1d",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "parquet",
    }


def test_a_split_that_arrives_is_what_was_sent() -> None:
    split = Split(np.arange(12, dtype="f4").reshape(6, 2), np.arange(6))
    content = pickle.dumps(split)
    again = pickle.loads(content)
    assert np.array_equal(again.inputs, split.inputs) and again.digest == split.digest
    place = content.index(np.float32(5).tobytes())
    with pytest.raises(ValueError, match="arrived damaged"):
        pickle.loads(content[:place] + b"\1" + content[place + 1 :])


def test_a_scale_leaves_some_samples_out_unless_a_field_says_how_many() -> None:
    source = Given(train=split([0, 1] * 10), test=split([0, 1] * 3))
    capped = source.load(at_most=8)
    assert (len(capped.train), len(capped.test)) == (8, 6)
    assert source.totals == {"train_samples": 20, "test_samples": 6}
    same = Given(train=split([0, 1] * 10), test=split([0, 1] * 3), train_samples=8).load()
    assert capped.train.digest == same.train.digest  # what `train_samples` takes
    more = Given(train=split([0, 1] * 10), test=split([0, 1] * 3), train_samples=12).load(at_most=8)
    assert len(more.train) == 12


@pytest.mark.parametrize("kind", [">f4", ">f8", "<f4"])
def test_arrays_of_any_byte_order_are_the_same_samples(kind: str) -> None:
    data = signals()

    @dataclass
    class Ordered(DataSource):
        def read(self) -> Dataset:
            def other(split: Split) -> Split:
                return Split(split.inputs.astype(kind), split.labels.astype(f"{kind[0]}i8"))

            return Dataset(other(data.train), other(data.test), data.classes)

    found = Ordered().load()
    same = Split(data.train.inputs.astype(kind[1:]), data.train.labels.astype("i8"))
    assert found.train.digest == same.digest and found.train.inputs.dtype.isnative
    inputs, labels = on_device(found.train, "cpu")
    assert torch.equal(inputs, torch.from_numpy(data.train.inputs.astype(kind[1:])).to(inputs.dtype))
    assert labels.tolist() == data.train.labels.tolist()
