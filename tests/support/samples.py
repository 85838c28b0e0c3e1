"""Small data sets whose classes can be learnt."""

import numpy as np

from lbdist.data.base import Dataset, Split


def signals(train: int = 130, test: int = 40, length: int = 12, classes: int = 4, seed: int = 0) -> Dataset:
    """Random signals whose class can be learnt."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, length))

    def split(count: int) -> Split:
        labels = random.integers(0, classes, count)
        return Split((centres[labels] + 0.7 * random.normal(size=(count, length))).astype("f4"), labels)

    return Dataset(split(train), split(test), classes)


def images(train: int = 70, test: int = 20, seed: int = 0) -> Dataset:
    """Random uint8 images, 3 x 8 x 8, in 4 classes."""
    random = np.random.default_rng(seed)

    def split(count: int) -> Split:
        labels = random.integers(0, 4, count)
        noise = random.integers(0, 128, (count, 3, 8, 8))
        return Split((noise + 30 * labels[:, None, None, None]).astype("u1"), labels)

    return Dataset(split(train), split(test), 4)
