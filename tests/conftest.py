"""Shared by all tests: one thread a process, Ray told to be quiet, small cells and data."""

import os
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import pytest
import torch

from lbdist.data.base import Dataset, Split

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist1d_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the session's own."""
    return tmp_path_factory.mktemp("cache")


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
