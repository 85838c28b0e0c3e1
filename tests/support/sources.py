"""A data source and a loss as a user would write them."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from lbdist.data.base import Dataset, DataSource, Split
from lbdist.losses import CrossEntropy


@dataclass
class Arrays(DataSource):
    """The splits of `root`, an .npz file."""

    root: str | None = None

    def read(self) -> Dataset:
        with np.load(str(self.root)) as file:
            train, test = (
                Split(file[f"{part}_inputs"], file[f"{part}_labels"]) for part in ("train", "test")
            )
        return Dataset(train, test, 4)


class Smoothed(CrossEntropy):
    """Cross-entropy with smoothed labels."""

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="sum")


@dataclass
class Sentences(DataSource):
    """Sequences of tokens, whose class is in them."""

    def read(self) -> Dataset:
        random = np.random.default_rng(0)

        def split(count: int) -> Split:
            labels = random.integers(0, 3, count)
            return Split(random.integers(0, 17, (count, 5)) + labels[:, None], labels)

        return Dataset(split(200), split(50), 3)


class Bag(nn.Module):
    """The mean of embeddings, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.embedding(x).mean(1))
        return out
